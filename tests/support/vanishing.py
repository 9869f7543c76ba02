"""A server and a reader in a network of their own, which is then cut: prints the seconds until the server gives the reader up.

    unshare --user --map-root-user --net python -m tests.support.vanishing REDIS_URL TARGET

Nothing that either sends arrives any more, and neither is told. Source: netdevice(7), SIOCSIFFLAGS; tcp(7), TCP_USER_TIMEOUT.
"""

import fcntl
import socket
import struct
import sys
import time

from kvstore.live import hub as live
from kvstore.serving import sse
from tests.support.stores import Running, wait_until
from tests.support.streams import OwnServer

SIOCSIFFLAGS = 0x8914
IFF_UP = 1
HEARTBEAT_S = 0.5
LIMIT_S = 40


def set_loopback(flags: int) -> None:
    """Switch the one interface of this network on or off."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags))


def main() -> None:
    """Follow, cut the network, and wait until nobody follows."""
    url, target = sys.argv[1:]
    for module in (live, sse):
        vars(module)["HEARTBEAT_S"] = HEARTBEAT_S
    set_loopback(IFF_UP)
    followed = OwnServer(Running(url, None, lambda: None))
    followed.open(target, {}).wait_for(1)
    set_loopback(0)
    begun = time.monotonic()
    wait_until(lambda: not followed.running.server.connections, LIMIT_S)
    print(f"{time.monotonic() - begun:.1f}")
    followed.stop()


main()
