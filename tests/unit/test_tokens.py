"""Which tokens are accepted (RFC 7519, RFC 8725), what a second look at one costs, and keys that change."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.access import jwks as jwks_module
from kvstore.access.jwks import InvalidKeys, KeySource, parse_jwks
from kvstore.access.principal import MAX_TOKEN_BYTES, UnknownKey
from kvstore.access.tokens import TokenVerifier, issue
from kvstore.core.errors import Unauthorized
from kvstore.core.settings import InvalidSetting, Settings, read_settings
from tests.support.providers import Provider
from tests.support.tokens import BAD, GOOD, HS256, OLD_SECRET, SECRET, by_hand, in_s, jwk, jwks, private_key, public_pem, signed

SECRETS = (SECRET.encode(), OLD_SECRET.encode())


@pytest.fixture
def verifier() -> TokenVerifier:
    return TokenVerifier(SECRETS, None, "")


@pytest.mark.parametrize("token", GOOD.values(), ids=GOOD.keys())
def test_a_good_token(verifier: TokenVerifier, token: Callable[[], str]) -> None:
    """It says whose it is, the first time and from then on."""
    text = token()
    for _ in range(2):
        assert verifier.principal(text).subject == "ada"


@pytest.mark.parametrize("token", BAD.values(), ids=BAD.keys())
def test_a_bad_token(verifier: TokenVerifier, token: Callable[[], str]) -> None:
    """It is refused, the first time and from then on, and the response says so as RFC 6750 does."""
    text = token()
    for _ in range(2):
        with pytest.raises(Unauthorized) as refused:
            verifier.principal(text)
        assert refused.value.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        assert not text or text not in refused.value.detail


def test_a_token_that_is_too_long_is_not_read(verifier: TokenVerifier) -> None:
    """One of 100 KB takes no longer than a look at its length, though its signature is right."""
    text = signed(more="x" * 100_000)
    assert len(text) > MAX_TOKEN_BYTES
    began = time.thread_time()
    for _ in range(1000):
        with pytest.raises(Unauthorized, match="bytes"):
            verifier.principal(text)
    assert time.thread_time() - began < 0.5


def test_a_token_ends_while_it_is_cached(verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused from the second on in which it expires."""
    text = signed(exp=in_s(60))
    assert verifier.principal(text).expires_at_s
    monkeypatch.setattr("kvstore.access.tokens.time", lambda: time.time() + 61)
    with pytest.raises(Unauthorized, match="expired"):
        verifier.principal(text)


def test_a_token_that_comes_again_costs_little(verifier: TokenVerifier) -> None:
    """Less than 5 µs, which is about 0.2 µs on an idle machine."""
    text = signed(exp=in_s(600))
    verifier.principal(text)
    best = 1.0
    for _ in range(20):
        began = time.thread_time()
        for _ in range(1000):
            verifier.principal(text)
        best = min(best, (time.thread_time() - began) / 1000)
    assert best < 5e-6


AUDIENCES = [
    ("app", True),
    (["other", "app"], True),
    ("other", False),
    (["other"], False),
    ([], False),
    (None, False),
    (7, False),
]


@pytest.mark.parametrize(("aud", "is_accepted"), AUDIENCES)
def test_an_audience(aud: Any, is_accepted: bool) -> None:
    """A service with one accepts only tokens that name it."""
    verifier = TokenVerifier(SECRETS, None, "app")
    text = by_hand(HS256, {"sub": "ada"} | ({} if aud is None else {"aud": aud}))
    if is_accepted:
        assert verifier.principal(text).subject == "ada"
    else:
        with pytest.raises(Unauthorized):
            verifier.principal(text)


def test_an_issued_token() -> None:
    """It is signed with the first secret, and has the audience; claims without a value are left out."""
    settings = Settings(secrets=SECRETS, audience="app")
    token, _, expires_at_s = issue(settings, ttl_s=90, sub="ada", roles=[])
    principal = TokenVerifier(SECRETS[:1], None, "app").principal(token)
    assert set(principal.claims) == {"sub", "aud", "iat", "exp"}
    assert principal.expires_at_s == expires_at_s
    assert abs(expires_at_s - time.time() - 90) < 30


# --- Public keys ------------------------------------------------------------------------------------------------------------

KINDS = ("RS256", "ES256", "EdDSA")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(*KINDS))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_public_key(key_file: Path, kind: str) -> None:
    """With its kid or without, and under no other algorithm."""
    verifier = TokenVerifier((), KeySource(str(key_file)), "")
    for header in ({"kid": kind}, None):
        assert verifier.principal(signed(private_key(kind), kind, header)).subject == "ada"
    with pytest.raises(UnknownKey):
        verifier.principal(signed(private_key(kind), kind, {"kid": "another"}))
    with pytest.raises(Unauthorized):
        verifier.principal(by_hand(HS256 | {"kid": kind}, {"sub": "ada"}, public_pem(kind)))
    with pytest.raises(Unauthorized):
        verifier.principal(signed(SECRET, header={"kid": kind}))  # there are no secrets


def test_a_key_has_one_algorithm(key_file: Path) -> None:
    """A signature that is right, made with another algorithm than the key's, is refused."""
    verifier = TokenVerifier((), KeySource(str(key_file)), "")
    for algorithm in ("RS512", "PS256"):
        with pytest.raises(Unauthorized):
            verifier.principal(signed(private_key("RS256"), algorithm, {"kid": "RS256"}))


USELESS: list[Any] = [
    jwk("short"),
    jwk("RS256", alg="RS512"),
    jwk("RS256", alg="HS256"),
    jwk("RS256", use="enc"),
    jwk("RS256", key_ops=["encrypt"]),
    jwk("ES256", crv="P-384"),
    {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"},
    {"kty": "RSA", "n": "AQAB", "e": "!"},
    {"kty": ["RSA"]},
    "RSA",
    None,
]


@pytest.mark.parametrize("member", USELESS)
def test_a_key_that_cannot_be_used_is_skipped(member: Any) -> None:
    """Another one beside it is."""
    with pytest.raises(InvalidKeys):
        parse_jwks(json.dumps({"keys": [member]}).encode())
    [key] = parse_jwks(json.dumps({"keys": [member, jwk("ES256", kid="good")]}).encode())
    assert key[:2] == ("good", "ES256")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":[1]}', b"[" * 100_000, b"\xff"])
def test_what_is_no_jwks(text: bytes) -> None:
    with pytest.raises(InvalidKeys):
        parse_jwks(text)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as found:
        yield found


def test_keys_from_a_url(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are fetched for an unknown kid, once a minute; a key that was withdrawn ends the tokens that are cached."""
    now = [1000.0]
    monkeypatch.setattr(jwks_module, "monotonic", lambda: now[0])
    keys = KeySource(provider.url)
    verifier = TokenVerifier((), keys, "")
    old = signed(private_key("RS256"), "RS256", {"kid": "RS256"})
    new = signed(private_key("ES256"), "ES256", {"kid": "ES256"})
    assert provider.asked == 0
    assert not keys.is_known
    with pytest.raises(UnknownKey):
        verifier.principal(old)
    assert keys.may_fetch
    keys.fetch()
    assert verifier.principal(old).subject == "ada"
    provider.keys = jwks("ES256")
    for _ in range(5):
        assert not keys.may_fetch
        keys.fetch()
        with pytest.raises(UnknownKey):
            verifier.principal(new)
    assert provider.asked == 1
    now[0] += 61
    assert keys.may_fetch
    keys.fetch()
    assert provider.asked == 2
    assert verifier.principal(new).subject == "ada"
    with pytest.raises(UnknownKey):
        verifier.principal(old)


@pytest.mark.few
@pytest.mark.parametrize("trouble", ["error", "redirect", "no keys", "too large", "no HTTP", "gone"])
def test_keys_that_cannot_be_fetched(provider: Provider, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Those that are there stay."""
    now = [1000.0]
    monkeypatch.setattr(jwks_module, "monotonic", lambda: now[0])
    keys = KeySource(provider.url)
    keys.fetch()
    provider.status = {"error": 500, "redirect": 302, "no HTTP": 0}.get(trouble, 200)
    provider.keys = {"no keys": "{}", "too large": jwks("ES256") + " " * jwks_module.MAX_BYTES}.get(trouble, jwks("ES256"))
    if trouble == "gone":
        provider.stop()
    now[0] += 61
    keys.fetch()
    assert list(keys.find("RS256", "RS256"))
    assert not list(keys.find("ES256", "ES256"))


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_keys_that_come_to_no_end(provider: Provider, monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    """Who needs them waits for so long in all, however often a byte of the header or the body comes."""
    monkeypatch.setattr(jwks_module, "FETCH_S", 0.3)
    provider.trickles = part
    begun = time.monotonic()
    KeySource(provider.url).fetch()
    assert time.monotonic() - begun < 10  # half of the time that it comes for


def test_keys_are_fetched_once_for_all_who_wait(provider: Provider) -> None:
    """Whoever comes while they are fetched gets the same."""
    keys = KeySource(provider.url)
    threads = [threading.Thread(target=keys.fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.asked == 1
    assert keys.is_known


def test_old_keys_are_fetched_beside(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it, and a withdrawn key is not trusted for longer than the keys' age."""
    now = [1000.0]
    monkeypatch.setattr(jwks_module, "monotonic", lambda: now[0])
    keys = KeySource(provider.url)
    verifier = TokenVerifier((), keys, "")
    keys.fetch()
    old = signed(private_key("RS256"), "RS256", {"kid": "RS256"})
    provider.keys = jwks("ES256")
    now[0] += jwks_module.MAX_AGE_S
    assert verifier.principal(old).subject == "ada"
    for thread in threading.enumerate():
        if thread.name == "kvstore-jwks":
            thread.join(10)
    with pytest.raises(UnknownKey):
        verifier.principal(old)


# --- Settings ---------------------------------------------------------------------------------------------------------------

MODES: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"KVSTORE_SECRET": ""}, True),
    ({"KVSTORE_SECRET": SECRET}, False),
    ({"KVSTORE_JWKS": "https://issuer.example/keys"}, False),
    ({"KVSTORE_SECRET": SECRET, "KVSTORE_OPEN": "1"}, True),
]


@pytest.mark.parametrize(("environ", "is_open"), MODES)
def test_the_mode(environ: dict[str, str], is_open: bool) -> None:
    assert read_settings(environ).is_open is is_open


@pytest.mark.parametrize("text", ["short", f"{SECRET} short", "é" * 15, SECRET[:31]])
def test_a_secret_that_is_too_short(text: str) -> None:
    """It aborts startup, and is not printed."""
    with pytest.raises(InvalidSetting) as refused:
        read_settings({"KVSTORE_SECRET": text})
    assert text not in str(refused.value)


def test_secrets_are_not_shown() -> None:
    """Not where settings are printed."""
    assert SECRET not in repr(read_settings({"KVSTORE_SECRET": SECRET}))
