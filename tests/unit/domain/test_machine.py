"""The table of transitions."""

from __future__ import annotations

import pytest

from arcboxd.domain.machine import TRANSITIONS, MachineState, check_transition
from arcboxd.errors import MachineStateError


def test_every_state_has_a_row_and_a_way_out() -> None:
    assert set(TRANSITIONS) == set(MachineState)
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize("before", list(MachineState))
@pytest.mark.parametrize("after", list(MachineState))
def test_only_what_the_table_has_may_happen(before: MachineState, after: MachineState) -> None:
    if after in TRANSITIONS[before]:
        check_transition("dev", before, after)
    else:
        with pytest.raises(MachineStateError, match="'dev'"):
            check_transition("dev", before, after)


def test_nothing_becomes_creating_and_a_removal_has_no_way_back() -> None:
    assert all(MachineState.CREATING not in after for after in TRANSITIONS.values())
    assert TRANSITIONS[MachineState.REMOVING] == {MachineState.REMOVING}


def test_an_unknown_machine_is_never_started() -> None:
    assert MachineState.STARTING not in TRANSITIONS[MachineState.UNKNOWN]
