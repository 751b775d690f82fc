from __future__ import annotations

import importlib

import pytest

from bench.__main__ import NAMES, main


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_measurement(name: str) -> None:
    assert callable(importlib.import_module(f"bench.{name}").run)


def test_an_unknown_name_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["warm", "wram"])
    assert ended.value.code == 2
    assert "unknown: wram" in capsys.readouterr().err
