"""What is kept of each service in /run, so that an agent that begins anew knows what runs.

A process is known by its pid and when it started: pids are used again.
"""

# pathlib is not imported: start-up takes long under emulation.
# ruff: noqa: PTH103, PTH107, PTH123, PTH208

from __future__ import annotations

import json
import logging
import os

from arcbox_agent import files

_SUFFIX = ".json"
_START_TIME = 19  # the place of `starttime` after the command's name, see proc(5)

_log = logging.getLogger(__name__)


class Service:
    """A program that shall run."""

    __slots__ = ("argv", "env", "log", "name", "prelude")

    def __init__(
        self, name: str, argv: list[str], env: dict[str, str], log: str, prelude: str = ""
    ) -> None:
        """Keep it.

        Args:
            name: By which it is known; part of file names.
            argv: The program, by its absolute path, and its arguments.
            env: All of its environment.
            log: The file that it appends both outputs to.
            prelude: Shell commands, run in the new process before the program, such as `ulimit`.
        """
        self.name = name
        self.argv = argv
        self.env = env
        self.log = log
        self.prelude = prelude


class Record:
    """A service, whether it is wanted, and the process that runs it; pid 0: none that is known."""

    __slots__ = ("pid", "service", "start_time", "wanted")

    def __init__(self, service: Service, pid: int, start_time: int, *, wanted: bool) -> None:
        """Keep these."""
        self.service = service
        self.pid = pid
        self.start_time = start_time
        self.wanted = wanted

    @property
    def is_running(self) -> bool:
        """Whether that very process is still there."""
        return self.pid > 0 and self.start_time > 0 and read_start_time(self.pid) == self.start_time


class Records:
    """The folder of records, one file a service."""

    def __init__(self, folder: str) -> None:
        """Use this folder, which need not exist yet."""
        self._folder = folder

    def save(self, record: Record) -> None:
        """Write a record, whole.

        Raises:
            OSError: It cannot be written.
        """
        os.makedirs(self._folder, 0o700, exist_ok=True)
        service = record.service
        content = {slot: getattr(service, slot) for slot in Service.__slots__}
        content |= {slot: getattr(record, slot) for slot in Record.__slots__ if slot != "service"}
        files.write(self._path(service.name), json.dumps(content), mode=0o600)

    def forget(self, name: str) -> None:
        """Remove a record; one that is not there is no error."""
        try:
            os.remove(self._path(name))
        except FileNotFoundError:
            return

    def load(self) -> list[Record]:
        """Read every record; what makes no sense is logged and passed over."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            if name.endswith(_SUFFIX):
                try:
                    content = json.loads(files.read(f"{self._folder}/{name}"))
                    service = Service(*(content[slot] for slot in ("name", "argv", "env", "log")))
                    service.prelude = content["prelude"]
                    pid, start_time = int(content["pid"]), int(content["start_time"])
                    found.append(Record(service, pid, start_time, wanted=bool(content["wanted"])))
                except (OSError, ValueError, KeyError, TypeError) as error:
                    _log.warning("the record %s makes no sense: %s", name, error)
        return found

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}{_SUFFIX}"


def read_start_time(pid: int) -> int:
    """Say when a process started, in ticks since boot; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat[stat.rindex(")") + 2 :].split()
    return 0 if fields[0] in "ZX" else int(fields[_START_TIME])


def find_by_command(pids: list[int], argv: list[str]) -> int:
    """Find the process that runs a command, or is about to, after a prelude; 0 when none does."""
    wanted = [os.fsencode(each) for each in argv]
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().split(b"\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if command[-len(wanted) :] == wanted:
            return pid
    return 0
