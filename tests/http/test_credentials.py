"""How a request carries its token, and what becomes of bad ones, over every adapter: header field, cookie, query, session."""

import http.client
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from kvstore.core.settings import read_settings
from kvstore.http.credentials import COOKIE
from kvstore.http.gate import client_address, forwarded_for
from tests.support.clients import Answer, Checked
from tests.support.lanes import on
from tests.support.providers import Provider
from tests.support.stores import Running, wait_until
from tests.support.streams import FOLLOWED, Followed, following
from tests.support.tokens import BAD, GOOD, OLD_SECRET, SECRET, by_hand, in_s, jwks, private_key, signed
from tests.support.wires import Wire

on_adapters = on([("flask", "valkey"), ("asgi", "cluster"), ("served", "redis"), ("flask", "fake")])

RULES = """
rules = [
  ["/public/**", "anyone", "anyone", "anyone"],
  ["/own/{sub}/**", "user", "user", "user"],
]
"""
addresses = (f"198.51.{high}.{low}" for high, low in itertools.product(range(256), range(256)))

Lines = list[tuple[str, str]]
Ask = Callable[..., Answer]


@pytest.fixture(scope="session")
def rules(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(RULES)
    return str(path)


@pytest.fixture
def environ(rules: str) -> dict[str, str]:
    """The settings of a service with tokens, behind a proxy: each test has an address of its own."""
    secrets = f"{SECRET} {OLD_SECRET}"
    return {"KVSTORE_SECRET": secrets, "KVSTORE_RULES": rules, "KVSTORE_PROXIES": "1", "KVSTORE_VISITORS": "30d"}


@pytest.fixture
def ruled(environ: dict[str, str], client_with: Callable[..., Checked]) -> Checked:
    return client_with(**environ, KVSTORE_ORIGINS="https://app.example http://localhost:*")


@pytest.fixture
def ask(ruled: Checked) -> Ask:
    """A request from an address of the test's own."""
    address = next(addresses)

    def send(method: str, target: str, headers: Lines | None = None, body: bytes = b"", at: str = address) -> Answer:
        answer = ruled.adapter.request(method, target, [("X-Forwarded-For", at), *(headers or [])], body)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return answer

    return send


def bearer(token: str) -> Lines:
    return [("Authorization", f"Bearer {token}")]


def cookie(token: str) -> Lines:
    return [("Cookie", f"theme=dark; {COOKIE}={token}; lang=en")]


@on_adapters
@pytest.mark.parametrize("carry", [bearer, cookie])
@pytest.mark.parametrize("token", GOOD.values(), ids=GOOD.keys())
def test_a_good_token(ask: Ask, carry: Callable[[str], Lines], token: Callable[[], str]) -> None:
    """Its subject writes and reads what is its own, and nothing else."""
    headers = carry(token())
    assert ask("PUT", "/own/ada/a", headers, b"1").status == 201
    assert ask("GET", "/own/ada/a", headers).body == b"1\n"
    assert ask("GET", "/own/bob/a", headers).status == 403


@on_adapters
@pytest.mark.parametrize("carry", [bearer, cookie])
@pytest.mark.parametrize("token", BAD.values(), ids=BAD.keys())
def test_a_bad_token(ask: Ask, raw: redis.Redis, carry: Callable[[str], Lines], token: Callable[[], str]) -> None:
    """It is refused, also where none is needed. A cookie that is refused is deleted."""
    headers = carry(token())
    for method, target in (("GET", "/own/ada/a"), ("PUT", "/own/ada/a"), ("GET", "/public/a")):
        answer = ask(method, target, headers, b"1" if method == "PUT" else b"")
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')
        assert answer.json["type"] == "urn:kvstore:unauthorized"
        assert not token() or token() not in answer.body.decode()
        assert (f"{COOKIE}=;" in answer.headers.get("Set-Cookie", "")) is (carry is cookie)
    assert [key for key in raw.scan_iter("*") if b"rate" not in key] == []


@on([("flask", "valkey"), ("asgi", "redis")])
def test_a_token_of_100_kb(ask: Ask) -> None:
    """It is refused unread, although its signature is right. Our own server allows no such head."""
    assert ask("GET", "/own/ada/a", bearer(signed(more="x" * 75_000))).status == 401


@on([("served", "redis")])
def test_a_head_of_100_kb(ask: Ask) -> None:
    assert ask("GET", "/own/ada/a", bearer(signed(more="x" * 75_000))).status == 431


# Header fields, and the status of a GET of what is Ada's. In Python, since tokens differ from one run to the next.
CARRIERS: list[tuple[str, Callable[[], Lines], int]] = [
    ("nothing", list, 401),
    ("any case", lambda: [("AUTHORIZATION", f"bEARER {signed()}")], 404),
    ("a scheme of a proxy", lambda: [("Authorization", "Basic YTpi")], 401),
    ("a scheme of a proxy, and a cookie", lambda: [("Authorization", "Basic YTpi"), *cookie(signed())], 404),
    ("a token without its scheme", lambda: [("Authorization", signed())], 401),
    ("another field", lambda: [("X-Authorization", f"Bearer {signed()}"), ("Token", signed())], 401),
    ("twice", lambda: [*bearer(signed()), *bearer(signed())], 400),
    ("twice, two people", lambda: [*bearer(signed()), *bearer(signed(sub="bob"))], 400),
    ("twice, one of them of another scheme", lambda: [("Authorization", "Basic YTpi"), *bearer(signed())], 400),
    ("two tokens in one", lambda: [("Authorization", f"Bearer {signed()}, Bearer {signed()}")], 400),
    ("the field comes before the cookie", lambda: [*bearer(signed()), *cookie(signed(sub="bob"))], 404),
    ("also if it is bad", lambda: [*bearer("bad"), *cookie(signed())], 401),
    ("a cookie alone", lambda: [("Cookie", f"{COOKIE}={signed()}")], 404),
    ("a cookie whose name only ends like ours", lambda: [("Cookie", f"x{COOKIE}={signed()}")], 401),
    ("one cookie twice", lambda: [("Cookie", f"{COOKIE}={signed()}; {COOKIE}={signed()}")], 404),
    ("two cookies", lambda: [("Cookie", f"{COOKIE}={signed()}; {COOKIE}={signed(sub='bob')}")], 400),
]


@on_adapters
@pytest.mark.parametrize(("headers", "status"), [row[1:] for row in CARRIERS], ids=[row[0] for row in CARRIERS])
def test_a_carrier(ask: Ask, headers: Callable[[], Lines], status: int) -> None:
    """What counts as a token, and which of several."""
    assert ask("GET", "/own/ada/a", headers()).status == status


# Where ?access_token= is refused, although the token is good.
MISPLACED = [
    ("GET", "/own/ada/a?access_token={}", [], b""),
    ("GET", "/public/a?access_token={}", [], b""),
    ("GET", "/public/a?access_token=", [], b""),
    ("GET", "/own/ada/a?x=1&access%5Ftoken={}", [], b""),
    ("HEAD", "/own/ada/a?access_token={}", [], b""),
    ("HEAD", "/own/ada/a?access_token={}", [("Accept", "text/event-stream")], b""),
    ("GET", "/own/ada/?access_token={}", [], b""),
    ("PUT", "/own/ada/a?access_token={}", [], b"1"),
    ("PUT", "/public/a?access_token={}", [("Accept", "text/event-stream")], b"1"),
    ("POST", "/own/ada/?access_token={}", [], b"1"),
    ("DELETE", "/own/ada/a?access_token={}", [], b""),
    ("POST", "/_/batch?access_token={}", [], b'{"requests":[]}'),
    ("GET", "/own/ada/a?access_token={}&access_token={}", [("Accept", "text/event-stream")], b""),
    ("GET", "/own/ada/a?access_token={}", [("Accept", "text/event-stream"), ("Authorization", "Bearer x")], b""),
]


@on_adapters
@pytest.mark.parametrize(("method", "target", "headers", "body"), MISPLACED)
def test_a_token_in_the_query_is_for_streams(ask: Ask, method: str, target: str, headers: Lines, body: bytes) -> None:
    """Anywhere else, and beside another token, it is 400; no response repeats it."""
    token = signed()
    answer = ask(method, target.replace("{}", token), headers, body)
    assert answer.status == 400
    assert token not in f"{answer.headers}{answer.body!r}"


@on_adapters
def test_a_batch_is_judged_by_its_own_token(ask: Ask) -> None:
    """A request in it carries none: neither in its query nor in its header fields."""
    headers = bearer(signed(sub="bob"))
    parts = [
        {"method": "GET", "path": f"/own/ada/a?access_token={signed()}"},
        {"method": "GET", "path": "/own/ada/a", "headers": {"Authorization": f"Bearer {signed()}"}},
        {"method": "GET", "path": "/own/bob/a"},
    ]
    answer = ask("POST", "/_/batch", headers, json.dumps({"atomic": False, "requests": parts}).encode())
    assert [part["status"] for part in answer.json["responses"]] == [400, 403, 404]
    assert signed() not in answer.body.decode()


@on_adapters
def test_a_token_elsewhere_does_nothing(ask: Ask) -> None:
    """In a path or in a form it is data."""
    token = signed()
    for method, target, body in (
        ("GET", f"/own/ada/{token}", b""),
        ("PUT", "/own/ada/a", json.dumps({"access_token": token}).encode()),
    ):
        answer = ask(method, target, body=body)
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    assert ask("PUT", "/own/ada/a", form, f"access_token={token}".encode()).status == 400  # it is no JSON
    assert ask("PUT", f"/public/{token}", [], b"1").status == 201


@on([("flask", "valkey"), ("asgi", "redis"), ("served", "redis")])
def test_an_open_service_looks_at_no_token(client: Checked, client_with: Callable[..., Checked]) -> None:
    """With no secret, and with one that KVSTORE_OPEN overrides: anyone may do everything, and there are no sessions."""
    for opened in (client, client_with(KVSTORE_SECRET=SECRET, KVSTORE_OPEN="1")):
        assert opened.put("/own/ada/a", "1", bearer("bad")).status in (200, 201)
        assert opened.get("/own/ada/a?access_token=bad", cookie("bad")).status == 200
        assert opened.request("POST", "/_/session", bearer(signed())).status == 404
        assert opened.request("POST", "/_/visitors").status == 404


@on([("served", "redis")])
def test_the_same_fields_again(ruled: Checked) -> None:
    """On one connection the token is looked at once, and judged as ever: by path, by query, by time."""
    wire = Wire(ruled.served.at)
    token = signed(exp=in_s(5))

    def ask_for(target: str) -> int:
        wire.send(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        return wire.answer().status

    asked = [
        "/own/ada/a",
        "/own/ada/a",
        "/own/bob/a",
        "/own/ada/a?access_token=x",
        "/_/session",
        "/own/ada/?keys",
        "/own/ada/a",
    ]
    assert [ask_for(target) for target in asked] == [404, 404, 403, 400, 405, 200, 404]
    wait_until(lambda: ask_for("/own/ada/a") == 401, 30)
    assert ask_for("/public/a") == 401


# --- Streams ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=FOLLOWED)
def streaming(request: pytest.FixtureRequest, started: Callable[[str], Running], environ: dict[str, str]) -> Iterator[Followed]:
    store = started("redis")
    store.redis.flushall()
    followed = FOLLOWED[request.param](store, environ)
    yield followed
    followed.stop()


def test_a_stream_with_its_token_in_the_query(streaming: Followed) -> None:
    """As an EventSource asks for it. The page that shows it sends no Referer on, and the token is in no event."""
    with following(streaming, f"/own/ada/a?access_token={signed()}") as reader:
        assert reader.status == 200
        [event] = reader.wait_for(1)
        assert event.name == "snapshot"
        assert reader.headers["Referrer-Policy"] == "no-referrer"
        assert signed() not in b"".join(reader.blocks).decode()


@pytest.mark.parametrize("bad", ["bad signature", "expired", "alg none", "nothing"])
def test_a_stream_with_a_bad_token_in_the_query(streaming: Followed, bad: str) -> None:
    with following(streaming, f"/public/a?access_token={quote(BAD[bad]())}", X_Forwarded_For=next(addresses)) as reader:
        assert reader.status == 401
        assert reader.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_a_stream_comes_with_its_query_first(streaming: Followed) -> None:
    """A page that names a token means that one, whatever cookie its browser has."""
    with following(streaming, f"/own/ada/a?access_token={signed()}", Cookie=f"{COOKIE}={signed(sub='bob')}") as reader:
        assert reader.status == 200


# --- Sessions ---------------------------------------------------------------------------------------------------------------


@on_adapters
def test_a_session(ask: Ask) -> None:
    """POST keeps the token in a cookie that scripts cannot read and other sites do not send; DELETE deletes it."""
    token = signed(exp=in_s(600))
    begun = ask("POST", "/_/session", bearer(token))
    assert (begun.status, begun.body, begun.headers["Cache-Control"]) == (204, b"", "no-store")
    found = re.fullmatch(
        rf"{COOKIE}=([^;]+); HttpOnly; SameSite=Strict; Path=/; Expires=[^;]+ GMT", begun.headers["Set-Cookie"]
    )
    assert found
    assert found[1] == token
    assert ask("PUT", "/own/ada/a", cookie(found[1]), b"1").status == 201
    assert ask("POST", "/%5F/sessio%6E", bearer(token)).status == 204, "in any spelling of the path"
    secure = ask("POST", "/_/session", [*bearer(token), ("X-Forwarded-Proto", "https")])
    assert "; Secure;" in secure.headers["Set-Cookie"]
    for headers in ([], cookie(token), cookie("bad")):
        ended = ask("DELETE", "/_/session", headers)
        assert ended.status == 204
        assert (
            f"{COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
            in ended.headers["Set-Cookie"]
        )


@on_adapters
def test_a_session_needs_a_good_token_in_the_field(ask: Ask) -> None:
    """A cookie, a bad token, or one in the query or in a form begins none."""
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    for headers, target, body, status in (
        ([], "/_/session", b"", 401),
        (cookie(signed()), "/_/session", b"", 401),
        (bearer("bad"), "/_/session", b"", 401),
        (bearer(signed(exp=in_s(-1))), "/_/session", b"", 401),
        ([], f"/_/session?access_token={signed()}", b"", 401),
        (form, "/_/session", f"token={signed()}".encode(), 401),
        ([*bearer(signed()), *bearer(signed())], "/_/session", b"", 400),
    ):
        answer = ask("POST", target, headers, body)
        assert answer.status == status
        assert "Set-Cookie" not in answer.headers
    for method in ("GET", "PUT", "PATCH"):
        answer = ask(method, "/_/session", bearer(signed()))
        assert (answer.status, answer.headers["Allow"]) == (405, "POST, DELETE, OPTIONS")


APP, FOREIGN, LOCAL = "https://app.example", "https://elsewhere.example", "http://localhost:5173"
OWN = "http://127.0.0.1:8000"  # whom the clients of the tests ask

# What a browser says of a page that sends the cookie, and whether it may.
PAGES: list[tuple[str, Lines, bool]] = [
    ("an origin that is listed by name", [("Origin", APP), ("Sec-Fetch-Site", "cross-site")], True),
    ("the same, from an older browser", [("Origin", APP)], True),
    ("an origin that a pattern allows", [("Origin", LOCAL), ("Sec-Fetch-Site", "same-site")], False),
    ("a foreign origin", [("Origin", FOREIGN), ("Sec-Fetch-Site", "cross-site")], False),
    ("a foreign origin, from an older browser", [("Origin", FOREIGN)], False),
    ("another host of this site", [("Sec-Fetch-Site", "same-site")], False),
    ("a sandbox", [("Origin", "null")], False),
    ("this origin", [("Sec-Fetch-Site", "same-origin")], True),
    ("this origin, from an older browser", [("Origin", "http://127.0.0.1:8000"), ("Host", "127.0.0.1:8000")], True),
    ("the person at the browser", [("Sec-Fetch-Site", "none")], True),
]


@on_adapters
@pytest.mark.parametrize(("page", "is_allowed"), [row[1:] for row in PAGES], ids=[row[0] for row in PAGES])
def test_whose_page_may_use_the_cookie(ask: Ask, page: Lines, *, is_allowed: bool) -> None:
    """To write, to read, and to begin or end a session; with the token in Authorization, a page of a pattern may as well."""
    for method, target, headers in (
        ("PUT", "/own/ada/a", cookie(signed())),
        ("GET", "/own/ada/a", cookie(signed())),
        ("POST", "/_/batch", cookie(signed())),
        ("POST", "/_/session", bearer(signed())),
        ("DELETE", "/_/session", []),
    ):
        answer = ask(method, target, [*headers, *page], b'{"requests":[]}' if method in ("PUT", "POST") else b"")
        if is_allowed:
            assert answer.status < 400, (method, target)
        else:
            assert (answer.status, answer.json["type"]) == (403, "urn:kvstore:origin-not-allowed"), (method, target)


@on_adapters
def test_what_browsers_are_told(ask: Ask) -> None:
    """A preflight is answered without a token. Credentials are for origins that are listed by name."""
    asked = [("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "authorization")]
    for origin, has_credentials in ((APP, True), (LOCAL, False)):
        for target in ("/own/ada/a", "/_/session", "/_/visitors", "/_/batch"):
            answer = ask("OPTIONS", target, [("Origin", origin), *asked])
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
            assert ("Access-Control-Allow-Credentials" in answer.headers) is has_credentials
        refused = ask("GET", "/own/ada/a", [("Origin", origin)])
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, origin)
        assert "WWW-Authenticate" in refused.headers["Access-Control-Expose-Headers"]
    assert ask("OPTIONS", "/own/ada/a", [("Origin", APP), *asked, *bearer("bad")]).status == 204
    foreign = ask("OPTIONS", "/own/ada/a", [("Origin", FOREIGN), *asked])
    assert "Access-Control-Allow-Origin" not in foreign.headers


def test_credentials_are_for_no_pattern() -> None:
    """`*` allows every page to read what anyone may, and none to use the cookie."""
    for origins in ("*", "http://localhost:*", "null"):
        settings = read_settings({"KVSTORE_ORIGINS": origins})
        assert not any(settings.origins.name(origin) for origin in (LOCAL, APP, "null", "*"))
    assert read_settings({"KVSTORE_ORIGINS": f"* {APP}"}).origins.name(APP)


# --- Visitors, and bad tokens -----------------------------------------------------------------------------------------------


@on_adapters
def test_a_visitor(ask: Ask) -> None:
    """Gets a token with a subject of its own, which is a segment of a path as it stands."""
    made = [ask("POST", "/_/visitors") for _ in range(2)]
    for answer in made:
        assert (answer.status, answer.headers["Cache-Control"]) == (201, "no-store")
        assert set(answer.json) == {"token", "sub", "expires"}
        assert abs(answer.json["expires"] - 1000 * in_s(30 * 86_400)) < 60_000
        assert ask("PUT", f"/own/{answer.json['sub']}/a", bearer(answer.json["token"]), b"1").status == 201
    assert made[0].json["sub"] != made[1].json["sub"]
    assert ask("GET", f"/own/{made[0].json['sub']}/a", bearer(made[1].json["token"])).status == 403
    assert ask("GET", "/_/visitors").status == 405
    assert ask("POST", "/_/visitors", [("Origin", FOREIGN)]).status == 403


@on_adapters
def test_visitors_are_limited_by_address(ask: Ask) -> None:
    statuses = [ask("POST", "/_/visitors").status for _ in range(62)]
    assert statuses == [201] * 60 + [429] * 2
    assert ask("POST", "/_/visitors", at=next(addresses)).status == 201


@on_adapters
def test_many_bad_tokens(ask: Ask) -> None:
    """After 20 within a minute an address gets 429 for more of them. It is served as ever with a good one, or with none."""
    answers = [ask("GET", "/public/a", bearer(f"bad{number}")) for number in range(22)]
    assert [answer.status for answer in answers] == [401] * 20 + [429] * 2
    refused = answers[-1]
    assert refused.json["type"] == "urn:kvstore:too-many-requests"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert re.fullmatch('"bad-tokens";q=20;w=60', refused.headers["RateLimit-Policy"])
    assert ask("GET", "/own/ada/a", bearer(signed())).status == 404
    assert ask("PUT", "/own/ada/a", cookie(signed()), b"1").status == 201
    assert ask("GET", "/public/a").status == 404
    assert ask("GET", "/public/a", bearer("bad"), at=next(addresses)).status == 401
    assert ask("GET", "/public/a", cookie("bad")).status == 429


# X-Forwarded-For, trusted proxies, and the address that counts.
FORWARDED = [
    ("192.0.2.1", 1, "192.0.2.1"),
    ("6.6.6.6, 192.0.2.1", 1, "192.0.2.1"),
    ("6.6.6.6, 192.0.2.1, 10.0.0.1", 2, "192.0.2.1"),
    ("192.0.2.1", 2, None),
    ("", 1, None),
    ("192.0.2.1, ", 1, None),
    ("garbage", 1, None),
    ("192.0.2.1:4711", 1, "192.0.2.1"),
    ("2001:db8::1", 1, "2001:db8::1"),
    ("2001:DB8:0::1", 1, "2001:db8::1"),
    ("[2001:db8::1]:4711", 1, "2001:db8::1"),
    ("x" * 10_000, 1, None),
]


@pytest.mark.parametrize(("field", "proxies", "address"), FORWARDED)
def test_the_address_behind_proxies(field: str, proxies: int, address: str | None) -> None:
    """That which the outermost trusted proxy has seen; a client can send what it likes before it."""
    assert forwarded_for(field, proxies) == address


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:0:0:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
    ],
)
def test_the_address_that_is_counted(address: str, counted: str) -> None:
    """Whoever has one address of IPv6 has as many as they like."""
    assert client_address(address) == counted


# --- Keys of an identity provider -------------------------------------------------------------------------------------------


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as found:
        yield found


@on_adapters
def test_tokens_of_an_identity_provider(
    store: Running, client_with: Callable[..., Checked], rules: str, provider: Provider
) -> None:
    """The first request waits until the keys are there, and no other fetches them again, whatever kid it names."""
    client = client_with(KVSTORE_JWKS=provider.url, KVSTORE_RULES=rules, KVSTORE_AUDIENCE="app", WEB_CONCURRENCY="1")
    good = signed(private_key("RS256"), "RS256", {"kid": "RS256"}, aud="app")
    assert client.put("/own/ada/a", "1", bearer(good)).status == 201
    for bad in (
        signed(private_key("RS256"), "RS256", {"kid": "RS256"}),
        signed(private_key("RS256"), "RS256", {"kid": "RS256"}, aud="other"),
        signed(private_key("other"), "RS256", {"kid": "RS256"}, aud="app"),
        signed(private_key("ES256"), "ES256", {"kid": "ES256"}, aud="app"),
        signed(private_key("RS256"), "RS256", {"kid": "another"}, aud="app"),
        by_hand({"alg": "HS256", "kid": "RS256"}, {"sub": "ada", "aud": "app"}, jwks("RS256").encode()),
    ):
        assert client.get("/own/ada/a", bearer(bad)).status == 401
    assert client.get("/own/ada/a", bearer(good)).status == 200
    assert provider.asked == 1


@on([("flask", "valkey"), ("asgi", "redis"), ("served", "redis")])
@pytest.mark.parametrize("is_away", [True, False])
def test_an_identity_provider_that_is_away(
    store: Running, client_with: Callable[..., Checked], rules: str, provider: Provider, *, is_away: bool
) -> None:
    """Or answers with what is no HTTP. Nobody can tell whether a token is good: 503, and others are served."""
    provider.status = 0
    if is_away:
        provider.stop()
    client = client_with(KVSTORE_JWKS=provider.url, KVSTORE_RULES=rules, WEB_CONCURRENCY="1")
    token = signed(private_key("RS256"), "RS256", {"kid": "RS256"})
    assert [client.get("/own/ada/a", bearer(token)).status for _ in range(3)] == [503] * 3
    assert client.put("/public/a", "1").status == 201
    assert client.get("/public/a", bearer("bad")).status == 401


@on([("served", "redis")])
def test_a_slow_identity_provider_holds_nobody_up(
    store: Running, client_with: Callable[..., Checked], rules: str, provider: Provider
) -> None:
    """Whoever needs its keys waits; the event loop does not."""
    client = client_with(KVSTORE_JWKS=provider.url, KVSTORE_RULES=rules, WEB_CONCURRENCY="1")
    provider.gate.clear()
    token = signed(private_key("RS256"), "RS256", {"kid": "RS256"})
    waiting = http.client.HTTPConnection(*client.served.at, timeout=30)
    waiting.request("GET", "/own/ada/a", headers=dict(bearer(token)))
    assert provider.came.wait(30)
    assert client.put("/public/a", "1").status == 201
    provider.gate.set()
    assert waiting.getresponse().status == 404
    waiting.close()


@pytest.mark.parametrize("name", ["keys.json", pytest.param("none.json", marks=pytest.mark.slow)])
def test_keys_that_cannot_be_read_stop_the_start(tmp_path: Path, name: str) -> None:
    """With a line that names the setting."""
    from tests.support.serving import run_kvstore

    (tmp_path / "keys.json").write_text("{}")
    ended = run_kvstore(tmp_path, KVSTORE_JWKS=str(tmp_path / name), PORT="0")
    assert ended.returncode == 1
    assert "KVSTORE_JWKS" in ended.stderr
