"""What a user may set: a flag, else ``ARCBOX_*``, else ``config.toml``, else a default."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from arcboxd.errors import InvalidArgumentError

MIB = 1 << 20
GIB = 1 << 30
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": MIB, "g": GIB, "t": 1 << 40}
_HOUR_S = 3600
_SIZE = re.compile(r"(\d+)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)


def host_cpus() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0))


def host_memory_bytes() -> int:
    """Tell the host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set; each field's name is its key in ``config.toml``."""

    default_cpus: int
    default_memory_bytes: int
    default_disk_bytes: int = 64 * GIB
    default_distro: str = "debian"
    default_machine: str = "default"
    """Whose Docker ``run/docker.sock`` serves; made when it is first used."""
    stop_grace_s: float = 25.0
    """Between asking a guest to end and ending it."""
    start_timeout_s: float = 30.0
    """Under KVM; the accelerator's timeout scale multiplies it."""
    accelerator: str = "auto"
    log_level: str = "info"
    templates: str = "auto"
    """``auto``: make one after the first cold start of a shape; ``manual``: make one only on
    request; ``off``: make and use none."""
    staged_clones: int = 0
    """Clones kept ready, restored and paused, of the template used last."""
    published_address: str = "127.0.0.1"
    """Of the host: where forwards listen that no address was given for."""
    debian_mirror: str = ""
    """Where Debian's packages come from; empty: the mirror that the host's own apt uses."""
    debian_security_mirror: str = ""
    """The same for security updates; heeded only beside ``debian_mirror``."""
    ubuntu_mirror: str = ""
    """Where Ubuntu's packages come from; empty: no Ubuntu images are built."""
    image_servers: tuple[str, ...] = ("https://images.linuxcontainers.org",)
    """Simplestreams servers that have images of other distributions, the first one to ask first."""
    image_keyring: str = ""
    """A keyring for gpgv: with one, the lists of the image servers must be signed by its keys."""
    k3s_binary: str = ""
    """A k3s on this host that machines get instead of the one that ``kubernetes.toml`` names."""

    @classmethod
    def for_host(cls) -> Settings:
        """Give the defaults: a quarter of the host's memory, within 1 to 4 GiB; at most 4 vCPUs."""
        memory = min(max(host_memory_bytes() // 4, GIB), 4 * GIB)
        return cls(min(4, host_cpus()), memory // MIB * MIB)


def parse_size(text: str) -> int:
    """Read a size in bytes such as ``512MiB``, ``4G`` or ``1073741824``; units are powers of 1024.

    Raises:
        ValueError: It is no such size.
    """
    if (match := _SIZE.fullmatch(text.strip())) is None:
        raise ValueError(text)
    return int(match[1]) * _UNITS[match[2].lower()]


def _size(value: object, low: int, high: int) -> int:
    number = parse_size(value) if isinstance(value, str) else value
    return _integer(number, low, high)


def _integer(value: object, low: int, high: int) -> int:
    number = int(value) if isinstance(value, str) else value
    # A bool is an int to Python, but not to whoever wrote `default_cpus = true`.
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise ValueError(value)
    return number


def _seconds(value: object) -> float:
    number = float(value) if isinstance(value, (int, float, str)) else math.nan
    if isinstance(value, bool) or not 0 < number <= _HOUR_S:  # which no NaN is
        raise ValueError(value)
    return number


def _ip_address(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(value)  # noqa: TRY004 - as the other rules
    return str(ipaddress.ip_address(value))


def _matching(pattern: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise ValueError(value)
        return value

    return check


def _addresses(value: object) -> tuple[str, ...]:
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > _ADDRESSES_MAX:
        raise ValueError(value)
    check = _matching(r"https?://[A-Za-z0-9._~:/\[\]@%-]{1,500}")
    return tuple(check(a.strip() if isinstance(a, str) else a) for a in found if a)


_ADDRESSES_MAX = 16
_ADDRESS = (
    "an http or https address, or empty",
    _matching(r"|https?://[A-Za-z0-9._~:/\[\]%-]{1,500}"),
)
_RULES: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "default_cpus": ("a whole number from 1 to 255", lambda v: _integer(v, 1, 255)),
    "default_memory_bytes": (
        "a size of at least 128MiB, such as 2GiB",
        lambda v: _size(v, 128 * MIB, 1 << 50),
    ),
    "default_disk_bytes": (
        "a size from 4GiB to 16TiB, such as 64GiB",
        lambda v: _size(v, 4 * GIB, 16 << 40),
    ),
    "default_distro": ("a distribution's name, such as debian", _matching(r"[a-z][a-z0-9-]{0,31}")),
    "default_machine": (
        "a machine's name: a-z, 0-9 and '-', at most 63, not '-' first",
        _matching("[a-z0-9][a-z0-9-]{0,62}"),
    ),
    "stop_grace_s": ("seconds, above 0 and at most 3600", _seconds),
    "start_timeout_s": ("seconds, above 0 and at most 3600", _seconds),
    "accelerator": ("auto, kvm or tcg", _matching("auto|kvm|tcg")),
    "log_level": ("debug, info, warning or error", _matching("debug|info|warning|error")),
    "templates": ("auto, manual or off", _matching("auto|manual|off")),
    "staged_clones": ("a whole number from 0 to 32", lambda v: _integer(v, 0, 32)),
    "published_address": (
        "an IP address of this host, such as 127.0.0.1, or 0.0.0.0 for all",
        _ip_address,
    ),
    "debian_mirror": _ADDRESS,
    "debian_security_mirror": _ADDRESS,
    "ubuntu_mirror": _ADDRESS,
    "image_servers": ("http or https addresses, in a list or with commas between", _addresses),
    "image_keyring": ("the absolute path of a keyring, or empty", _matching(r"|/[^\0\n]{1,4000}")),
    "k3s_binary": ("the absolute path of a k3s, or empty", _matching(r"|/[^\0\n]{1,4000}")),
}


def load(
    config: Path,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Put the settings together; a missing ``config`` is an empty one.

    Args:
        config: The path of ``config.toml``.
        flags: Values from a command line, by field name; None stands for a flag not given.
        environ: Where ``ARCBOX_DEFAULT_CPUS`` and the like are looked up.

    Raises:
        InvalidArgumentError: A key is unknown, or a value cannot be accepted.
    """
    values: dict[str, object] = {}
    for key, value in _read(config).items():
        if key not in _RULES:
            raise InvalidArgumentError(
                f"unknown setting {key!r} in {config}",
                hint=f"the settings are: {', '.join(_RULES)}",
            )
        values[key] = _accept(key, value, str(config))
    env = os.environ if environ is None else environ
    for key in _RULES:
        variable = f"ARCBOX_{key.upper()}"
        if text := env.get(variable):
            values[key] = _accept(key, text, f"the environment variable {variable}")
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = _accept(key, value, f"the flag --{key.replace('_', '-')}")
    defaults = Settings.for_host()
    # Each value was checked against its own field's rule; the type checker cannot follow that.
    return replace(defaults, **values)  # type: ignore[arg-type]


def _read(config: Path) -> dict[str, object]:
    try:
        return tomllib.loads(config.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(f"cannot read the settings in {config}: {error}") from error


def _accept(key: str, value: object, where: str) -> object:
    if key not in _RULES:
        raise InvalidArgumentError(f"unknown setting {key!r} from {where}")
    allowed, check = _RULES[key]
    try:
        return check(value)
    except ValueError as error:
        raise InvalidArgumentError(
            f"setting {key!r} in {where} cannot be {value!r}", hint=f"allowed: {allowed}"
        ) from error
