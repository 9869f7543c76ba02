"""HTTP/1.1 on a plain socket: whatever bytes a test wants on the wire go out, and answers are read back.

The reader is strict and knows only what our server sends: a body has a Content-Length.
"""

import contextlib
import select
import socket
import time
from collections.abc import Iterable
from typing import NamedTuple

Address = tuple[str, int]


class Raw(NamedTuple):
    """An answer as it came: its status, the lines of its head, its body."""

    status: int
    lines: list[tuple[str, str]]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the answer says that the connection ends with it."""
        return ("connection", "close") in [(name.lower(), value.lower()) for name, value in self.lines]


_open: list["Wire"] = []


def close_all() -> None:
    """Close what a test has opened."""
    while _open:
        _open.pop().close()


class Wire:
    """A connection to a server, closed with the test. `interim` are the statuses 1xx that came before answers."""

    def __init__(self, address: Address, *, limit_s: float = 30) -> None:
        self.socket = socket.create_connection(address, limit_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.interim: list[int] = []
        self._buffer = b""
        _open.append(self)

    def send(self, sent: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(sent)

    def send_what_is_read(self, sent: bytes) -> None:
        """Send it, or as much of it as the server reads before it answers and closes."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(sent)

    def trickle(self, pieces: Iterable[bytes], *, pause_s: float = 0.001) -> None:
        """Send the pieces one after the other, each in a packet of its own."""
        for piece in pieces:
            self.socket.sendall(piece)
            time.sleep(pause_s)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self, method: str = "GET") -> Raw:
        """The next answer; raises ConnectionError where the connection ends before it is complete."""
        while True:
            head = self._read_head()
            first, *rest = head.decode("latin-1").split("\r\n")
            version, status, _ = first.split(" ", 2)
            assert version == "HTTP/1.1"
            if not status.startswith("1"):
                break
            self.interim.append(int(status))
        lines = [(name, value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        lengths = [int(value) for name, value in lines if name.lower() == "content-length"]
        if method == "HEAD" or status in ("204", "304"):
            return Raw(int(status), lines, b"")
        assert len(lengths) == 1, "an answer with a body has one Content-Length"
        return Raw(int(status), lines, self._read(lengths[0]))

    def has_ended(self) -> bool:
        """Whether the server has closed the connection already."""
        readable, _, _ = select.select([self.socket], [], [], 0)
        return bool(readable) and self.rest() == b""

    def rest(self) -> bytes:
        """What else comes until the server closes the connection; fails if it does not close in time."""
        while self._receive():
            pass
        rest, self._buffer = self._buffer, b""
        return rest

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def abort(self) -> None:
        """Break the connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def _receive(self) -> bool:
        try:
            received = self.socket.recv(256 * 1024)
        except ConnectionResetError:
            received = b""
        self._buffer += received
        return bool(received)

    def _read_head(self) -> bytes:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not self._receive():
                raise ConnectionError(f"closed after {len(self._buffer)} bytes of a head")
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        return head

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self._receive():
                raise ConnectionError(f"closed after {len(self._buffer)} of {size} bytes of a body")
        read, self._buffer = self._buffer[:size], self._buffer[size:]
        return read


def unread(at: tuple[str, int], buffered: int = 4096) -> socket.socket:
    """A connection of a client whose kernel takes as little as it can, or about this much."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffered)
    connection.connect(at)
    return connection


def in_chunks(body: bytes, size: int = 100_000) -> bytes:
    """A body in the chunked transfer coding (RFC 9112 section 7.1)."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
