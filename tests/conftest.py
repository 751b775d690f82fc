"""Options of the tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer what takes too long for every run."""
    parser.addoption(
        "--kubernetes",
        action="store_true",
        help="run the long tests of a real cluster too, which take half an hour under emulation",
    )
