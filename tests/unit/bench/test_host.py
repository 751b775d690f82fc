from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from arcboxd.hypervisor.base import Accelerator
from bench.host import Floor, Host

FLOOR = Floor(Path("/-"), Path("/-"), Accelerator("tcg", "", 1))


@contextmanager
def process(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run something that calls itself by a name."""
    argv = ["bash", "-c", 'exec -a "$0" sleep 60', name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as started:
        try:
            cmdline = Path(f"/proc/{started.pid}/cmdline")
            while not cmdline.read_bytes().startswith(name.encode()):
                pass
            yield started
        finally:
            started.kill()


def test_at_the_end_no_qemu_of_the_directory_is_left_and_no_other_is_touched(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with ExitStack() as stack:
        ours = stack.enter_context(
            process(f"qemu-system-x86_64 path={home}/machines/1/console.log")
        )
        neighbour = stack.enter_context(process(f"qemu-system-x86_64 path={home}2/machines/1/log"))
        reader = stack.enter_context(process(f"tail -f {home}/daemon.log"))
        Host(home, FLOOR).end()
        assert ours.wait(10) == -9
        assert neighbour.poll() is None
        assert reader.poll() is None
