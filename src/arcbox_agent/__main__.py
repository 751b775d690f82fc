"""`python -m arcbox_agent`."""

import sys

from arcbox_agent.startup import import_main

sys.exit(import_main().main(sys.argv[1:]))
