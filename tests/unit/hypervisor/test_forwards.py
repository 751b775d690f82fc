"""What QEMU's human monitor prints is understood."""

from arcboxd.hypervisor.base import Forward
from arcboxd.hypervisor.qemu.forwards import parse_usernet

# As QEMU 7.2.22 printed it, with a connection through a forward and one from the guest.
USERNET = """Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  11       127.0.0.1 34567       10.0.2.15    22     0     0
  TCP[ESTABLISHED]   15       127.0.0.1 34567       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  13               *  8080       10.0.2.15    80     0     0
  UDP[HOST_FORWARD]  12       127.0.0.1 34567       10.0.2.15    53     0     0
  UDP[236 sec]       14       10.0.2.15 51000        10.0.2.3    53     0     0
"""


def test_forwards_are_listed_and_connections_are_not() -> None:
    assert parse_usernet(USERNET) == (
        Forward("tcp", "127.0.0.1", 34567, 22),
        Forward("tcp", "0.0.0.0", 8080, 80),  # noqa: S104 - read, not bound
        Forward("udp", "127.0.0.1", 34567, 53),
    )


def test_nothing_is_read_out_of_nothing() -> None:
    assert parse_usernet("") == ()
