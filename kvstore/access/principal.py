"""Who asks: the claims of a token (RFC 7519), or what an application says of its own client."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple


class Principal(NamedTuple):
    """Claims that were verified. `expires_at_s` is when they end, in s since the epoch; None where they do not."""

    claims: Mapping[str, Any]
    expires_at_s: float | None = None

    @property
    def subject(self) -> str | None:
        """The claim `sub`, None where it is no string."""
        subject = self.claims.get("sub")
        return subject if isinstance(subject, str) else None


class UnknownKey(Exception):
    """No key that is here has signed the token: fetch the keys, and try again."""


class IssuedToken(NamedTuple):
    """A token that was made, for whom, and when it expires, in s since the epoch."""

    token: str
    subject: str
    expires_at_s: int


Claims = Mapping[str, Any]


def as_principal(claims: Claims | None) -> Principal | None:
    """Return the principal with some claims, the same one for the same claims if it was asked for lately; None for None.

    A subject that is an integer, as the keys of databases are, becomes a string.
    """
    if claims is None:
        return None
    at = repr(claims)
    given, principal = _principals.get(at, ({}, None))
    if principal is None or given != claims:
        if len(_principals) >= MAX_PRINCIPALS:
            _principals.clear()
        given = deepcopy(dict(claims))  # the application may change what it has returned
        subject, expires_at_s = given.get("sub"), given.get("exp")
        named = {"sub": str(subject)} if isinstance(subject, int) and not isinstance(subject, bool) else {}
        principal = Principal(given | named, expires_at_s if isinstance(expires_at_s, int | float) else None)
        if len(at) <= MAX_KEPT_CHARACTERS:
            _principals[at] = given, principal
    return principal


_principals: dict[str, tuple[dict[str, Any], Principal]] = {}  # with the claims as they were
MAX_TOKEN_BYTES = 8 * 1024  # proxies allow no longer header fields
MAX_PRINCIPALS = 512
MAX_KEPT_CHARACTERS = 4096  # of claims, as text
