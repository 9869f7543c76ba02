"""JSON text ↔ the fields of a Redis hash: what goes in comes out, to the letter."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.codec import META, VALUE, Decoded, Encoded, decode, encode, remembered_hashes
from kvstore.core.errors import ContentTooLarge, InvalidDocument, InvalidTTL, Problem
from kvstore.core.json_text import MAX_BYTES, MAX_DEPTH, MAX_MEMBERS

TAG = "1700000000000-7"


def stored(encoded: Encoded, seed: int = 0) -> list[bytes]:
    """The reply to HGETALL on what was encoded: the fields in any order, as Redis gives them."""
    pairs = [(META, TAG.encode() + encoded.shape), *zip(encoded.fields[::2], encoded.fields[1::2], strict=True)]
    random.Random(seed).shuffle(pairs)
    return [part for pair in pairs for part in pair]


def spelled(json_text: bytes) -> object:
    """A JSON text's meaning, where a number means its spelling and members have their order."""
    return json.loads(json_text, parse_int=number, parse_float=number, object_pairs_hook=pairs_of)


def number(spelling: str) -> tuple[str, str]:
    return "number", spelling


def pairs_of(pairs: list[tuple[str, object]]) -> tuple[object, ...]:
    return "object", *pairs


# What is read back byte for byte: a JSON text without space between its tokens.
KEPT = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1.0",
    "1e2",
    "1E+2",
    "1.000000000000000005",
    "-0.0",
    "1e-400",
    "123456789012345678901234567890",
    "-9223372036854775809",
    "9" * 4300,
    '""',
    '"42"',
    '"02139"',
    '"1e2"',
    '"null"',
    '"true"',
    '"{}"',
    '"\\u00e9"',
    '"é"',
    '"\\u0000"',
    '"\\/"',
    '"\\ud83d\\ude00"',
    '"😀"',
    '"\\\\ud800"',
    '" spaced  out "',
    '"\x7f"',
    '"\ufeff"',
    "{}",
    "[]",
    "[[],{},[{}]]",
    '[1.0,1e2,"\\u00e9"," a , b "]',
    '{"a":1}',
    '{"b":1,"a":2}',
    '{"a":{"z":1.0,"y":[1e2,null]},"b":{}}',
    '{"":0}',
    '{"$kv":1}',
    '{"$kv$":1}',
    '{"$kv$$":1,"$kv":2,"$kv$":3}',
    '{"$value":1}',
    '{"$packed":1}',
    '{"put":1,"at":2}',
    '{"\\u0000":1,"a\\u0000b":2}',
    '{"é":1,"e\u0301":2}',
    '{"10":1,"9":2}',
    '{"B":1,"a":2}',
    '{"a":{"ttl":"nested is free"}}',
    '{"TTL":1}',
    "{" + ",".join(f'"{n}":{n}' for n in range(500, 0, -1)) + "}",
    "[" * MAX_DEPTH + "]" * MAX_DEPTH,
    '{"a":' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}",
    '{"a":"' + "[" * 100 + '"}',
    "{" + ",".join(f'"{n:05}":0' for n in range(MAX_MEMBERS)) + "}",
    '"' + "x" * (MAX_BYTES - 2) + '"',
]


@pytest.mark.parametrize("written", KEPT, ids=lambda written: written[:24].encode("unicode_escape").decode())
def test_kept_to_the_letter(written: str) -> None:
    """What is stored is read back byte for byte, whatever order Redis gives the fields in."""
    encoded = encode(written.encode())
    assert encoded.text.decode() == written
    assert decode(stored(encoded)) == Decoded(written.encode(), written.startswith("{"), TAG)


WHITESPACE = [
    (' { "a" : 1 , "b" : [ 1 , 2 ] }\n', '{"a":1,"b":[1,2]}'),
    ("\t\r\n[ 1 ,\r\n2 ]", "[1,2]"),
    ('{"a":{ "b" : " x , y " }}', '{"a":{"b":" x , y "}}'),
    ('{"a":[ "\\" , " , "\\\\" , " " ]}', '{"a":["\\" , ","\\\\"," "]}'),
    (" 1.0 ", "1.0"),
    ("{ }", "{}"),
    ("[ ]", "[]"),
    ('{"a":{ },"b":[ ]}', '{"a":{},"b":[]}'),
    (' "a b" ', '"a b"'),
]


@pytest.mark.parametrize(("written", "kept"), WHITESPACE)
def test_space_between_tokens_is_dropped(written: str, kept: str) -> None:
    """Space between tokens is not part of a document; space inside a string is."""
    assert decode(stored(encode(written.encode()))).text.decode() == kept


FIELDS = [
    ('{"n":42,"s":"42"}', {b"n": b"42", b"s": b'"42"'}),
    ('{"f":1.0,"o":{"x":[1e2]}}', {b"f": b"1.0", b"o": b'{"x":[1e2]}'}),
    ('{"$kv":1,"$kv$":2,"$kvx":3}', {b"$kv$": b"1", b"$kv$$": b"2", b"$kvx": b"3"}),
    ('{"\\u00e9\\u0000":"\\u00e9"}', {"é\0".encode(): b'"\\u00e9"'}),
    ("[1,2]", {VALUE: b"[1,2]"}),
    ("null", {VALUE: b"null"}),
    ("{}", {}),
    ('{"ttl":5,"a":1}', {b"a": b"1"}),
]


@pytest.mark.parametrize(("written", "fields"), FIELDS)
def test_fields_of_the_hash(written: str, fields: dict[bytes, bytes]) -> None:
    """One field per top-level member, its value the member's JSON text."""
    encoded = encode(written.encode())
    assert dict(zip(encoded.fields[::2], encoded.fields[1::2], strict=True)) == fields


# A hash that another Redis client made, and the document that it is.
FOREIGN = [
    ({b"n": b"42"}, '{"n":42}'),
    ({b"n": b"-7", b"m": b"1.50"}, '{"m":1.50,"n":-7}'),
    ({b"s": b"02139"}, '{"s":"02139"}'),
    ({b"s": b"hello world"}, '{"s":"hello world"}'),
    ({b"s": b'say "hi"\n'}, '{"s":"say \\"hi\\"\\n"}'),
    ({b"s": b""}, '{"s":""}'),
    ({b"s": b'"42"'}, '{"s":"42"}'),
    ({b"b": b"true", b"o": b'{"x":[1]}'}, '{"b":true,"o":{"x":[1]}}'),
    ({b"b": b"True"}, '{"b":"True"}'),
    ({b"x": b"NaN", b"y": b"Infinity", b"z": b"1e999"}, '{"x":"NaN","y":"Infinity","z":"1e999"}'),
    ({b"x": b"{broken"}, '{"x":"{broken"}'),
    ({b"x": b'{"a":1,"a":2}'}, '{"x":"{\\"a\\":1,\\"a\\":2}"}'),
    ({b"x": b'"\\ud800"'}, '{"x":"\\"\\\\ud800\\""}'),
    ({b"x": b"9" * 4301}, '{"x":"' + "9" * 4301 + '"}'),
    ({b"x": b"[" * 65 + b"]" * 65}, '{"x":"' + "[" * 65 + "]" * 65 + '"}'),
    ({b"x": b"[" * 5000}, '{"x":"' + "[" * 5000 + '"}'),
    ({b"x": b"\xff\xfe"}, '{"x":"\\\\xff\\\\xfe"}'),
    ({b"\xff": b"1"}, '{"\\\\xff":1}'),
    ({"é".encode(): "ü".encode()}, '{"é":"ü"}'),
    ({b"": b"1"}, '{"":1}'),
    ({b"ttl": b"soon", b"a": b"1"}, '{"a":1}'),
    ({b"ttl": b"5"}, "{}"),
    ({b"$kv": b"mine"}, '{"$kv":"mine"}'),
    ({b"$value": b"1"}, '{"$value":1}'),
    ({b"b": b"1", b"a": b"2"}, '{"a":2,"b":1}'),
]


@pytest.mark.parametrize(("hash_", "document"), FOREIGN, ids=lambda case: str(case)[:32])
def test_foreign_hash(hash_: dict[bytes, bytes], document: str) -> None:
    """A field of another client is JSON text if it is one, else a string; such a document has no entity-tag."""
    flat = [part for pair in hash_.items() for part in pair]
    assert decode(flat) == Decoded(document.encode(), True, None)


def test_names_stay_apart_in_a_foreign_hash() -> None:
    """No two fields are shown under one name, whoever wrote them."""
    for hash_ in (
        {b"$kv": b"mine", b"$kv$": b"yours"},
        {b"\xff": b"1", b"\\xff": b"2"},
    ):
        flat = [part for pair in hash_.items() for part in pair]
        names = [name for name, _ in json.loads(decode(flat).text, object_pairs_hook=lambda pairs: pairs)]
        assert len(set(names)) == len(names), hash_


def test_foreign_fields_in_a_document_of_ours() -> None:
    """A member that another client added comes after ours, one it removed is gone, one it changed is changed."""
    flat = stored(encode(b'{"z":1,"y":2,"x":3}'))
    hash_ = dict(zip(flat[::2], flat[1::2], strict=True))
    del hash_[b"y"]
    hash_ |= {b"z": b"10", b"new": b"bare text", b"more": b"1"}
    assert decode([part for pair in hash_.items() for part in pair]).text == b'{"z":10,"x":3,"more":1,"new":"bare text"}'


def test_bytes_that_another_client_added_to_a_document_of_ours() -> None:
    """A name that is not UTF-8 changes nothing of how ours are shown, `$kv` among them."""
    flat = [*stored(encode(b'{"b":1,"$kv":2,"$kv$":3}')), b"\xff", b"4"]
    assert decode(flat).text == b'{"b":1,"$kv":2,"$kv$":3,"\\\\xff":4}'


def test_a_tag_that_is_no_id() -> None:
    """What another client put in its place makes no date: int() refuses thousands of digits."""
    assert decode([META, b"9" * 5000 + b"-0 object", b"a", b"1"]).tag is None


# Values of a large document of ours, and what another client has written in their place, of the same length.
CHANGED = [
    ([b"[1,2]", b"3"], [b"[1,2)", b"3"], ["[1,2)", 3]),
    ([b"12", b"3"], [b"02", b"3"], ["02", 3]),
    ([b"12", b"3"], [b"13", b"3"], [13, 3]),
    ([b"1", b"2"], [b'1,"b":2', None], ['1,"b":2']),
    ([b'"x"', b"2"], [b'"x ', b"2"], ['"x ', 2]),
    ([b"[[]]", b"2"], [b"[]  ", b"2"], [[], 2]),
]


@pytest.mark.parametrize(("values", "changed", "shown"), CHANGED)
def test_foreign_fields_in_a_large_document_of_ours(
    values: list[bytes], changed: list[bytes | None], shown: list[object]
) -> None:
    """What was checked once is not checked again, but for what another client has changed, though its length be the same."""
    long = b"[%b]" % (b"0," * 4000 + b"0")
    encoded = encode(b'{"a":%b,"b":%b,"long":%b}' % (*values, long))
    flat = [META, TAG.encode() + encoded.shape, b"long", long]
    assert decode([*flat, b"a", values[0], b"b", values[1]]).text == encoded.text
    for _ in range(2):  # what was found to be another client's is not taken for ours the next time
        fields = [
            part for name, value in zip((b"a", b"b"), changed, strict=True) if value is not None for part in (name, value)
        ]
        members = json.loads(decode(flat + fields).text)
        del members["long"]
        assert list(members.values()) == shown


def test_what_is_remembered_is_small() -> None:
    """A hash is not kept in memory for its short text where it is large: names that are gone, spaces in a value."""
    for number, (order, value) in enumerate(((b' ["%b"]' % (b"x" * 5000), b"1"), (b"", b"[" + b" " * 5000 + b"]"))):
        tag = b"1800000000000-%d" % number
        assert len(decode([META, tag + b" object" + order, b"a", value]).text) < 10
        assert not [key for key in remembered_hashes if key.startswith(tag)]


@pytest.mark.parametrize("order", [b"", b' {"a":1}', b" [1,2]", b" [[]]", b" [", b" [" + b"[" * 9999 + b"]", b' ["\\ud800"]'])
@pytest.mark.parametrize("kind", [b"object", b"value", b"other"])
def test_our_own_field_overwritten(kind: bytes, order: bytes) -> None:
    """Whatever another client writes into our field, the document is still read."""
    document = json.loads(decode([META, b"1-1 " + kind + order, b"a", b"1"]).text)
    assert document is None or document["a"] == 1


REFUSED = [
    (b"", InvalidDocument),
    (b" ", InvalidDocument),
    (b"\xef\xbb\xbf{}", InvalidDocument),
    ("{}".encode("utf-16"), InvalidDocument),
    (b'"\xff"', InvalidDocument),
    (b'"\xed\xa0\x80"', InvalidDocument),
    (b'"\xc0\x80"', InvalidDocument),
    (b"{} {}", InvalidDocument),
    (b"01", InvalidDocument),
    (b'{"ttl":"1"}', InvalidTTL),
    (b'{"ttl":1.0}', InvalidTTL),
    (b'{"ttl":null}', InvalidTTL),
    (b'"' + b"x" * MAX_BYTES, ContentTooLarge),
]


@pytest.mark.parametrize(("body", "problem"), REFUSED, ids=lambda case: str(case)[:24])
def test_refused(body: bytes, problem: type[Problem]) -> None:
    """Each kind of refusal has its problem; the whole table is in test_bad_input.py."""
    with pytest.raises(problem):
        encode(body)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["$kv", "$kv$", "", "\0", "$value"])
spellings = st.sampled_from(["1.0", "1e2", "-0", "1.000000000000000005", "1E-7", "0.10", "12345678901234567890123"])
quoted = names.map(json.dumps) | names.map(lambda name: json.dumps(name, ensure_ascii=False))
scalars = st.integers().map(str) | spellings | quoted | st.sampled_from(["null", "true", "false"])
gaps = st.sampled_from(["", "", "", " ", "\n\t", "\r\n "])


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    return f"[{draw(gaps)}" + ",".join(draw(gaps) + draw(values) + draw(gaps) for _ in range(draw(st.integers(0, 4)))) + "]"


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str], most: int = 4) -> str:
    members = draw(st.lists(quoted, max_size=most, unique_by=json.loads))
    if "ttl" in map(json.loads, members):
        members = [name for name in members if json.loads(name) != "ttl"]
    return f"{{{draw(gaps)}" + ",".join(f"{name}{draw(gaps)}:{draw(gaps)}{draw(values)}{draw(gaps)}" for name in members) + "}"


values = st.recursive(scalars, lambda inner: arrays(inner) | objects(inner), max_leaves=20)
documents = st.builds("{}{}{}".format, gaps, values | objects(values), gaps)


@given(documents, st.integers())
def test_what_goes_in_comes_out(written: str, seed: int) -> None:
    """decode(encode(x)) == x, numbers and order included; and once more changes not a byte."""
    encoded = encode(written.encode())
    decoded = decode(stored(encoded, seed))
    assert spelled(decoded.text) == spelled(written.encode())
    assert decoded == Decoded(encoded.text, encoded.is_object, TAG)
    assert encode(decoded.text).text == decoded.text


@settings(max_examples=20)
@given(st.lists(names.filter(lambda name: name not in ("ttl", ".sv")), min_size=129, max_size=160, unique=True), st.integers())
def test_order_of_many_members(members: list[str], seed: int) -> None:
    """The order of members is kept beyond the 128 fields at which a Redis hash forgets it."""
    written = json.dumps(dict.fromkeys(members, 0), ensure_ascii=False).encode()
    assert list(json.loads(decode(stored(encode(written), seed)).text)) == members


@given(st.dictionaries(st.binary(max_size=8), st.binary(max_size=12), min_size=1, max_size=6))
def test_any_hash_is_a_document(hash_: dict[bytes, bytes]) -> None:
    """Whatever hash lies under our key, it is read as a JSON object with a member for each field but `ttl`."""
    members = json.loads(decode([part for pair in hash_.items() for part in pair]).text, object_pairs_hook=list)
    assert len(dict(members)) == len(members) == len(hash_.keys() - {b"ttl"})


@given(st.lists(st.sampled_from(["\\ud83d", "\\ude00", "\\uDBFF", "\\\\", "\\n", '\\"', "\\u0041", "ud800"]), max_size=6))
@settings(max_examples=200)
def test_half_a_pair_is_refused(parts: list[str]) -> None:
    """What Python cannot spell in UTF-8 has half of a surrogate pair, and nothing else is refused."""
    written = f'["{"".join(parts)}"]'.encode()
    try:
        json.dumps(json.loads(written), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidDocument, match="surrogate"):
            encode(written)
    else:
        assert encode(written).text == written


Texts = tuple[str, str]  # a JSON text with space between its tokens, and the same without


def spaced_array(values: list[Texts]) -> Texts:
    return "[ " + "\t,\n".join(spaced for spaced, _ in values) + " ]", "[" + ",".join(kept for _, kept in values) + "]"


def spaced_object(values: list[Texts]) -> Texts:
    names = [f'"{at} \\""' for at in range(len(values))]
    spaced = " , ".join(f"{name} :\r\n{spaced}" for name, (spaced, _) in zip(names, values, strict=True))
    kept = ",".join(f"{name}:{kept}" for name, (_, kept) in zip(names, values, strict=True))
    return "{ " + spaced + " }", "{" + kept + "}"


spaced_texts = st.recursive(
    st.sampled_from(['""', r'"\\"', r'"\""', '"[{"', '"  "', r'"\\\" ,"', "1", "-1.5e1"]).map(lambda text: (text, text)),
    lambda inner: st.lists(inner).map(spaced_array) | st.lists(inner).map(spaced_object),
    max_leaves=30,
)


@given(spaced_texts)
def test_space_in_strings_stays(texts: Texts) -> None:
    """Space between tokens goes, and no other."""
    written, kept = texts
    assert encode(written.encode()).text.decode() == kept


@given(st.integers(1, MAX_DEPTH + 4), st.sampled_from(["[%s]", '{"[":%s}', '[[],%s,"]"]', r'["\\",%s,"\""]']), st.booleans())
def test_depth(depth: int, around: str, has_sibling: bool) -> None:
    """The outermost level counts 1; brackets in strings count nothing."""
    text = "[]"
    for _ in range(depth - 1):
        text = around % text
    if has_sibling:
        text = f"[{text},{text}]"
    body = text.encode()
    if depth + has_sibling > MAX_DEPTH:
        with pytest.raises(InvalidDocument, match="levels deep"):
            encode(body)
    else:
        assert encode(body).text == body


@pytest.mark.parametrize(
    "number", ["1e308", "1e0308", "1E+00308", "9" * 200 + "e99", "9" * 308 + ".0", "0." + "0" * 300 + "1e309"]
)
def test_numbers_of_a_double(number: str) -> None:
    """A number in the range of a double is taken, however it is spelled."""
    assert encode(b"[%b]" % number.encode()).text == b"[%b]" % number.encode()


@pytest.mark.parametrize(
    "number", ["1e309", "1e0309", "1E+00309", "9" * 210 + "e99", "9" * 309 + ".0", "1" + "0" * 250 + "e99"]
)
def test_numbers_beyond_a_double(number: str) -> None:
    """A number that is too large is refused, wherever it stands."""
    for body in (number, f"[[{number}]]", f'{{"a":{{"b":{number}}}}}'):
        with pytest.raises(InvalidDocument, match="range of a double"):
            encode(body.encode())


@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:0-9.eE+\\u \ndD8aN\x00ttl'), max_size=40).map(str.encode))
def test_any_body_is_stored_or_refused(body: bytes) -> None:
    """No bytes make the codec fail in another way than by a Problem, and what it takes Python's own parser reads alike."""
    try:
        encoded = encode(body)
    except (InvalidDocument, InvalidTTL, ContentTooLarge):
        return
    members = json.loads(body)
    if isinstance(members, dict):
        members.pop("ttl", None)
    assert json.loads(encoded.text) == members
