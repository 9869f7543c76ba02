"""Entity-tags and preconditions: as they are read from headers, and as they are judged over HTTP."""

import contextlib
import time
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidPrecondition
from kvstore.core.preconditions import NONE, Preconditions, parse_preconditions, read_status, tag_time_ms
from tests.support.asking import without_ttl
from tests.support.clients import Answer, Checked
from tests.support.stores import contents

NINETIES_S = 784_111_777  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110 section 5.6.7
DATES = [
    ("Sun, 06 Nov 1994 08:49:37 GMT", NINETIES_S),
    ("Sunday, 06-Nov-94 08:49:37 GMT", NINETIES_S),
    ("Sun Nov  6 08:49:37 1994", NINETIES_S),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ("", None),
    ("yesterday", None),
    ("784111777", None),
    ("Sun, 31 Feb 1994 08:49:37 GMT", None),
    ("Sun, 06 Nov 1994 25:49:37 GMT", None),
    ("Sun, 06 Nov 99999999999 08:49:37 GMT", None),
    (",", None),
    ("\xff", None),
]


@pytest.fixture(params=["UTC", "America/New_York"])
def timezone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("text", "time_s"), DATES)
@pytest.mark.usefixtures("timezone")
def test_dates(text: str, time_s: int | None) -> None:
    """All three forms of an HTTP-date are GMT wherever the machine stands; what is none is ignored (RFC 9110 13.1.3)."""
    headers = {"if-unmodified-since": text, "if-modified-since": text}
    assert parse_preconditions(headers) == Preconditions(unmodified_since_s=time_s, modified_since_s=time_s)


# Header value, what If-Match reads of it, what If-None-Match reads of it.
TAGS = [
    ("*", "*", "*"),
    (" * ", "*", "*"),
    ('"a"', " a ", " a "),
    ('"a", "b"', " a b ", " a b "),
    ('"a","b"', " a b ", " a b "),
    (' ,"a" ,, "b", ', " a b ", " a b "),
    ('W/"a"', "  ", " a "),
    ('W/"a", "b"', " b ", " a b "),
    ('""', "  ", "  "),
    ('"a,b"', " a,b ", " a,b "),
    ('"*"', " * ", " * "),
    ('"\xe9"', " \xe9 ", " \xe9 "),
]


@pytest.mark.parametrize(("value", "match", "none_match"), TAGS)
def test_lists_of_tags(value: str, match: str, none_match: str) -> None:
    """A list of entity-tags (RFC 9110 section 5.6.1); If-Match drops the weak ones, which can never match there."""
    assert parse_preconditions({"if-match": value}) == Preconditions(match=match)
    assert parse_preconditions({"if-none-match": value}) == Preconditions(none_match=none_match)


MALFORMED = [
    "",
    " ",
    ",",
    "a",
    '"a',
    'a"',
    '"a" "b"',
    '"a";',
    'w/"a"',
    "W/a",
    'W/ "a"',
    '*, "a"',
    '"a", *',
    "**",
    "'a'",
    '"a b"',
]


@pytest.mark.parametrize("value", MALFORMED)
@pytest.mark.parametrize("name", ["if-match", "if-none-match"])
def test_malformed_lists(name: str, value: str) -> None:
    """What cannot be read is refused: a precondition that is overlooked would lose somebody's write."""
    with pytest.raises(InvalidPrecondition):
        parse_preconditions({name: value})


def test_a_date_counts_only_without_a_tag() -> None:
    """RFC 9110 sections 13.1.3 and 13.1.4: a date is overruled by the header with a tag of the same sense."""
    date = DATES[0][0]
    assert parse_preconditions({"if-match": "*", "if-unmodified-since": date}) == Preconditions(match="*")
    assert parse_preconditions({"if-none-match": "*", "if-modified-since": date}) == Preconditions(none_match="*")
    mixed = parse_preconditions({"if-match": "*", "if-modified-since": date})
    assert mixed == Preconditions(match="*", modified_since_s=NINETIES_S)


def test_no_condition() -> None:
    """Other headers are no precondition."""
    assert parse_preconditions({"accept": "*", "if-range": '"a"'}) is NONE


SECOND = 1_700_000_000
TAG = f"{SECOND}123-0"
# Conditions of a GET, its status on TAG, its status on a document without a tag.
READS = [
    (NONE, 200, 200),
    (Preconditions(match=f" {TAG} "), 200, 412),
    (Preconditions(match=f" x {TAG} "), 200, 412),
    (Preconditions(match=" 1-1 "), 412, 412),
    (Preconditions(match="  "), 412, 412),
    (Preconditions(match=" * "), 412, 412),
    (Preconditions(match=f" {SECOND}123 "), 412, 412),
    (Preconditions(match="*"), 200, 200),
    (Preconditions(none_match=f" {TAG} "), 304, 200),
    (Preconditions(none_match=" 1-1 "), 200, 200),
    (Preconditions(none_match="*"), 304, 304),
    (Preconditions(unmodified_since_s=SECOND - 1), 412, 200),
    (Preconditions(unmodified_since_s=SECOND), 200, 200),
    (Preconditions(unmodified_since_s=SECOND + 1), 200, 200),
    (Preconditions(modified_since_s=SECOND - 1), 200, 200),
    (Preconditions(modified_since_s=SECOND), 304, 200),
    (Preconditions(modified_since_s=SECOND + 1), 304, 200),
    (Preconditions(match=f" {TAG} ", none_match=f" {TAG} "), 304, 412),
    (Preconditions(match=" 1-1 ", none_match=f" {TAG} "), 412, 412),
    (Preconditions(unmodified_since_s=SECOND - 1, none_match=f" {TAG} "), 412, 200),
    (Preconditions(match=f" {TAG} ", modified_since_s=SECOND), 304, 412),
]


@pytest.mark.parametrize(("preconditions", "ours", "foreign"), READS)
def test_reads(preconditions: Preconditions, ours: int, foreign: int) -> None:
    """What a read answers, in the order of RFC 9110 section 13.2.2."""
    assert read_status(preconditions, TAG) == ours
    assert read_status(preconditions, None) == foreign


def test_time_of_a_tag() -> None:
    """A tag begins with the ms at which it was written."""
    assert tag_time_ms(TAG) == SECOND * 1000 + 123


tags = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='"\x7f'), max_size=6)
texts = st.text(st.characters(max_codepoint=0xFF), max_size=20) | st.text(st.sampled_from('W/"*, \ta'), max_size=12)


@given(st.lists(st.tuples(st.booleans(), tags), min_size=1, max_size=5))
def test_any_list_is_read(pairs: list[tuple[bool, str]]) -> None:
    """Every list of entity-tags is read, each tag as it is."""
    value = ", ".join(f'W/"{tag}"' if weak else f'"{tag}"' for weak, tag in pairs)
    assert parse_preconditions({"if-none-match": value}).none_match[1:-1].split(" ") == [tag for _, tag in pairs]
    strong = [tag for weak, tag in pairs if not weak]
    assert parse_preconditions({"if-match": value}).match == f" {' '.join(strong)} "


@given(st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]), texts)
def test_any_header_is_read_or_refused(name: str, value: str) -> None:
    """No text makes the parser fail in another way than by a Problem."""
    with contextlib.suppress(InvalidPrecondition):
        parse_preconditions({name: value})


# --- As they are judged -------------------------------------------------------------------------------------------------

# The table of docs/http.md. "t" is the document's entity-tag where the tag matches, an earlier one of it where it differs.
DOCUMENTED = [
    # methods, header, value, nothing there, tag matches, tag differs
    ("PUT PATCH", "If-Match", '"t"', 412, 200, 412),
    ("PUT PATCH", "If-Match", "*", 412, 200, 200),
    ("PUT", "If-None-Match", "*", 201, 412, 412),
    ("PUT PATCH", "If-None-Match", '"t"', 201, 412, 200),
    ("DELETE", "If-Match", '"t"', 404, 204, 412),
    ("GET HEAD", "If-None-Match", '"t"', 404, 304, 200),
    ("GET HEAD", "If-Match", '"t"', 404, 200, 412),
]
# What RFC 9110 section 13 says besides.
PRECONDITIONS = [
    *DOCUMENTED,
    ("PATCH", "If-None-Match", "*", 201, 412, 412),
    # lists
    ("PUT", "If-Match", '"x", "t"', 412, 200, 412),
    ("PUT", "If-Match", '"x","t","y"', 412, 200, 412),
    ("PUT", "If-None-Match", '"x", "t"', 201, 412, 200),
    ("DELETE", "If-Match", '"x", "t"', 404, 204, 412),
    ("GET HEAD", "If-Match", '"t" , "x"', 404, 200, 412),
    ("GET HEAD", "If-None-Match", ',"x",,"t"', 404, 304, 200),
    # weak tags: If-Match compares strongly, If-None-Match weakly
    ("PUT", "If-Match", 'W/"t"', 412, 412, 412),
    ("PUT", "If-Match", 'W/"t", "t"', 412, 200, 412),
    ("PUT", "If-None-Match", 'W/"t"', 201, 412, 200),
    ("DELETE", "If-Match", 'W/"t"', 404, 412, 412),
    ("GET HEAD", "If-Match", 'W/"t"', 404, 412, 412),
    ("GET HEAD", "If-None-Match", 'W/"t"', 404, 304, 200),
    # the other two forms
    ("DELETE", "If-Match", "*", 404, 204, 204),
    ("DELETE", "If-None-Match", '"t"', 404, 412, 204),
    ("DELETE", "If-None-Match", "*", 404, 412, 412),
    ("GET HEAD", "If-Match", "*", 404, 200, 200),
    ("GET HEAD", "If-None-Match", "*", 404, 304, 304),
    # half a tag, and more than a tag, is another one
    ("PUT", "If-Match", '"t-0"', 412, 412, 412),
    ("PUT", "If-Match", '""', 412, 412, 412),
    ("PUT", "If-Match", '"*"', 412, 412, 412),
    # what cannot be read is refused before anything is looked at
    ("PUT PATCH DELETE", "If-Match", "t", 400, 400, 400),
    ("PUT PATCH DELETE", "If-Match", "", 400, 400, 400),
    ("PUT PATCH DELETE", "If-None-Match", '"t', 400, 400, 400),
]


@pytest.mark.parametrize(("methods", "header", "value", "on_nothing", "on_match", "on_other"), PRECONDITIONS)
def test_preconditions(
    client: Checked, raw: redis.Redis, *, methods: str, header: str, value: str, on_nothing: int, on_match: int, on_other: int
) -> None:
    """The table, judged on objects and on other values; where a write is refused nothing is changed."""
    for method in methods.split():
        for document in ('{"a":1}', "[1]"):
            client.delete("/ns/a")
            earlier = client.put("/ns/a", document).tag
            client.delete("/ns/a")
            assert ask(client, method, header, with_tag(value, earlier)).status == on_nothing
            for differs, status in ((False, on_match), (True, on_other)):
                stored = client.put("/ns/a", document)
                before = contents(raw)
                answer = ask(client, method, header, with_tag(value, earlier if differs else stored.tag))
                assert answer.status == status
                check_outcome(method, answer, stored)
                assert (contents(raw) == before) == (status >= 400 or method in ("GET", "HEAD"))


def ask(client: Checked, method: str, header: str, value: str) -> Answer:
    """A request with one precondition, which would store 2."""
    return client.request(method, "/ns/a", [(header, value)], b"2" if method in ("PUT", "PATCH") else b"")


def with_tag(value: str, tag: str) -> str:
    """`value` with an entity-tag for "t"."""
    return value.replace('"t', '"' + tag.strip('"'))


def test_the_table_is_documented() -> None:
    """The table of preconditions in docs/http.md is the one above, row by row."""
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8")
    header = "| request | nothing there | tag matches | tag differs |\n|---|---|---|---|\n"
    rows = page.partition(header)[2].partition("\n\n")[0].splitlines()
    assert rows == [
        f"| {', '.join(f'`{method}`' for method in methods.split())} with `{name}: {value}` | {nothing} | {match} | {other} |"
        for methods, name, value, nothing, match, other in DOCUMENTED
    ]


def check_outcome(method: str, answer: Answer, stored: Answer) -> None:
    """A 304 has the tag; a 412 says what is there."""
    if answer.status == 304:
        assert answer.tag == stored.tag
        assert answer.headers["Cache-Control"] == "no-cache"
    if answer.status == 412 and method != "HEAD":
        assert (answer.json["etag"], without_ttl(answer.json["current"])) == (stored.tag, without_ttl(stored.json))


def test_412_where_nothing_is(client: Checked) -> None:
    """A 412 says that nothing is there."""
    answer = client.put("/ns/a", "1", [("If-Match", '"1-1"')])
    assert (answer.status, answer.json["etag"], answer.json["current"]) == (412, None, None)


def test_412_shows_numbers_to_the_letter(client: Checked) -> None:
    """What a 412 shows is no rounded copy."""
    client.put("/ns/a", '{"n":1.000000000000000005,"m":1e2}')
    assert b'"current":{"n":1.000000000000000005,"m":1e2,"ttl":' in client.put("/ns/a", "1", [("If-None-Match", "*")]).body


# Header, and what it means of a document written in that second, the second before, the second after.
DATED = [
    ("GET HEAD", "If-Modified-Since", 304, 200, 304),
    ("GET HEAD", "If-Unmodified-Since", 200, 412, 200),
    ("PUT", "If-Unmodified-Since", 200, 412, 200),
    ("DELETE", "If-Unmodified-Since", 204, 412, 204),
    ("PUT", "If-Modified-Since", 200, 200, 200),
    ("DELETE", "If-Modified-Since", 204, 204, 204),
]


@pytest.mark.parametrize(("methods", "header", "then", "earlier", "later"), DATED)
def test_dates_are_judged(client: Checked, *, methods: str, header: str, then: int, earlier: int, later: int) -> None:
    """Dates count in whole seconds, against Last-Modified."""
    for method in methods.split():
        for shift_s, status in ((0, then), (-1, earlier), (1, later)):
            at_s = parsedate_to_datetime(client.put("/ns/a", "1").headers["Last-Modified"]).timestamp()
            headers = [(header, formatdate(at_s + shift_s, usegmt=True))]
            assert client.request(method, "/ns/a", headers, b"2" if method in ("PUT", "PATCH") else b"").status == status


LONG_AGO = "Sun, 06 Nov 1994 08:49:37 GMT"
FAR_AHEAD = "Fri, 31 Dec 2100 23:59:59 GMT"
# Several preconditions at once (RFC 9110 section 13.2.2): method, headers, status on a document with tag "t".
SEVERAL = [
    ("GET", [("If-Match", '"t"'), ("If-Unmodified-Since", LONG_AGO)], 200),
    ("PUT", [("If-Match", '"t"'), ("If-Unmodified-Since", LONG_AGO)], 200),
    ("GET", [("If-None-Match", '"x"'), ("If-Modified-Since", FAR_AHEAD)], 200),
    ("GET", [("If-None-Match", '"t"'), ("If-Modified-Since", LONG_AGO)], 304),
    ("GET", [("If-Match", '"x"'), ("If-None-Match", '"t"')], 412),
    ("GET", [("If-Match", '"t"'), ("If-None-Match", '"t"')], 304),
    ("PUT", [("If-Match", '"t"'), ("If-None-Match", '"t"')], 412),
    ("PUT", [("If-Match", "*"), ("If-None-Match", '"x"')], 200),
    ("PUT", [("If-Match", '"x"'), ("If-Match", '"t"')], 200),
    ("GET", [("If-None-Match", '"x"'), ("If-None-Match", '"t"')], 304),
    ("PUT", [("If-Unmodified-Since", "yesterday")], 200),
    ("GET", [("If-Modified-Since", "tomorrow")], 200),
    ("GET", [("If-Modified-Since", FAR_AHEAD), ("If-Match", '"t"')], 304),
]


@pytest.mark.parametrize(("method", "headers", "status"), SEVERAL)
def test_several_preconditions(client: Checked, method: str, headers: list[tuple[str, str]], status: int) -> None:
    """They are judged in RFC 9110's order, and all of them must hold."""
    tag = client.put("/ns/a", "1").tag
    headers = [(name, with_tag(value, tag)) for name, value in headers]
    assert client.request(method, "/ns/a", headers, b"2" if method in ("PUT", "PATCH") else b"").status == status


# What takes no precondition, and its status: method, target, body.
UNCONDITIONAL = [("POST", "/ns/", b"1", 201), ("POST", "/ns/?lease=1s", b"", 200), ("DELETE", "/ns/?recursive", b"", 200)]


@pytest.mark.parametrize(("method", "target", "body", "status"), UNCONDITIONAL)
def test_dates_that_are_no_preconditions(client: Checked, method: str, target: str, body: bytes, status: int) -> None:
    """If-Modified-Since is ignored on a write, and a date that is none everywhere: some clients send `0` with each request."""
    for header, value in (("If-Modified-Since", "0"), ("If-Modified-Since", LONG_AGO), ("If-Unmodified-Since", "yesterday")):
        client.request("POST", "/ns/", body=b"1")
        assert client.request(method, target, [(header, value)], body).status == status
    assert client.request(method, target, [("If-Unmodified-Since", LONG_AGO)], body).status == 400


def test_dates_where_nothing_is(client: Checked) -> None:
    """What is not there has no date that could fail."""
    assert client.get("/ns/a", [("If-Unmodified-Since", LONG_AGO)]).status == 404
    assert client.delete("/ns/a", [("If-Unmodified-Since", LONG_AGO)]).status == 404
    assert client.put("/ns/a", "1", [("If-Unmodified-Since", LONG_AGO)]).status == 201


# A hash that another client made has no entity-tag: only * holds on it.
ON_FOREIGN = [
    ("GET", "If-Match", "*", 200),
    ("GET", "If-Match", '"1-1"', 412),
    ("GET", "If-None-Match", "*", 304),
    ("GET", "If-None-Match", '"1-1"', 200),
    ("GET", "If-Modified-Since", FAR_AHEAD, 200),
    ("GET", "If-Unmodified-Since", LONG_AGO, 200),
    ("PUT", "If-Match", "*", 200),
    ("PUT", "If-Match", '"1-1"', 412),
    ("PUT", "If-None-Match", "*", 412),
    ("PUT", "If-None-Match", '"1-1"', 200),
    ("PUT", "If-Unmodified-Since", LONG_AGO, 200),
    ("DELETE", "If-Match", "*", 204),
    ("DELETE", "If-Match", '"1-1"', 412),
]


@pytest.mark.parametrize(("method", "header", "value", "status"), ON_FOREIGN)
def test_preconditions_on_a_foreign_hash(
    client: Checked, raw: redis.Redis, *, method: str, header: str, value: str, status: int
) -> None:
    """A document without an entity-tag: `If-Match: *` holds, no tag matches."""
    raw.hset("kv:{ns}/a", "n", "1")
    answer = client.request(method, "/ns/a", [(header, value)], b"2" if method in ("PUT", "PATCH") else b"")
    assert answer.status == status
    if status == 412:
        assert (answer.json["etag"], answer.json["current"]) == (None, {"n": 1})
