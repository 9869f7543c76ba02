"""A proxy between a store and its Redis that makes one fault, at one script of those that pass."""

import gc
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import hiredis

SCRIPTS = (b"EVAL", b"EVALSHA")

Close = Callable[[], None]


class FaultyProxy:
    """Passes commands on to a port of 127.0.0.1, one after the other on each connection.

    FAULTS names what can befall the script number `at`, counted from 0 since `begin()`. What is `late` reaches Redis only at
    `settle()`, after the client has given up.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.redis_port = 0
        self.scripts = 0
        self._fault, self._at = "", 0
        self._late: list[bytes] = []
        self._lock = threading.Lock()
        self._connections: list[threading.Thread] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, fault: str = "", at: int = 0) -> None:
        """Count the scripts anew, and make this fault."""
        self.scripts = 0
        self._fault, self._at = fault, at

    @property
    def was_made(self) -> bool:
        """Whether the script came that the fault was for."""
        return self.scripts > self._at

    def settle(self) -> None:
        """Wait until all that the clients sent is passed on, what was late included; they have closed their connections."""
        gc.collect(1)  # redis-py's clients of clusters leave connections to that
        with socket.create_connection(("127.0.0.1", self.port)) as last:  # those before it are accepted by then
            _exchange(last, hiredis.pack_command(("PING",)))
        for connection in self._connections:
            connection.join()
        self._connections.clear()
        late, self._late = self._late, []
        for packed in late:
            with self._to_redis() as redis:
                _exchange(redis, packed)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _to_redis(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.redis_port))

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(threading.Thread(target=self._carry, args=(client,), daemon=True))
            self._connections[-1].start()

    def _carry(self, client: socket.socket) -> None:
        reader = hiredis.Reader()
        with suppress(OSError), client, self._to_redis() as redis:
            while received := client.recv(65536):
                reader.feed(received)
                while (words := reader.gets()) is not False:
                    if not self._pass(client, redis, words):
                        return

    def _pass(self, client: socket.socket, redis: socket.socket, words: list[bytes]) -> bool:
        """Pass a command on, or make the fault; returns False where the connection ends."""
        packed = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # its hint knows tuples of one word
        fault = self._next_fault() if words[0].upper() in SCRIPTS else ""
        if fault == "late":
            self._late.append(packed)
        if fault in ERRORS:
            client.sendall(b"-%b\r\n" % ERRORS[fault])
            return True
        reply = b"" if fault in ("lost", "cut", "late") else _exchange(redis, packed)
        if fault in ("", "answered"):
            client.sendall(reply)
        return fault not in ("cut", "cut after")

    def _next_fault(self) -> str:
        with self._lock:
            number, self.scripts = self.scripts, self.scripts + 1
        return self._fault if number == self._at else ""


# What Redis answers in place of running a script.
ERRORS = {
    "LOADING": b"LOADING Redis is loading the dataset in memory",
    "OOM": b"OOM command not allowed when used memory > 'maxmemory'.",
}

FAULTS = (
    "cut",  # the connection ends before the script reaches Redis
    "cut after",  # it ends when Redis has run the script, before the reply
    "lost",  # the script never reaches Redis, and nothing comes back
    "silent",  # Redis runs the script, and nothing comes back
    "late",  # the script reaches Redis when the client has given up
    *ERRORS,
)


def _exchange(redis: socket.socket, packed: bytes) -> bytes:
    """Send a command to Redis, and return the bytes of its reply."""
    redis.sendall(packed)
    reader, raw = hiredis.Reader(), b""
    while True:
        received = redis.recv(65536)
        if not received:
            raise ConnectionError
        raw += received
        reader.feed(received)
        if reader.gets() is not False:
            return raw
