"""Waits for what has no event to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from tests.vm.conftest import Host


def until(
    condition: Callable[..., object], timeout_s: float, what: str, *, every_s: float = 0.2
) -> None:
    """Poll."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(every_s)


def reboot(host: Host, name: str, *command: str) -> None:
    """Reboot a guest from inside, and wait until its agent answers again."""
    before = host.sh(name, "cat /proc/sys/kernel/random/boot_id")

    def taken() -> bool:
        try:
            return host.exec(name, *command)[0] == 0
        except grpc.RpcError:
            return True

    def back() -> bool:
        try:
            return host.sh(name, "cat /proc/sys/kernel/random/boot_id") != before
        except (grpc.RpcError, AssertionError):
            return False

    until(taken, 120, "its init takes the order")
    until(back, 300, "the machine answers with a new boot id")
    assert host.state(name) == "running"
