"""Tokens good and bad, as a table, and the keys that sign them."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

SECRET = "a-secret-of-the-tests-with-32-bytes-or-more"
OLD_SECRET = "an-older-secret-of-the-tests-that-still-verifies"
ADA = {"sub": "ada"}


@cache
def private_key(kind: str) -> Any:
    """A private key, the same for all tests of a process."""
    if kind == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if kind == "short" else 2048)


def public_pem(kind: str) -> bytes:
    """A public key as PEM."""
    key = private_key(kind).public_key()
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem


def jwk(kind: str, **members: Any) -> dict[str, Any]:
    """A public key as a member of a JWKS."""
    algorithm = jwt.get_algorithm_by_name("RS256" if kind in ("short", "other") else kind)
    public: dict[str, Any] = json.loads(algorithm.to_jwk(private_key(kind).public_key()))
    return public | members


def jwks(*kinds: str) -> str:
    """A JWKS; each key has its kind as its `kid`."""
    return json.dumps({"keys": [jwk(kind, kid=kind) for kind in kinds]})


def signed(key: Any = SECRET, algorithm: str = "HS256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token of Ada's, with these claims as well."""
    return jwt.encode(ADA | claims, key, algorithm=algorithm, headers=header)


def by_hand(header: Any, claims: Any, key: bytes = SECRET.encode()) -> str:
    """A token with any header, signed as HS256 does whatever the header says."""
    signing = b".".join(encoded(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, claims))
    return (signing + b"." + encoded(hmac.digest(key, signing, hashlib.sha256))).decode()


def encoded(part: bytes) -> bytes:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def in_s(seconds: float) -> int:
    """A time from now."""
    return int(time.time() + seconds)


HS256 = {"alg": "HS256", "typ": "JWT"}

# What is accepted by a service that knows both secrets.
GOOD: dict[str, Callable[[], str]] = {
    "first secret": signed,
    "older secret": lambda: signed(OLD_SECRET),
    "expires later": lambda: signed(exp=in_s(60)),
    "valid since a while": lambda: signed(nbf=in_s(-5)),
    "issued by a clock ahead": lambda: signed(iat=in_s(30)),
    "a kid that says nothing": lambda: signed(header={"kid": "../../etc/passwd"}),
}

# What it refuses, whoever sends it. None of these may be taken for a token of Ada's.
BAD: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "no token": lambda: "secret",
    "three dots": lambda: "...",
    "not base64": lambda: "{}.{}.{}",
    "bad signature": lambda: signed()[:-6] + "AAAAAA",
    "no signature": lambda: signed().rpartition(".")[0] + ".",
    "claims of another": lambda: ".".join([signed().split(".")[0], signed(sub="bob").split(".")[1], signed().split(".")[2]]),
    "expired": lambda: signed(exp=in_s(-1)),
    "not yet": lambda: signed(nbf=in_s(60)),
    "wrong secret": lambda: signed("another-secret-that-nobody-has-told-the-service"),
    "an audience, though none is asked for": lambda: signed(aud="elsewhere"),
    "alg none": lambda: jwt.encode(ADA, "", algorithm="none"),
    "alg none, signed": lambda: by_hand({"alg": "none"}, ADA),
    "alg None": lambda: by_hand({"alg": "None"}, ADA),
    "no alg": lambda: by_hand({"typ": "JWT"}, ADA),
    "alg is a list": lambda: by_hand({"alg": ["HS256"]}, ADA),
    "HS512": lambda: jwt.encode(ADA, SECRET * 2, algorithm="HS512"),
    "HS256 with an RSA public key": lambda: by_hand(HS256, ADA, public_pem("RS256")),
    "RS256 with a key of its own": lambda: signed(private_key("other"), "RS256", {"jwk": jwk("other")}),
    "RS256 with a URL of its own": lambda: signed(private_key("other"), "RS256", {"jku": "http://127.0.0.1:1/keys"}),
    "kid is a number": lambda: by_hand(HS256 | {"kid": 7}, ADA),
    "kid is a path": lambda: signed("\0" * 32, header={"kid": "/dev/null"}),
    "an extension that must be understood": lambda: by_hand(HS256 | {"crit": ["exp"]}, ADA),
    "claims not signed": lambda: by_hand(HS256 | {"b64": False, "crit": ["b64"]}, ADA),
    "claims are a list": lambda: by_hand(HS256, [ADA]),
    "claims are no JSON": lambda: by_hand(HS256, b"ada"),
    "claims are deep": lambda: by_hand(HS256, b"[" * 5000),
    "header is deep": lambda: by_hand(b'{"alg":' + b"[" * 5000, ADA),
    "header is no UTF-8": lambda: by_hand(b"\xff\xfe", ADA),
    "sub is a number": lambda: signed(sub=7),
    "exp is a word": lambda: by_hand(HS256, ADA | {"exp": "soon"}),
    "exp is null": lambda: by_hand(HS256, ADA | {"exp": None}),
    "exp is infinite": lambda: by_hand(HS256, b'{"sub":"ada","exp":Infinity}'),
    "exp is long": lambda: by_hand(HS256, b'{"sub":"ada","exp":%b}' % (b"9" * 5000)),
    "large": lambda: signed(more="x" * 7000),
}
