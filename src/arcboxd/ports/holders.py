"""Which forwards of ours have which ports of the host."""

from __future__ import annotations

from collections.abc import Callable

from arcboxd.ports.plan import Wanted, overlap


class Holders:
    """Says who has a port, and tells when one is free again."""

    def __init__(self) -> None:
        """Nobody has any."""
        self.on_free: Callable[[Wanted], None] = lambda _: None
        self._held: dict[tuple[str, int], list[tuple[Wanted, str]]] = {}

    def take(self, wanted: Wanted, who: str) -> None:
        """Note that a forward is open."""
        self._held.setdefault((wanted.protocol, wanted.host_port), []).append((wanted, who))

    def free(self, wanted: Wanted, who: str) -> None:
        """Note that it is closed, and let those who wait for the port try."""
        key = (wanted.protocol, wanted.host_port)
        held = self._held.get(key, [])
        if (wanted, who) in held:
            held.remove((wanted, who))
            if not held:
                del self._held[key]
            self.on_free(wanted)

    def who(self, wanted: Wanted) -> str:
        """Tell who has the port that a forward wants; empty if none of ours."""
        for held, who in self._held.get((wanted.protocol, wanted.host_port), ()):
            if overlap(held.host_address, wanted.host_address):
                return who
        return ""
