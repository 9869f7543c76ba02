"""REDIS_URL: which Redis to use, how to reach it, and as which user.

    redis://[user:password@]host[:port][/db]                             one Redis
    unix:///path/to/socket[?db=0]                                        one Redis
    redis+sentinel://[user:password@]host[:port],host…/name[/db]         the primary that these Sentinels call `name`
    redis+cluster://[user:password@]host[:port],host…                    a Redis Cluster
    fake://                                                              none: fakeredis, in the memory of this process

`rediss` instead of `redis` means TLS. `?ssl_cert_reqs=none` and `?ssl_ca_certs=FILE` mean the same as for redis-py.
"""

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

PORT = 6379
SENTINEL_PORT = 26379


class InvalidRedisURL(ValueError):
    """The URL has none of the forms above. The message says what it must be, without the URL, which may hold a password."""


class Address(NamedTuple):
    """The address of a Redis.

    `kind` is single, sentinel, cluster or fake. `nodes` are (host, port). `path` is the path of a unix socket. `ca_file` None
    means the certificates of the system.
    """

    kind: str
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    user: str = ""
    password: str = ""
    database: int = 0
    primary: str = ""
    tls: bool = False
    verify_tls: bool = True
    ca_file: str | None = None

    def __repr__(self) -> str:
        nodes = self.path or ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"{self.kind} Redis at {nodes}" + (f", primary {self.primary}" if self.primary else "")


def parse_redis_url(url: str, *, verify_tls: bool = True) -> Address:
    """Parse a URL; raises InvalidRedisURL. `verify_tls` applies if the URL does not say."""
    parts = urlsplit(url)
    transport, _, topology = parts.scheme.partition("+")
    if parts.scheme == "fake":
        return Address("fake")
    if parts.scheme not in ("unix", "redis", "rediss") and (
        transport not in ("redis", "rediss") or topology not in ("sentinel", "cluster")
    ):
        raise InvalidRedisURL("a URL that starts with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    names = [name for name in parts.path.split("/") if name] if transport != "unix" else []
    primary = unquote(names.pop(0)) if topology == "sentinel" and names else ""
    database = query.get("db") or (names[0] if names else "0")
    if not database.isdigit() or (topology == "sentinel" and not primary) or (transport == "unix" and not parts.path):
        raise InvalidRedisURL("a URL whose database is a number, with the primary's name for Sentinel and a path for unix://")
    port = SENTINEL_PORT if topology == "sentinel" else PORT
    return Address(
        kind=topology or "single",
        nodes=tuple(_node(node, port) for node in hosts.split(",")) if transport != "unix" else (),
        path=unquote(parts.path) if transport == "unix" else "",
        user=unquote(user) or query.get("username", ""),
        password=unquote(password) or query.get("password", ""),
        database=int(database),
        primary=primary,
        tls=transport == "rediss",
        verify_tls=query.get("ssl_cert_reqs", "required" if verify_tls else "none") != "none",
        ca_file=query.get("ssl_ca_certs"),
    )


def _node(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host = parts.hostname or "localhost"
        host.encode("idna")  # as it will be looked up
        return host, parts.port or default_port
    except ValueError:
        raise InvalidRedisURL("a URL whose hosts are names or addresses, and whose ports are numbers up to 65535") from None
