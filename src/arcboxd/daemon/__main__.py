"""``python -m arcboxd.daemon``."""

import sys

from arcboxd.daemon.main import main

sys.exit(main())
