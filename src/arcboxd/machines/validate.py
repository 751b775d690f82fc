"""What a new machine may be: every check is made before anything of it exists."""

from __future__ import annotations

import base64
import binascii
import logging
import pwd
import re
import secrets
from pathlib import Path

from arcboxd.assets.mirror import host_arch
from arcboxd.domain.image import ARCH_ALIASES
from arcboxd.domain.machine import MachineSpec, NewMachine
from arcboxd.errors import InvalidArgumentError
from arcboxd.machines.interfaces import Images
from arcboxd.machines.mount_paths import check_mounts
from arcboxd.settings import GIB, MIB, Settings, host_cpus, host_memory_bytes

_log = logging.getLogger(__name__)

MAX_CPUS = 255
"""What QEMU's q35 takes without an interrupt remapper."""
MIN_MEMORY_BYTES = 128 * MIB
MIN_DISK_BYTES = 4 * GIB
"""The base images' virtual size."""
MAX_DISK_BYTES = 16 << 40
MAX_CMDLINE_BYTES = 1024
MAX_KEY_BYTES = 16 << 10
_KERNEL_HEAD_BYTES = 0x210
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEY_TYPES = frozenset(
    {
        *("ssh-ed25519", "ssh-rsa"),
        *("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
        *("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
    }
)


def check_new(new: NewMachine, settings: Settings, images: Images) -> MachineSpec:
    """Fill in the defaults, and refuse what cannot be.

    Raises:
        InvalidArgumentError: A value can never be accepted.
        MountExistsError: Two mounts are in each other's way.
        NoRoomError: There are too many mounts.
    """
    check_name(new.name)
    arch = check_arch(new.arch)
    distro, version = images.resolve(new.distro or settings.default_distro, new.version, arch)
    return MachineSpec(
        name=new.name,
        cpus=check_cpus(new.cpus or settings.default_cpus),
        memory_bytes=check_memory(new.memory_bytes or settings.default_memory_bytes),
        disk_bytes=check_disk(new.disk_bytes or settings.default_disk_bytes),
        distro=distro,
        version=version,
        arch=arch,
        cmdline=check_cmdline(new.cmdline),
        kernel=check_kernel(new.kernel, arch) if new.kernel else "",
        ssh_public_keys=(check_public_key(new.ssh_public_key),) if new.ssh_public_key else (),
        mounts=check_mounts(new.mounts),
    )


def check_name(name: str) -> str:
    """Refuse a name that no host could have.

    Raises:
        InvalidArgumentError: It is none.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"{name[:80]!r} cannot be a machine's name",
            hint="1 to 63 characters: a-z, 0-9 and '-', the first no '-'",
        )
    return name


def check_arch(arch: str) -> str:
    """Give an architecture by the kernel's name for it; the host's for an empty one.

    Raises:
        InvalidArgumentError: There is no such architecture.
    """
    if not arch:
        return host_arch()
    if arch not in ARCH_ALIASES:
        raise InvalidArgumentError(
            f"unknown architecture {arch[:80]!r}", hint=f"known: {', '.join(ARCH_ALIASES)}"
        )
    return ARCH_ALIASES[arch]


def check_cmdline(cmdline: str) -> str:
    """Refuse what the kernel's command line cannot hold.

    Raises:
        InvalidArgumentError: It is too long, or not printable.
    """
    if len(cmdline.encode()) > MAX_CMDLINE_BYTES:
        raise InvalidArgumentError(
            f"the kernel command line is longer than {MAX_CMDLINE_BYTES} bytes"
        )
    if not (cmdline.isascii() and cmdline.isprintable()):
        raise InvalidArgumentError(
            "the kernel command line has characters that are not printable ASCII"
        )
    return cmdline.strip()


def check_public_key(key: str) -> str:
    """Refuse what is not one OpenSSH public key, such as one with options before it.

    Raises:
        InvalidArgumentError: It is none.

    Source: RFC 4253, section 6.6: the data begins with the type, as a length and its bytes.
    """
    line = key.strip()
    fields = line.split(None, 2)
    hint = "give one line of a .pub file, such as ~/.ssh/id_ed25519.pub"
    if len(line) > MAX_KEY_BYTES or not line.isprintable() or len(fields) < 2:  # noqa: PLR2004
        raise InvalidArgumentError("the SSH public key is not one line of type and data", hint=hint)
    kind, data = fields[0], fields[1]
    if kind not in _KEY_TYPES:
        raise InvalidArgumentError(
            f"SSH public keys of type {kind[:80]!r} are not accepted",
            hint=f"accepted: {', '.join(sorted(_KEY_TYPES))}",
        )
    try:
        blob = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgumentError("the SSH public key's data is not base64", hint=hint) from error
    name_bytes = int.from_bytes(blob[:4], "big")
    # The name, then at least one more field: a key that is only its type is no key.
    if blob[4 : 4 + name_bytes] != kind.encode() or len(blob) <= 8 + name_bytes:
        raise InvalidArgumentError(
            f"the SSH public key's data is not that of a {kind} key", hint=hint
        )
    return line


def login_name(uid: int) -> str:
    """Give the caller's login name as one that any Linux distribution accepts."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ""
    name = re.sub(r"[^a-z0-9_-]", "_", name.lower()).strip("-")[:32]
    return name if re.match(r"[a-z_]", name) else f"u{name}"[:32] if name else "arcbox"


def check_cpus(cpus: int) -> int:
    """Refuse a number of vCPUs that no machine can have.

    Raises:
        InvalidArgumentError: There are too many.
    """
    if cpus > MAX_CPUS:
        raise InvalidArgumentError(f"{cpus} vCPUs are more than the {MAX_CPUS} that are possible")
    if cpus > host_cpus():
        _log.warning("%d vCPUs are more than the host's %d processors", cpus, host_cpus())
    return cpus


def check_memory(memory_bytes: int) -> int:
    """Refuse a memory that is too small to boot in, or more than the host has.

    Raises:
        InvalidArgumentError: It is.
    """
    total = host_memory_bytes()
    if memory_bytes < MIN_MEMORY_BYTES:
        raise InvalidArgumentError(
            f"{memory_bytes} bytes of memory are too few", hint="give at least 128 MiB"
        )
    if memory_bytes > total:
        raise InvalidArgumentError(
            f"{memory_bytes} bytes of memory are more than the host has",
            hint=f"give at most {total // MIB} MiB",
        )
    return memory_bytes


def check_disk(disk_bytes: int) -> int:
    """Refuse a disk that is too small for an image, or larger than can be.

    Raises:
        InvalidArgumentError: It is.
    """
    if disk_bytes < MIN_DISK_BYTES:
        raise InvalidArgumentError(
            f"a disk of {disk_bytes} bytes is too small", hint="give at least 4 GiB"
        )
    if disk_bytes > MAX_DISK_BYTES:
        raise InvalidArgumentError(
            f"a disk of {disk_bytes} bytes is too large", hint="give at most 16 TiB"
        )
    return disk_bytes


def check_kernel(kernel: str, arch: str) -> str:
    """Refuse what is no Linux kernel for an architecture.

    Raises:
        InvalidArgumentError: It is none, or it cannot be read.

    Source: Documentation/arch/x86/boot.rst ("HdrS" at 0x202), Documentation/arch/arm64/booting.rst
    ("ARM" and a 64 at 56), elf(5).
    """
    hint = "give the absolute path of a bzImage, an Image or an ELF file on this host"
    if "\0" in kernel or not kernel.startswith("/"):
        raise InvalidArgumentError(f"the kernel {kernel[:200]!r} is no absolute path", hint=hint)
    try:
        with Path(kernel).open("rb") as file:
            head = file.read(_KERNEL_HEAD_BYTES)
    except OSError as error:
        raise InvalidArgumentError(
            f"the kernel {kernel[:200]!r} cannot be read: {error.strerror}", hint=hint
        ) from error
    is_elf = head[:4] == b"\x7fELF" and int.from_bytes(head[18:20], "little") == _ELF_MACHINES[arch]
    own = head[0x202:0x206] == b"HdrS" if arch == "x86_64" else head[56:60] == b"ARM\x64"
    if not (is_elf or own):
        raise InvalidArgumentError(f"{kernel[:200]!r} is no Linux kernel for {arch}", hint=hint)
    return kernel


def random_mac() -> str:
    """Make up the address of a network card."""
    # 52:54:00 is QEMU's own prefix: locally administered, and no vendor's.
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
