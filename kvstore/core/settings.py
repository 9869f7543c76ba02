"""Settings: one table of name, type, default and meaning, read from a mapping of environment variables.

This module does not read `os.environ`. An application that embeds the service decides where settings come from.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvstore.core.numbers import parse_duration_s, parse_number
from kvstore.core.redis_url import parse_redis_url

YEAR_S = 31_536_000
MAX_TTL_S = 100 * YEAR_S  # the largest value of KVSTORE_MAX_TTL
LOCAL = "http://localhost:* http://127.0.0.1:*"  # pages that a developer serves on this machine


class InvalidSetting(ValueError):
    """A setting has an invalid value. The message is one line that names the setting."""


def _number(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        number = parse_number(text, low, high)
        if number is None:
            raise ValueError(f"a whole number from {low} to {high}")
        return number

    return convert


def _redis_url(text: str) -> str:
    parse_redis_url(text)
    return text


@dataclass(frozen=True, slots=True)
class Origins:
    """Origins of web pages (RFC 6454). A pattern is an origin, an origin with `:*` for any port, or `*` for every origin."""

    patterns: tuple[str, ...]

    def allow(self, origin: str) -> bool:
        """Return whether an origin, as a browser spells it, matches a pattern."""
        return any(
            pattern in ("*", origin) or (pattern.endswith(":*") and _PORT.sub("", origin) == pattern[:-2])
            for pattern in self.patterns
        )

    def name(self, origin: str) -> bool:
        """Return whether this very origin is listed: no pattern, and not `null`, which every sandbox has."""
        return origin != "null" and not origin.endswith("*") and origin in self.patterns


_PORT = re.compile(r":[0-9]{1,5}\Z")
_ORIGIN = re.compile(r"\*|null|https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?:[0-9]{1,5}|\*))?")


def _origins(text: str) -> Origins:
    patterns = [] if text == "none" else text.lower().split()
    if not all(map(_ORIGIN.fullmatch, patterns)):
        raise ValueError("origins such as https://example.org or http://localhost:*, * for all, or none")
    return Origins(tuple(patterns))


LOCAL_ORIGINS = _origins(LOCAL)


_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_NAME = re.compile(r"[a-z0-9._-]{1,255}|\[[0-9a-f:.]+\]")


def _hosts(text: str) -> frozenset[str]:
    names = text.lower().split()
    if not all(map(_NAME.fullmatch, names)):
        raise ValueError("names of hosts without a port, such as app.example, separated by spaces")
    return frozenset((*_LOCAL_NAMES, *names))


LOCAL_HOSTS = _hosts("")


_MEMORY = re.compile(r"([0-9]{1,15})(kb|mb|gb)?", re.IGNORECASE)
_MEMORY_UNITS = {"": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}
MIN_MEMORY_BYTES = 8 * 1024**2  # an empty server has some 2 MiB


def _memory(text: str) -> int:
    found = _MEMORY.fullmatch(text)
    size = int(found[1]) * _MEMORY_UNITS[(found[2] or "").lower()] if found else 0
    if size < MIN_MEMORY_BYTES:
        raise ValueError("a number of bytes, at least 8mb, such as 512mb or 2gb")
    return size


MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: as long as the hash of HS256


def _secrets(text: str) -> tuple[bytes, ...]:
    secrets = tuple(secret.encode() for secret in text.split())
    if min(map(len, secrets)) < MIN_SECRET_BYTES:
        raise ValueError(f"secrets of at least {MIN_SECRET_BYTES} bytes, separated by spaces")
    return secrets


def _ttl_s(text: str) -> int:
    ttl_s = parse_duration_s(text)
    if ttl_s is None or not 1 <= ttl_s <= MAX_TTL_S:
        raise ValueError("a time such as 12h or 30d")
    return ttl_s


class Rate(NamedTuple):
    """So many requests in each window of so many seconds."""

    quota: int
    window_s: int


_RATE = re.compile(r"([1-9][0-9]{0,8})/([smh])")


def _rate(text: str) -> Rate:
    found = _RATE.fullmatch(text)
    if not found:
        raise ValueError("a number of requests per second, minute or hour, such as 200/s, 1000/m or 5000/h")
    return Rate(int(found[1]), {"s": 1, "m": 60, "h": 3600}[found[2]])


def _one_of(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return convert


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table: environment variable, default as text, conversion, meaning."""

    name: str
    default: str
    convert: Callable[[str], Any]
    meaning: str


SETTINGS = (
    Setting("HOST", "127.0.0.1", lambda text: text.strip("[]"), "address to listen on; `0.0.0.0` for all"),
    Setting("PORT", "8000", _number(0, 65535), "port to listen on"),
    Setting("WEB_CONCURRENCY", "", _number(1, 64), "worker processes; empty: one per core, at most 4"),
    Setting("REDIS_URL", "", _redis_url, "Redis that stores the documents; empty: the embedded server"),
    Setting("KVSTORE_DATA", "data", str, "directory in which the embedded server keeps its data"),
    Setting("KVSTORE_MAXMEMORY", "", _memory, "memory of the embedded server, such as `512mb`; empty: half of the machine's"),
    Setting(
        "KVSTORE_FSYNC",
        "everysec",
        _one_of("everysec", "always"),
        "when the embedded server flushes its file to disk: `everysec`, or `always` before it answers",
    ),
    Setting("KVSTORE_REPLICAS", "0", _number(0, 100), "replicas of Redis that must have a write before it is acknowledged"),
    Setting(
        "KVSTORE_ORIGINS", LOCAL, _origins, "origins whose web pages may use it, separated by spaces; `*` for all, or `none`"
    ),
    Setting("KVSTORE_HOSTS", "", _hosts, "names besides `localhost` for which it answers on loopback, separated by spaces"),
    Setting("KVSTORE_RULES", "", str, "file with the access rules; empty: with tokens, only the role `admin` has access"),
    Setting("KVSTORE_MAX_TTL", str(YEAR_S), _number(1, MAX_TTL_S), "largest TTL that a client may request, in seconds"),
    Setting("KVSTORE_MAX_STREAMS", "10000", _number(0, 1_000_000), "largest number of open streams, in each process"),
    Setting("KVSTORE_MAX_CONNECTIONS", "16384", _number(1, 1_000_000), "largest number of connections, in each process"),
    Setting("KVSTORE_LOG_LENGTH", "1000", _number(1, 10_000_000), "changes kept in each namespace's change log"),
    Setting(
        "KVSTORE_SECRET", "", _secrets, "secret that signs tokens, at least 32 bytes; more, separated by spaces, only verify"
    ),
    Setting("KVSTORE_JWKS", "", str, "file or URL of the public keys (JWKS) with which an identity provider signs tokens"),
    Setting("KVSTORE_AUDIENCE", "", str, "the claim `aud` that every token must have; empty: tokens must have none"),
    Setting("KVSTORE_OPEN", "", _one_of("1"), "`1`: everyone may do everything, although there is a secret"),
    Setting(
        "KVSTORE_VISITORS", "", _ttl_s, "how long a token of `POST /_/visitors` is valid, such as `30d`; empty: it gives none"
    ),
    Setting("KVSTORE_RATE", "", _rate, "requests that each client may send, such as `200/s` or `1000/m`; empty: any number"),
    Setting(
        "KVSTORE_CLIENT_STREAMS", "", _number(1, 1_000_000), "largest number of open streams of each client; empty: any number"
    ),
    Setting("KVSTORE_PROXIES", "0", _number(0, 16), "trusted proxies in front: so many of `X-Forwarded-For` are theirs"),
    Setting("KVSTORE_EXPRESS", "on", _one_of("on", "off"), "`off`: plain requests are handled as all others are"),
    Setting("KVSTORE_LOG", "none", _one_of("none", "text", "json"), "a line for each request: `text`, `json` or `none`"),
)

_CONFIDENTIAL = ("REDIS_URL", "KVSTORE_SECRET", "KVSTORE_JWKS")  # never printed: a URL may hold a password


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings, converted. An empty `redis_url` means the embedded server. `workers` 0 means one per core, at most 4."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 0
    redis_url: str = ""
    data: str = "data"
    max_memory_bytes: int = 0  # of the embedded server; 0: half of what this process may use
    fsync: str = "everysec"  # of the embedded server
    replicas: int = 0  # that must have a write before it is acknowledged
    origins: Origins = LOCAL_ORIGINS
    hosts: frozenset[str] = LOCAL_HOSTS  # in lower case and without a port
    rules: str = ""  # a file; "" for none
    max_ttl_s: int = YEAR_S
    default_ttl_s: int = YEAR_S  # of a document written without a TTL: one year, or max_ttl_s if that is less
    log_length: int = 1000
    max_streams: int = 10_000
    max_connections: int = 16_384
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    jwks: str = field(default="", repr=False)  # a file or a URL
    audience: str = ""
    is_open: bool = True  # everyone may do everything
    visitors_ttl_s: int = 0  # of a visitor's token; 0: visitors get none
    rate: Rate | None = None  # of each client
    client_streams: int = 0  # of each client; 0: any number
    proxies: int = 0  # trusted ones in front
    express: bool = True  # plain requests take the express lane
    log: str = "none"  # of requests
    disk_is_lost: bool = False  # a Heroku dyno loses its disk when it restarts
    verify_tls: bool = True  # Heroku's Redis has a self-signed certificate


def is_replicated(redis_url: str) -> bool:
    """Return whether writes can wait for replicas there."""
    return bool(redis_url) and parse_redis_url(redis_url).kind != "fake"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings from `environ`; raises InvalidSetting."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.name, "").strip() or setting.default
        try:
            values[setting.name] = setting.convert(text) if text else ""
        except ValueError as rule:
            shown = "the present value" if setting.name in _CONFIDENTIAL else repr(text)
            raise InvalidSetting(f"{setting.name} must be {rule}, not {shown}") from None
    if values["KVSTORE_VISITORS"] and not values["KVSTORE_SECRET"]:
        raise InvalidSetting("KVSTORE_VISITORS needs KVSTORE_SECRET, which signs the tokens")
    if values["KVSTORE_REPLICAS"] and not is_replicated(values["REDIS_URL"]):
        raise InvalidSetting("KVSTORE_REPLICAS needs a REDIS_URL of a Redis that has replicas")
    heroku = bool(environ.get("DYNO"))
    return Settings(
        host=values["HOST"],
        port=values["PORT"],
        workers=values["WEB_CONCURRENCY"] or 0,
        redis_url=values["REDIS_URL"],
        data=values["KVSTORE_DATA"],
        max_memory_bytes=values["KVSTORE_MAXMEMORY"] or 0,
        fsync=values["KVSTORE_FSYNC"],
        replicas=values["KVSTORE_REPLICAS"],
        origins=values["KVSTORE_ORIGINS"],
        hosts=values["KVSTORE_HOSTS"] or LOCAL_HOSTS,
        rules=values["KVSTORE_RULES"],
        max_ttl_s=values["KVSTORE_MAX_TTL"],
        default_ttl_s=min(YEAR_S, values["KVSTORE_MAX_TTL"]),
        log_length=values["KVSTORE_LOG_LENGTH"],
        max_streams=values["KVSTORE_MAX_STREAMS"],
        max_connections=values["KVSTORE_MAX_CONNECTIONS"],
        secrets=values["KVSTORE_SECRET"] or (),
        jwks=values["KVSTORE_JWKS"],
        audience=values["KVSTORE_AUDIENCE"],
        is_open=bool(values["KVSTORE_OPEN"]) or not (values["KVSTORE_SECRET"] or values["KVSTORE_JWKS"]),
        visitors_ttl_s=values["KVSTORE_VISITORS"] or 0,
        rate=values["KVSTORE_RATE"] or None,
        client_streams=values["KVSTORE_CLIENT_STREAMS"] or 0,
        proxies=values["KVSTORE_PROXIES"],
        express=values["KVSTORE_EXPRESS"] == "on",
        log=values["KVSTORE_LOG"],
        disk_is_lost=heroku,
        verify_tls=not heroku,
    )
