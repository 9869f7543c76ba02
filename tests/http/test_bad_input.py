"""Bad input: refused with the right status, and the document that was there untouched."""

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clients import ADAPTERS, Checked
from tests.support.stores import contents

# What is refused here never gets to a store, so one of them will do.
pytestmark = pytest.mark.parametrize("lane", [(adapter, "valkey") for adapter in ADAPTERS], ids="-".join, indirect=True)

MEBIBYTE = 1024 * 1024
MANY = ",".join(f'"{n}":0' for n in range(10_001))
NESTED = ",".join(f'"{n}":{{}}' for n in range(10_000))

# Name, body, status. A name says the rule.
BODIES = [
    ("empty", b"", 400),
    ("only space", b" \n", 400),
    ("not JSON", b"hello", 400),
    ("single quotes", b"{'a':1}", 400),
    ("unquoted name", b"{a:1}", 400),
    ("a comment", b"{} // no", 400),
    ("a comma at the end", b"[1,]", 400),
    ("a comma at an object's end", b'{"a":1,}', 400),
    ("two texts", b"1 2", 400),
    ("text after", b"{}x", 400),
    ("a NUL after", b"{}\x00", 400),
    ("cut off", b'{"a":', 400),
    ("cut off in a string", b'{"a', 400),
    ("cut off in an array", b"[1", 400),
    ("no colon", b'{"a" 1}', 400),
    ("no value", b'{"a":}', 400),
    ("no comma", b'{"a":1 "b":2}', 400),
    ("a number as a name", b"{1:2}", 400),
    ("other space", "\u00a01".encode(), 400),
    ("a form feed", b"\x0c1", 400),
    ("a line separator", "\u20281".encode(), 400),
    ("a leading zero", b"01", 400),
    ("minus a leading zero", b"-01", 400),
    ("a plus", b"+1", 400),
    ("a bare minus", b"-", 400),
    ("no digit before the point", b".5", 400),
    ("no digit after the point", b"1.", 400),
    ("no digit after the e", b"1e", 400),
    ("hexadecimal", b"0x10", 400),
    ("an underscore", b"1_000", 400),
    ("other digits", "١".encode(), 400),
    ("other digits after", "1١".encode(), 400),
    ("True", b"True", 400),
    ("nul", b"nul", 400),
    ("NaN", b"NaN", 400),
    ("-NaN", b"-NaN", 400),
    ("Infinity", b"Infinity", 400),
    ("-Infinity", b"-Infinity", 400),
    ("NaN in a member", b'{"a":[NaN]}', 400),
    ("a control character", b'"a\nb"', 400),
    ("a NUL in a string", b'"\x00"', 400),
    ("a bad escape", b'"\\x41"', 400),
    ("half an escape", b'"\\u12"', 400),
    ("a signed escape", b'"\\u+123"', 400),
    ("a BOM", b"\xef\xbb\xbf{}", 400),
    ("UTF-16", "{}".encode("utf-16"), 400),
    ("UTF-16 without a BOM", "{}".encode("utf-16-le"), 400),
    ("UTF-32", "{}".encode("utf-32"), 400),
    ("Latin-1", b'"\xe9"', 400),
    ("overlong UTF-8", b'"\xc0\xaf"', 400),
    ("a surrogate in UTF-8", b'"\xed\xa0\x80"', 400),
    ("beyond Unicode", b'"\xf4\x90\x80\x80"', 400),
    ("UTF-8 cut off", b'"\xc3', 400),
    ("a high surrogate", b'"\\ud800"', 400),
    ("a low surrogate", b'"\\udc00"', 400),
    ("surrogates in the wrong order", b'"\\udc00\\ud800"', 400),
    ("two high surrogates", b'"\\ud800\\ud800\\udc00"', 400),
    ("a pair apart", b'"\\ud800 \\udc00"', 400),
    ("halves in two strings", b'["\\ud800","\\udc00"]', 400),
    ("half escaped, half not", b'"\\ud83d\\\\ude00"', 400),
    ("a high surrogate, then another escape", b'"\\ud800 \\n"', 400),
    ("a surrogate in upper case", b'"\\uD800"', 400),
    ("a surrogate in a name", b'{"\\ud800":1}', 400),
    ("a surrogate in a nested name", b'{"a":{"\\udfff":1}}', 400),
    ("a name twice", b'{"a":1,"a":2}', 400),
    ("a name twice with one value", b'{"a":1,"a":1}', 400),
    ("a name twice, nested", b'[{"b":{"a":1,"a":2}}]', 400),
    ("a name twice, escaped", b'{"a":1,"\\u0061":2}', 400),
    ("an empty name twice", b'{"":1,"":2}', 400),
    ("ttl twice", b'{"ttl":5,"ttl":6}', 400),
    ("a number too large", b"1e400", 400),
    ("a number too small", b"-1e400", 400),
    ("a number too large, written out", b"9" * 400 + b".0", 400),
    ("a number too large in a member", b'{"a":{"b":1e309}}', 400),
    ("4,301 digits", b"1" * 4301, 400),
    ("4,301 digits in a member", b'{"a":-' + b"1" * 4301 + b"}", 400),
    ("65 arrays", b"[" * 65 + b"]" * 65, 400),
    ("65 objects", b'{"a":' * 64 + b"{}" + b"}" * 64, 400),
    ("65 levels in a member", b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", 400),
    ("65 levels beside many", b'[[],[],[],"' + b"[" * 99 + b'",' + b"[" * 64 + b"]" * 64 + b"]", 400),
    ("half a million levels", b"[" * (MEBIBYTE // 2) + b"]" * (MEBIBYTE // 2), 400),
    ("a million open brackets", b"[" * MEBIBYTE, 400),
    ("a million open objects", b'{"a":' * (MEBIBYTE // 5), 400),
    ("10,001 members", f"{{{MANY}}}".encode(), 400),
    ("10,001 members, nested", f'{{"a":[{{{MANY}}}]}}'.encode(), 400),
    ("10,000 members, the last name twice", f'{{{NESTED[: NESTED.rindex(",")]},"9998":0}}'.encode(), 400),
    ("10,000 nested members, the last name twice", f'[{{{NESTED[: NESTED.rindex(",")]},"9998":0}}]'.encode(), 400),
    ("one byte over 1 MiB", b" " * MEBIBYTE + b"1", 413),
    ("3 MiB", b"1" + b" " * 3 * MEBIBYTE, 413),
    ("ttl 0", b'{"ttl":0}', 400),
    ("ttl -0", b'{"ttl":-0}', 400),
    ("ttl negative", b'{"ttl":-1}', 400),
    ("ttl too large", b'{"ttl":31536001}', 400),
    ("ttl as a string", b'{"ttl":"90"}', 400),
    ("ttl with a unit", b'{"ttl":"90s"}', 400),
    ("ttl with a point", b'{"ttl":90.0}', 400),
    ("ttl with an exponent", b'{"ttl":9e1}', 400),
    ("ttl null", b'{"ttl":null}', 400),
    ("ttl true", b'{"ttl":true}', 400),
    ("ttl an object", b'{"ttl":{}}', 400),
    ("ttl of 400 digits", b'{"ttl":' + b"9" * 400 + b"}", 400),
    ("ttl of 4,300 digits", b'{"ttl":-' + b"9" * 4300 + b"}", 400),
    ("ttl of 4,301 digits", b'{"ttl":' + b"9" * 4301 + b"}", 400),
    ("ttl under an escaped name", b'{"\\u0074tl":"x"}', 400),
]


@pytest.mark.parametrize(("body", "status"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
@pytest.mark.parametrize("sent", ["declared", "chunked"])
def test_bodies(client: Checked, raw: redis.Redis, sent: str, body: bytes, status: int) -> None:
    """Nothing is stored, and the old document is untouched."""
    headers = [("Transfer-Encoding", "chunked")] if sent == "chunked" else []
    client.put("/ns/a", '{"old":1.0}')
    before = contents(raw)
    for path in ("/ns/a", "/ns/new", "/new/a"):
        assert client.put(path, body, headers).status == status
    assert contents(raw) == before


# Name, raw request target, status.
TARGETS = [
    ("an empty segment", b"//", 400),
    ("an empty segment first", b"//ns/a", 400),
    ("an empty segment between", b"/ns//a", 400),
    ("an empty segment last", b"/ns/a//", 400),
    ("a dot", b"/.", 400),
    ("two dots", b"/..", 400),
    ("a dot between", b"/ns/./a", 400),
    ("two dots between", b"/x/../ns/a", 400),
    ("an encoded dot", b"/ns/%2e", 400),
    ("encoded dots", b"/x/%2E%2e/a", 400),
    ("a dot encoded by half", b"/ns/.%2e", 400),
    ("NUL", b"/ns/%00", 400),
    ("a line feed", b"/ns/a%0A", 400),
    ("a carriage return", b"/ns/a%0d", 400),
    ("U+001F", b"/ns/%1F", 400),
    ("DEL", b"/ns/%7F", 400),
    ("a bare percent", b"/ns/%", 400),
    ("half an escape", b"/ns/%4", 400),
    ("an escape of no digits", b"/ns/%zz", 400),
    ("an escape of a sign", b"/ns/%+1", 400),
    ("a percent before an escape", b"/ns/%%41", 400),
    ("the byte FF", b"/ns/%FF", 400),
    ("UTF-8 cut off", b"/ns/%C3", 400),
    ("UTF-8 across a slash", b"/%C3/%A9", 400),
    ("a surrogate", b"/ns/%ED%A0%80", 400),
    ("overlong UTF-8", b"/ns/%C0%AF", 400),
    ("raw bytes that are no UTF-8", b"/ns/\xe9", 400),
    ("33 segments", b"/a" * 33, 400),
    ("33 segments, encoded", b"/%61" * 33, 400),
    ("1,025 bytes", b"/" + b"a" * 1024, 414),
    ("1,025 bytes, encoded", b"/" + b"%61" * 1024, 414),
    ("1,025 bytes in segments", b"/" + b"a" * 511 + b"/" + b"b" * 512, 414),
    ("1,025 bytes of é", b"/" + b"%C3%A9" * 512, 414),
    ("no slash", b"ns/a", 400),
    ("an asterisk", b"*", 400),
    ("an authority", b"127.0.0.1:8000", 400),
    ("absolute with an empty segment", b"http://127.0.0.1:8000//ns", 400),
]


@pytest.mark.parametrize(("target", "status"), [row[1:] for row in TARGETS], ids=[row[0] for row in TARGETS])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_targets(client: Checked, raw: redis.Redis, method: str, target: bytes, status: int) -> None:
    """Refused, never redirected, never repaired into another path."""
    for path in ("/", "/ns", "/ns/a", "/a"):
        client.put(path, '{"old":1}')
    before = contents(raw)
    assert client.request(method, target, body=b"{}" if method == "PUT" else b"").status == status
    assert contents(raw) == before


# ?ttl= and its neighbours on a PUT.
QUERIES = [
    "ttl=",
    "ttl",
    "ttl=0",
    "ttl=0s",
    "ttl=-1",
    "ttl=+1",
    "ttl=%2B1",
    "ttl=1.5",
    "ttl=1e2",
    "ttl=90 s",
    "ttl=%2090",
    "ttl=90%0A",
    "ttl=90S",
    "ttl=1w",
    "ttl=1y",
    "ttl=1h30m",
    "ttl=s",
    "ttl=soon",
    "ttl=NaN",
    "ttl=null",
    "ttl=%D9%A1",
    "ttl=%FF",
    "ttl=31536001",
    "ttl=366d",
    "ttl=999999999999d",
    "ttl=" + "9" * 400,
    "ttl=" + "0" * 5000,
    "ttl=1&ttl=2",
    "ttl=1&ttl=1",
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query[:24])
def test_queries(client: Checked, raw: redis.Redis, query: str) -> None:
    """A TTL that cannot be read is refused, not guessed."""
    client.put("/ns/a", '{"old":1}')
    before = contents(raw)
    assert client.put(f"/ns/a?{query}", "{}").status == 400
    assert contents(raw) == before


# Name, headers of a PUT, status.
HEADERS = [
    ("gzip", [("Content-Encoding", "gzip")], 415),
    ("two encodings", [("Content-Encoding", "identity, br")], 415),
    ("HTML", [("Content-Type", "text/html")], 415),
    ("XML", [("Content-Type", "application/xml")], 415),
    ("a form with parts", [("Content-Type", "multipart/form-data; boundary=x")], 415),
    ("an image", [("Content-Type", "image/png")], 415),
    ("CSV", [("Content-Type", "text/csv")], 415),
    ("JSON lines", [("Content-Type", "application/x-ndjson")], 415),
    ("almost JSON", [("Content-Type", "application/jsonx")], 415),
    ("only a suffix", [("Content-Type", "+json")], 415),
    ("no subtype", [("Content-Type", "json")], 415),
    ("any", [("Content-Type", "*/*")], 415),
    ("a bare tag", [("If-Match", "x")], 400),
    ("an empty list", [("If-Match", "")], 400),
    ("only commas", [("If-None-Match", ", ,")], 400),
    ("an open tag", [("If-None-Match", '"x')], 400),
    ("a star in a list", [("If-None-Match", '*, "x"')], 400),
]


@pytest.mark.parametrize(("headers", "status"), [row[1:] for row in HEADERS], ids=[row[0] for row in HEADERS])
def test_headers(client: Checked, raw: redis.Redis, headers: list[tuple[str, str]], status: int) -> None:
    """What a header says about the body, or asks, and we cannot do, is refused."""
    client.put("/ns/a", '{"old":1}')
    before = contents(raw)
    assert client.put("/ns/a", "{}", headers).status == status
    assert contents(raw) == before


def test_a_415_says_what_is_read(client: Checked) -> None:
    """RFC 9110 section 15.5.16: Accept-Encoding, or Accept, of what would do."""
    assert client.put("/ns/a", "1", [("Content-Type", "text/html")]).headers["Accept"] == "application/json"
    assert client.put("/ns/a", "1", [("Content-Encoding", "gzip")]).headers["Accept-Encoding"] == "identity"


wire = st.binary(max_size=30).map(lambda tail: tail.replace(b" ", b"").replace(b"\r", b"").replace(b"\n", b""))
tails = wire | st.text(st.sampled_from("/a.%2Fe?&ttl=0:*"), max_size=20).map(str.encode)
targets = st.tuples(st.sampled_from([b"/", b"/", b"/", b"http://127.0.0.1/"]), tails).map(b"".join)
bodies = st.binary(max_size=40) | st.text(st.sampled_from('{}[]",:01.eE-+\\u tdn\x00'), max_size=30).map(str.encode)
field_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
FIELD_NAMES = [
    *("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "Content-Type", "Content-Encoding", "Accept"),
    *("Cookie", "Host", "Range", "Prefer", "Expect", "X-Forwarded-For", "Authorization", "Idempotency-Key"),
]
fields = st.tuples(
    st.sampled_from(FIELD_NAMES),
    field_values | st.sampled_from(["*", '"x"', "W/", "application/json", "gzip", "Sun, 06 Nov 1994 08:49:37 GMT"]),
)
methods = st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "POST", "BREW", "TRACE"])


@pytest.mark.slow
@settings(max_examples=300)
@given(method=methods, target=targets, headers=st.lists(fields, max_size=3), body=bodies)
def test_fuzz(
    client: Checked, raw: redis.Redis, *, method: str, target: bytes, headers: list[tuple[str, str]], body: bytes
) -> None:
    """No request gets a 5xx (but 501, 505), and none that is refused changes anything."""
    raw.flushall()
    client.put("/a", '{"old":1}')
    before = contents(raw)
    status = client.request(method, target, headers, body).status
    after = {
        key: held for key, held in contents(raw).items() if b"!idempotency:" not in key
    }  # answers kept for an Idempotency-Key
    assert status < 500 or status in (501, 505)
    assert status < 400 or after == before
    assert method in ("PUT", "DELETE", "PATCH", "POST") or after == before
