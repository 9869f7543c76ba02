"""Tokens: JWTs (RFC 7519), verified as RFC 8725 says, and issued with the first secret.

The algorithm belongs to the key: HS256 to a secret, and to a public key the one that jwks.py gives it. A token only chooses
among the keys by `alg` and `kid`; nothing else of its header counts, and `none` is the algorithm of no key.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from time import time
from typing import Any

import jwt

from kvstore.access.jwks import Key, KeySource
from kvstore.access.principal import MAX_TOKEN_BYTES, IssuedToken, Principal, UnknownKey
from kvstore.core.errors import Unauthorized
from kvstore.core.settings import Settings

MAX_CACHED = 4096  # verified tokens that are known again
MAX_CACHED_BYTES = 2 * 1024  # of a token that is: with its claims, all of them take at most some 50 MiB

_OPTIONS: Any = {"verify_iat": False}  # it decides nothing, and the clock of who issues tokens may be ahead of ours


def invalid_token(detail: str) -> Unauthorized:
    """Return the problem of a token that is refused (RFC 6750 section 3.1)."""
    return Unauthorized(detail, error="invalid_token")


class TokenVerifier:
    """Verifies tokens with some secrets and the keys of an identity provider. A token that comes again costs a look-up."""

    def __init__(self, secrets: Sequence[bytes], keys: KeySource | None, audience: str) -> None:
        self.keys = keys
        self._secrets = [Key(None, "HS256", secret) for secret in secrets]
        self._audience = audience or None
        self._cached = lru_cache(maxsize=MAX_CACHED)(self._verify)
        self._version = 0  # of the keys that the cached tokens were verified with

    def principal(self, token: str) -> Principal:
        """Return whose token this is; raises Unauthorized, or UnknownKey if the keys should be fetched first."""
        if self.keys:
            self.keys.refresh()
            if self.keys.version != self._version:
                self._version = self.keys.version
                self._cached.cache_clear()
        if len(token) <= MAX_CACHED_BYTES:
            principal = self._cached(token)
        elif len(token) <= MAX_TOKEN_BYTES:
            principal = self._verify(token)
        else:
            raise invalid_token(f"the token has more than {MAX_TOKEN_BYTES:,} bytes; put less into it")
        if principal.expires_at_s is not None and principal.expires_at_s <= time():
            raise invalid_token("the token has expired; get a new one")
        return principal

    def _verify(self, token: str) -> Principal:
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:  # RFC 7515 section 4.1.11: we know no extension
                raise jwt.InvalidTokenError
            claims = self._claims(token, header)
            exp = claims.get("exp")
            return Principal(claims, None if exp is None else float(int(exp)))
        except jwt.ExpiredSignatureError:
            raise invalid_token("the token has expired; get a new one") from None
        except jwt.ImmatureSignatureError:
            raise invalid_token("the token is not valid yet (nbf); use it later") from None
        except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError):
            raise invalid_token("the token is for another audience (aud) than KVSTORE_AUDIENCE; get one for it") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise invalid_token("the token is not one that this service accepts; get a new one") from None

    def _claims(self, token: str, header: Mapping[str, Any]) -> Mapping[str, Any]:
        for key in self._candidates(header):
            try:
                return jwt.decode(token, key.key, algorithms=[key.algorithm], audience=self._audience, options=_OPTIONS)
            except jwt.InvalidSignatureError:
                continue
        if self.keys and header.get("alg") in ("RS256", "ES256", "EdDSA"):
            raise UnknownKey
        raise jwt.InvalidSignatureError

    def _candidates(self, header: Mapping[str, Any]) -> Iterator[Key]:
        """Yield the keys that may have signed a token, each with its own algorithm."""
        if header.get("alg") == "HS256":
            yield from self._secrets
        elif self.keys:
            yield from self.keys.find(header.get("alg"), header.get("kid"))


def issue(settings: Settings, *, ttl_s: int, **claims: Any) -> IssuedToken:
    """Return a token that is valid for `ttl_s`, signed with the first secret. Claims that are empty are left out."""
    now = int(time())
    given = {name: value for name, value in claims.items() if value}
    times = {"iat": now, "exp": now + ttl_s}
    audience = {"aud": settings.audience} if settings.audience else {}
    token = jwt.encode(given | audience | times, settings.secrets[0], algorithm="HS256")
    return IssuedToken(token, claims.get("sub") or "", now + ttl_s)
