"""The public keys of an identity provider (JWKS), from a file or a URL, kept up to date.

Nothing here runs in an event loop but `find`: `fetch` blocks, and belongs into a thread. Sources: RFC 7517 (JWKS), RFC 7518
sections 3.3 and 3.4, RFC 8037 (EdDSA), RFC 8725 section 3.1: a key has one algorithm, whatever a token says.
"""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener

import jwt
from jwt.algorithms import has_crypto

log = logging.getLogger("kvstore")

MAX_BYTES = 1024 * 1024  # of the document
MAX_KEYS = 64  # of one set: a token without `kid` is tried with each of its algorithm
MIN_RSA_BITS = 2048  # RFC 7518 section 3.3
FETCH_S = 5.0  # for the document to arrive
WAIT_S = 60.0  # between two fetches
MAX_AGE_S = 900.0  # of the keys: a key that was withdrawn is trusted for so long
PUBLIC = ("kty", "crv", "x", "y", "n", "e")  # the members of a key that count; a private part does not


class Key(NamedTuple):
    """A public key, and the one algorithm that it verifies."""

    kid: str | None
    algorithm: str
    key: Any


class InvalidKeys(ValueError):
    """The document holds no key that can be used; the message says why."""


def parse_jwks(text: bytes) -> tuple[Key, ...]:
    """Return the keys of a JWKS that verify RS256, ES256 or EdDSA, and skip the others; raises InvalidKeys."""
    try:
        members = json.loads(text)["keys"]
        keys = tuple(key for key in map(_parse_key, members) if key)[:MAX_KEYS]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InvalidKeys('it is no JWKS: {"keys":[…]}') from None
    if not keys:
        raise InvalidKeys("it has no public key for RS256, ES256 or EdDSA")
    return keys


def _parse_key(member: Any) -> Key | None:
    try:
        algorithm, *others = _ALGORITHMS[member["kty"], member.get("crv")]
        names_another = member.get("alg", algorithm) not in (algorithm, *others)
        if names_another or member.get("use", "sig") != "sig" or "verify" not in member.get("key_ops", ["verify"]):
            return None
        key = jwt.PyJWK.from_dict({name: member[name] for name in PUBLIC if name in member}, algorithm).key
        if algorithm == "RS256" and key.key_size < MIN_RSA_BITS:
            return None
        kid = member.get("kid")
        return Key(kid if isinstance(kid, str) else None, algorithm, key)
    except (jwt.PyJWTError, ValueError, TypeError, LookupError, AttributeError):
        return None


# The algorithm of a key, by its type and curve, and other names of it.
_ALGORITHMS: dict[tuple[Any, Any], tuple[str, ...]] = {
    ("RSA", None): ("RS256",),
    ("EC", "P-256"): ("ES256",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),  # RFC 9864
}


class KeySource:
    """The keys at a place, as they were last read. Many threads may use it; `version` grows when the keys change.

    Reads a file at once; raises OSError, or InvalidKeys.
    """

    def __init__(self, place: str) -> None:
        if not has_crypto:
            raise InvalidKeys("reading public keys needs cryptography; install it with: pip install 'kvstore[jwks]'")
        self._place = place
        self._keys: tuple[Key, ...] | None = None  # None until they were read for the first time
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._lock = threading.Lock()  # of who fetches
        self.version = 0
        if not self.is_remote:
            self._keys = parse_jwks(Path(place).read_bytes())
            self._fetched_at = monotonic()

    @property
    def is_remote(self) -> bool:
        """Whether the place is a URL."""
        return self._place.startswith(("http://", "https://"))

    @property
    def is_known(self) -> bool:
        """Whether the keys were read at least once."""
        return self._keys is not None

    @property
    def may_fetch(self) -> bool:
        """Whether the last attempt is long enough ago; True while somebody is fetching."""
        return self._lock.locked() or self._tried_at is None or monotonic() - self._tried_at >= WAIT_S

    def find(self, algorithm: object, kid: object) -> Iterator[Key]:
        """Yield the keys that a token with this header may be signed with."""
        for key in self._keys or ():
            if key.algorithm == algorithm and (kid is None or key.kid in (None, kid)):
                yield key

    def refresh(self) -> None:
        """Fetch keys that are too old, in a thread; nobody waits for it."""
        if self.is_known and monotonic() - self._fetched_at >= MAX_AGE_S and self.may_fetch and not self._lock.locked():
            threading.Thread(target=self.fetch, name="kvstore-jwks", daemon=True).start()

    def fetch(self) -> None:
        """Read the keys again, at most once in WAIT_S; keeps those that it has if that fails. Blocks for some seconds."""
        with self._lock:  # who comes while somebody fetches waits for that
            if self._tried_at is not None and monotonic() - self._tried_at < WAIT_S:
                return
            self._tried_at = monotonic()
            try:
                keys = parse_jwks(_download(self._place) if self.is_remote else Path(self._place).read_bytes())
            except (OSError, ValueError, HTTPException) as error:
                log.warning("the keys of KVSTORE_JWKS cannot be read: %s", error)
            else:
                self._fetched_at = monotonic()
                if keys != self._keys:
                    self._keys = keys
                    self.version += 1
            finally:
                self._tried_at = monotonic()


class _NoRedirects(HTTPRedirectHandler):
    """A redirect could lead from HTTPS to HTTP, or to a file."""

    def redirect_request(self, *_: object) -> None:
        return None


class _Connecting(HTTPSHandler, HTTPHandler):
    """Knows the socket, which has a time-out for each read only: cut() ends a response that never comes to an end."""

    _socket: socket.socket | None = None
    is_cut = False

    def do_open(self, http_class: Any, *arguments: Any, **options: Any) -> Any:
        def prepare(*arguments: Any, **options: Any) -> Any:
            connection = http_class(*arguments, **options)
            connect = connection.connect

            def connect_and_tell() -> None:
                connect()
                self._socket = connection.sock
                if self.is_cut:
                    raise TimeoutError("it was connected too late")

            connection.connect = connect_and_tell
            return connection

        return super().do_open(prepare, *arguments, **options)

    def cut(self) -> None:
        self.is_cut = True
        if self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _download(url: str) -> bytes:
    """Return what is at a URL; raises OSError, HTTPException, or InvalidKeys if it is too large or too slow."""
    found = bytearray()
    connecting = _Connecting()
    timer = threading.Timer(FETCH_S, connecting.cut)
    timer.daemon = True
    timer.start()
    try:
        with build_opener(_NoRedirects, connecting).open(url, timeout=FETCH_S) as response:
            while len(found) <= MAX_BYTES and (part := response.read1(64 * 1024)):
                found += part
    finally:
        timer.cancel()
    if len(found) > MAX_BYTES or connecting.is_cut:
        raise InvalidKeys("it is too large, or arrives too slowly")
    return bytes(found)
