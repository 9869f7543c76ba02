"""HTTP/1.1 on the wire: what the production server takes for a request, what it refuses, and where one ends.

Sources: RFC 9112 (HTTP/1.1), RFC 9110 sections 5 (fields), 10.1.1 (Expect), 9.3.2 (HEAD). Rows are whole requests, byte by
byte; most run twice, over a socket, and fed to the protocol class in every possible pair of pieces.
"""

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import h11
import pytest
import redis
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvstore.commands.containers import List
from kvstore.core.errors import NotFound
from kvstore.core.json_text import MAX_BYTES
from kvstore.core.paths import parse_path
from kvstore.core.settings import Settings
from kvstore.http.messages import Request, Response
from kvstore.runtime import Runtime
from kvstore.serving import bounds, http1
from kvstore.serving import connection as server
from kvstore.serving import server as shared
from tests.support.inprocess import InProcess
from tests.support.stores import Running, contents, wait_until
from tests.support.wires import Raw, Wire, in_chunks

HOST = b"Host: x\r\n"
DOCUMENT = b'{"a":1}'


def put(path: bytes, body: bytes = b"1", fields: bytes = b"") -> bytes:
    """A PUT with a Content-Length."""
    return b"PUT %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), fields, body)


SMUGGLED = put(b"/ns/smuggled")
GET = b"GET /ns/a HTTP/1.1\r\nHost: x\r\n\r\n"


def get(fields: bytes) -> bytes:
    """A GET of a document that is there, with these header fields."""
    return b"GET /ns/a HTTP/1.1\r\n" + fields + b"\r\n"


def chunked(body: bytes, *, fields: bytes = b"Transfer-Encoding: chunked\r\n") -> bytes:
    """A PUT whose body is written as it is given: chunks and all."""
    return b"PUT /ns/new HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + body


def with_length(length: bytes, body: bytes = b"1") -> bytes:
    """A PUT that declares this length."""
    return b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nContent-Length:" + length + b"\r\n\r\n" + body


# What is well-formed: name, bytes, statuses of the answers in order, whether the connection stays open.
READ = [
    ("a GET", GET, [200], True),
    ("a HEAD", b"HEAD /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", [200], True),
    ("a PUT", put(b"/ns/new"), [201], True),
    ("a DELETE", b"DELETE /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", [204], True),
    ("an unknown method", b"BREW /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", [405], True),
    ("a method of any token", b"M-S.'!#$%&*+^_`|~09 /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", [405], True),
    ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", [(400, 405, 501)], True),
    ("absolute form", b"GET http://example.org/ns/a HTTP/1.1\r\nHost: x\r\n\r\n", [200], True),
    ("absolute form without a path", b"GET http://example.org HTTP/1.1\r\nHost: x\r\n\r\n", [404], True),
    ("asterisk form", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [204], True),
    ("raw UTF-8 in the path", "GET /ns/é HTTP/1.1\r\nHost: x\r\n\r\n".encode(), [404], True),
    ("an empty line first", b"\r\n" + GET, [200], True),
    ("an empty line between", GET + b"\r\n" + GET, [200, 200], True),
    ("two empty lines first", b"\r\n\r\n" + GET, [200], True),
    ("no space after the colon", get(b"Host:x\r\n"), [200], True),
    ("space around the value", get(b"Host: \t x \t \r\n"), [200], True),
    ("an empty value", get(HOST + b"X:\r\n"), [200], True),
    ("an empty Host", get(b"Host:\r\n"), [200], True),
    ("a Host with a port", get(b"Host: [::1]:8000\r\n"), [200], True),
    ("any case", get(b"hOST: x\r\n"), [200], True),
    ("Latin-1 in a value", get(HOST + b"X: \xe9\r\n"), [200], True),
    ("one field twice", get(HOST + b"X: 1\r\nX: 2\r\n"), [200], True),
    ("two requests", GET + GET, [200, 200], True),
    ("ten requests", GET * 10, [200] * 10, True),
    ("a PUT, then its GET", put(b"/ns/new") + b"GET /ns/new HTTP/1.1\r\nHost: x\r\n\r\n", [201, 200], True),
    ("a refused document, then a GET", put(b"/ns/new", b"!") + GET, [400, 200], True),
    ("a refused path, then a GET", b"GET //ns HTTP/1.1\r\nHost: x\r\n\r\n" + GET, [400, 200], True),
    ("a length of zero", b"GET /ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", [200], True),
    ("a length with zeros before it", with_length(b" 0001"), [201], True),
    ("a length with many zeros before it", with_length(b" " + b"0" * 40 + b"1"), [201], True),
    (
        "the body of a GET is passed over",
        b"GET /ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /" + GET,
        [200, 200],
        True,
    ),
    (
        "the body of a DELETE is passed over",
        b"DELETE /ns/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nGET" + GET,
        [204, 404],
        True,
    ),
    ("chunks", chunked(b"1\r\n[\r\n1\r\n]\r\n0\r\n\r\n"), [201], True),
    ("Chunked", chunked(b"1\r\n1\r\n0\r\n\r\n", fields=b"Transfer-Encoding: Chunked\r\n"), [201], True),
    ("a chunk's size in upper case", chunked(b"A\r\n0.00000000\r\n0\r\n\r\n"), [201], True),
    ("a chunk's size with zeros before it", chunked(b"001\r\n1\r\n000\r\n\r\n"), [201], True),
    ("a chunk extension", chunked(b"1;x=1\r\n1\r\n0;last\r\n\r\n"), [201], True),
    ("a quoted chunk extension", chunked(b'1 ; x="a;b"\r\n1\r\n0\r\n\r\n'), [201], True),
    ("a trailer", chunked(b"1\r\n1\r\n0\r\nX: y\r\n\r\n"), [201], True),
    ("a trailer is no header field", chunked(b'1\r\n1\r\n0\r\nIf-Match: "1-1"\r\n\r\n'), [201], True),
    ("a trailer does not lengthen the body", chunked(b"1\r\n1\r\n0\r\nContent-Length: 9\r\n\r\n") + GET, [201, 200], True),
    ("chunks, then a GET", chunked(b"1\r\n1\r\n0\r\n\r\n") + GET, [201, 200], True),
    ("a whole request as a chunk", chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)) + GET, [400, 200], True),
    ("an Expect we do not know", get(HOST + b"Expect: a-miracle\r\n"), [(200, 417)], True),
    ("an Upgrade is passed over", get(HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), [200], True),
    ("close", get(HOST + b"Connection: close\r\n"), [200], False),
    ("CLOSE among others", get(HOST + b"Connection: x, CLOSE\r\n"), [200], False),
    ("nothing is read after close", get(HOST + b"Connection: close\r\n") + SMUGGLED, [200], False),
    (
        "nothing is read after close on what needs no store",
        b"OPTIONS /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + SMUGGLED,
        [204],
        False,
    ),
    (
        "nothing is read after close on a refused path",
        b"GET //a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + SMUGGLED,
        [400],
        False,
    ),
    ("1.0", b"GET /ns/a HTTP/1.0\r\n\r\n", [200], False),
    ("1.0 with a body", b"PUT /ns/new HTTP/1.0\r\nContent-Length: 1\r\n\r\n1", [201], False),
    ("1.0 that keeps the connection", b"GET /ns/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", [200], True),
    ("1.0 that keeps the connection, twice", b"GET /ns/a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" * 2, [200, 200], True),
]

# What is not HTTP/1.1, or might be read by somebody else as another request: refused, the connection closed, nothing stored
# and nothing that follows read. Name, bytes, statuses of which one is right.
BAD, BAD_OR_501 = (400,), (400, 501)
REFUSED = [
    # the request line
    ("nothing but a word", b"GET\r\n\r\n", BAD),
    ("HTTP/0.9", b"GET /ns/a\r\n\r\n", BAD),
    ("no target", b"GET HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("an empty target", b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("two spaces before the target", b"GET  /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("two spaces after the target", b"GET /ns/a  HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("tabs", b"GET\t/ns/a\tHTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a space in the target", b"GET /ns/a b HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a space first", b" GET /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a space last", b"GET /ns/a HTTP/1.1 \r\nHost: x\r\n\r\n", BAD),
    ("a NUL in the target", b"GET /ns/\0a HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a DEL in the target", b"GET /ns/\x7f HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a carriage return in the target", b"GET /ns/\ra HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a line feed in the target", b"GET /ns/\na HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a carriage return at the line's end", b"GET /ns/a HTTP/1.1\r\r\nHost: x\r\n\r\n", BAD),
    ("a method that is no token", b"G(T /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a method of no letters at all", b"\xff\xfe /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", BAD),
    ("a command of Redis", b"*1\r\n$4\r\nPING\r\n\r\n\r\n", BAD),
    ("lower-case version", b"GET /ns/a http/1.1\r\nHost: x\r\n\r\n", BAD),
    ("another protocol", b"GET /ns/a ICY/1.1\r\nHost: x\r\n\r\n", BAD),
    ("no version number", b"GET /ns/a HTTP/\r\nHost: x\r\n\r\n", BAD),
    ("a version of words", b"GET /ns/a HTTP/one\r\nHost: x\r\n\r\n", BAD),
    ("a version with more digits", b"GET /ns/a HTTP/1.10\r\nHost: x\r\n\r\n", (400, 505)),
    ("HTTP/1.2", b"GET /ns/a HTTP/1.2\r\nHost: x\r\n\r\n", (400, 505)),
    ("HTTP/2.0", b"GET /ns/a HTTP/2.0\r\nHost: x\r\n\r\n", (505,)),
    ("HTTP/3", b"GET /ns/a HTTP/3\r\nHost: x\r\n\r\n", (505,)),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,)),
    # fields
    ("no Host", b"GET /ns/a HTTP/1.1\r\n\r\n", BAD),
    ("no Host in a PUT", b"PUT /ns/new HTTP/1.1\r\nContent-Length: 1\r\n\r\n1", BAD),
    ("two Hosts", get(HOST + b"Host: y\r\n"), BAD),
    ("one Host twice", get(HOST + HOST), BAD),
    ("a Host with a space", get(b"Host: a b\r\n"), BAD),
    ("a Host with a path", get(b"Host: a/b\r\n"), BAD),
    ("a Host with a user", get(b"Host: u@a\r\n"), BAD),
    ("two Hosts in one", get(b"Host: a, b\r\n"), BAD),
    ("a line without a colon", get(HOST + b"X\r\n"), BAD),
    ("a line without a name", get(HOST + b": x\r\n"), BAD),
    ("a space before the colon", get(b"Host : x\r\n"), BAD),
    ("a tab before the colon", get(b"Host\t: x\r\n"), BAD),
    ("a space in a name", get(HOST + b"X Y: z\r\n"), BAD),
    ("a bracket in a name", get(HOST + b"X(: z\r\n"), BAD),
    ("an umlaut in a name", get(HOST + b"X\xfc: z\r\n"), BAD),
    ("a folded line", get(HOST + b"X: a\r\n b\r\n"), BAD),
    ("a line folded by a tab", get(HOST + b"X: a\r\n\tb\r\n"), BAD),
    ("a folded first line", get(b" Host: x\r\n"), BAD),
    ("a NUL in a value", get(HOST + b"X: a\0b\r\n"), BAD),
    ("a DEL in a value", get(HOST + b"X: a\x7fb\r\n"), BAD),
    ("a bare line feed in a value", get(HOST + b"X: a\nContent-Length: 5\r\n"), BAD),
    ("a bare carriage return in a value", get(HOST + b"X: a\rContent-Length: 5\r\n"), BAD),
    ("a bare line feed after the request line", b"GET /ns/a HTTP/1.1\nHost: x\r\n\r\n", BAD),
    # Content-Length
    ("a length with a plus", with_length(b" +1"), BAD),
    ("a length with a minus", with_length(b" -1"), BAD),
    ("a length with a space in it", with_length(b" 1 1", b"1" * 11), BAD),
    ("a length with an underscore", with_length(b" 1_0", b"1" * 10), BAD),
    ("a length in hexadecimal", with_length(b" 0x1"), BAD),
    ("a length with a point", with_length(b" 1.0"), BAD),
    ("a length with an exponent", with_length(b" 1e0"), BAD),
    ("a length of other digits", with_length(" ١".encode()), BAD),
    ("a superscript length", with_length(b" \xb2", b"11"), BAD),
    ("an empty length", with_length(b""), BAD),
    ("a length in quotes", with_length(b' "1"'), BAD),
    ("a list of lengths", with_length(b" 1, 1"), BAD),
    ("a list of other lengths", with_length(b" 1, 2"), BAD),
    ("two lengths", with_length(b" 1\r\nContent-Length: 2") + b"1", BAD),
    ("one length twice", with_length(b" 1\r\nContent-Length: 1"), BAD),
    ("one byte more than we store", with_length(b" %d" % (MAX_BYTES + 1), b""), (413,)),
    ("2 GiB", with_length(b" 2147483648", b""), (413,)),
    ("a length of 64 bits", with_length(b" 18446744073709551616", b""), (413,)),
    ("a length of 400 digits", with_length(b" " + b"9" * 400, b""), (413,)),
    ("a length of 5,000 digits", with_length(b" " + b"9" * 5000, b""), (413,)),
    # Transfer-Encoding
    ("both", chunked(b"0\r\n\r\n" + SMUGGLED, fields=b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), BAD),
    (
        "both, in the other order",
        chunked(b"0\r\n\r\n" + SMUGGLED, fields=b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        BAD,
    ),
    (
        "both, the length zero",
        chunked(b"0\r\n\r\n" + SMUGGLED, fields=b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
        BAD,
    ),
    (
        "both, the coding unknown",
        chunked(b"0\r\n\r\n" + SMUGGLED, fields=b"Transfer-Encoding: x\r\nContent-Length: 5\r\n"),
        BAD_OR_501,
    ),
    (
        "chunked twice",
        chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        BAD_OR_501,
    ),
    ("chunked, chunked", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: chunked, chunked\r\n"), BAD_OR_501),
    (
        "chunked and another",
        chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n"),
        BAD_OR_501,
    ),
    ("gzip, chunked", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: gzip, chunked\r\n"), BAD_OR_501),
    ("chunked, identity", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: chunked, identity\r\n"), BAD_OR_501),
    ("identity", chunked(b"1", fields=b"Transfer-Encoding: identity\r\n"), BAD_OR_501),
    ("an empty coding", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding:\r\n"), BAD_OR_501),
    ("almost chunked", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: xchunked\r\n"), BAD_OR_501),
    ("chunked in quotes", chunked(b"0\r\n\r\n", fields=b'Transfer-Encoding: "chunked"\r\n'), BAD_OR_501),
    ("chunked with a parameter", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: chunked;q=1\r\n"), BAD_OR_501),
    ("chunked after a vertical tab", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding: \x0bchunked\r\n"), BAD),
    ("chunked with a space before the colon", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding : chunked\r\n"), BAD),
    ("chunked folded", chunked(b"0\r\n\r\n", fields=b"Transfer-Encoding:\r\n chunked\r\n"), BAD),
    ("chunked in 1.0", b"PUT /ns/new HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD_OR_501),
    # chunks
    ("a chunk without a size", chunked(b"\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk with a plus", chunked(b"+1\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk with a minus", chunked(b"-1\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk with 0x", chunked(b"0x1\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk with an underscore", chunked(b"0_1\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk with a space first", chunked(b" 1\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk of a letter that is no digit", chunked(b"g\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk with other digits", chunked("١\r\n1\r\n0\r\n\r\n".encode()), BAD),
    ("a chunk with two sizes", chunked(b"1 1\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk longer than its size", chunked(b"1\r\n12\r\n0\r\n\r\n"), BAD),
    ("a chunk shorter than its size", chunked(b"3\r\n1\r\n0\r\n\r\n\r\n"), BAD),
    ("a chunk that ends in a line feed", chunked(b"1\r\n1\n0\r\n\r\n\r\n"), BAD),
    ("a size that ends in a line feed", chunked(b"1\n1\r\n0\r\n\r\n"), BAD),
    ("a line feed in an extension", chunked(b"1;x\n1\r\n0\r\n\r\n"), BAD),
    ("a carriage return in an extension", chunked(b"1;x\r1\r\n0\r\n\r\n"), BAD),
    ("a NUL in an extension", chunked(b"1;\0\r\n1\r\n0\r\n\r\n"), BAD),
    ("a chunk larger than we store", chunked(b"%x\r\n" % (MAX_BYTES + 1)), (413,)),
    ("a chunk of 32 bits", chunked(b"ffffffff\r\n"), (413,)),
    ("a chunk of 64 bits and more", chunked(b"10000000000000001\r\n1\r\n0\r\n\r\n"), (400, 413)),
    ("a trailer that is no field", chunked(b"1\r\n1\r\n0\r\nx\r\n\r\n"), BAD),
    ("a folded trailer", chunked(b"1\r\n1\r\n0\r\nX: y\r\n z\r\n\r\n"), BAD),
    ("a trailer with a space before the colon", chunked(b"1\r\n1\r\n0\r\nX : y\r\n\r\n"), BAD),
]

LONGEST = b"/ns/" + b"%61" * 1020  # 1,024 bytes decoded
FILL = 8190 - len("GET /ns/a? HTTP/1.1")
# The limits, each reached and passed by one byte: name, bytes, status.
LIMITS = [
    ("the longest path, fully escaped", put(LONGEST), 201),
    ("a line of 8,190 bytes", b"GET /ns/a?%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * FILL), 200),
    ("a line of 8,191 bytes", b"GET /ns/a?%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * (FILL + 1)), 414),
    ("a line of 1 MiB", b"GET /ns/a?%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 1024 * 1024), 414),
    ("a line without an end", b"GET /ns/a?" + b"x" * 9000, 414),
    ("fields of 30 KiB", get(HOST + b"X: %b\r\n" % (b"x" * 30 * 1024)), 200),
    ("many fields of 30 KiB", get(HOST + b"X: 1\r\n" * 5000), 200),
    ("fields of 40 KiB", get(HOST + b"X: %b\r\n" % (b"x" * 40 * 1024)), 431),
    ("many fields of 40 KiB", get(HOST + b"X: 1\r\n" * 7000), 431),
    ("fields of 1 MiB", get(HOST + b"X: %b\r\n" % (b"x" * 1024 * 1024)), 431),
    ("fields without an end", get(HOST + b"X: 1\r\n" * 7000)[:-2], 431),
    ("a body at the limit", put(b"/ns/new", b"1".ljust(MAX_BYTES)), 201),
    ("a body at the limit, in chunks", chunked(in_chunks(b"1".ljust(MAX_BYTES))), 201),
    ("a body at the limit, in one chunk", chunked(in_chunks(b"1".ljust(MAX_BYTES), MAX_BYTES)), 201),
    ("a body one byte over", put(b"/ns/new", b"1".ljust(MAX_BYTES + 1)), 413),
    ("a body one byte over, in chunks", chunked(in_chunks(b"1".ljust(MAX_BYTES + 1))), 413),
    ("a body one byte over, in one chunk", chunked(in_chunks(b"1".ljust(MAX_BYTES + 1), MAX_BYTES + 1)), 413),
    ("a body of 8 MiB", put(b"/ns/new", b"1".ljust(8 * MAX_BYTES)), 413),
    ("a body of 8 MiB, in chunks", chunked(in_chunks(b"1".ljust(8 * MAX_BYTES))), 413),
    ("a chunk extension of 9,000 bytes", chunked(b"1;%b\r\n1\r\n0\r\n\r\n" % (b"x" * 9000)), 400),
    ("a trailer of 9,000 bytes", chunked(b"1\r\n1\r\n0\r\nX: %b\r\n\r\n" % (b"x" * 9000)), 400),
    ("trailers of 2 MiB", chunked(b"1\r\n1\r\n0\r\n" + b"X: 1\r\n" * 350_000 + b"\r\n"), 400),
]


@pytest.fixture(scope="module")
def redis_server(started: Callable[[str], Running]) -> Running:
    """The server these tests store in."""
    return started("redis")


@pytest.fixture(scope="module")
def listening(redis_server: Running) -> Iterator[InProcess]:
    """The production server."""
    running = InProcess(redis_server.url)
    yield running
    running.stop()


@pytest.fixture
def stored(redis_server: Running, listening: InProcess) -> redis.Redis:
    """What is stored: one document, /ns/a."""
    redis_server.redis.flushall()
    assert ask(listening, put(b"/ns/a", DOCUMENT)).status == 201
    client: redis.Redis = redis_server.redis
    return client


def ask(listening: InProcess, sent: bytes, method: str = "GET") -> Raw:
    """The first answer on a connection of its own."""
    wire = listening.connect()
    wire.send_what_is_read(sent)
    answer = wire.answer(method)
    wire.close()
    return answer


def method_of(sent: bytes) -> str:
    return "HEAD" if sent.startswith(b"HEAD ") else "GET"


def named(rows: list[Any]) -> dict[str, Any]:
    return {"argvalues": [row[1:] for row in rows], "ids": [row[0] for row in rows]}


# --- Over a socket ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "statuses", "stays"), **named(READ))
def test_read(listening: InProcess, stored: redis.Redis, sent: bytes, statuses: list[Any], stays: bool) -> None:
    """What is well-formed is answered, in order, and the connection stays or ends as HTTP says."""
    wire = listening.connect()
    wire.send(sent)
    for status in statuses:
        answer = wire.answer(method_of(sent))
        assert answer.status == status or answer.status in (status if isinstance(status, tuple) else ())
        assert [name for name, _ in answer.lines].count("Date") == 1
    assert answer.closes != stays
    if stays:
        wire.send(GET)
        assert wire.answer().status in (200, 404)
    else:
        assert wire.rest() == b""
    wire.close()
    assert not stored.exists("kv:{ns}/smuggled")


@pytest.mark.parametrize(("sent", "statuses"), **named(REFUSED))
def test_refused(listening: InProcess, stored: redis.Redis, sent: bytes, statuses: tuple[int, ...]) -> None:
    """What is not HTTP is refused, nothing behind it is read, nothing is stored."""
    before = contents(stored)
    wire = listening.connect()
    wire.send_what_is_read(sent + SMUGGLED + GET)
    answer = wire.answer()
    assert answer.status in statuses
    assert answer.closes
    assert wire.rest() == b"", "one answer and no more"
    wire.close()
    assert contents(stored) == before


@pytest.mark.parametrize(("sent", "status"), **named(LIMITS))
def test_limits(listening: InProcess, stored: redis.Redis, sent: bytes, status: int) -> None:
    """What is too long is refused with its own status, and the connection closed."""
    before = contents(stored)
    wire = listening.connect()
    wire.send_what_is_read(sent)
    answer = wire.answer()
    assert answer.status == status
    assert answer.closes == (status >= 400)
    if status >= 400:
        assert wire.rest() == b""
        assert contents(stored) == before
    wire.close()


@pytest.mark.parametrize(
    "sent",
    [put(b"/ns/a", b" " * 16 * MAX_BYTES), chunked(in_chunks(b" " * 16 * MAX_BYTES))],
    ids=["declared", "chunked"],
)
def test_a_client_that_sends_all_before_it_reads(listening: InProcess, stored: redis.Redis, sent: bytes) -> None:
    """It finds its 413, and no reset connection: what it sends is taken for a while (RFC 9112 section 9.6)."""
    wire = listening.connect()
    wire.send(sent)
    assert wire.answer().status == 413
    wire.close()


HEADERS_ONLY = [
    ("HEAD", b"HEAD /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ("HEAD of nothing", b"HEAD /ns/none HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    ("HEAD that is refused", b"HEAD //ns HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("HEAD without a Host", b"HEAD /ns/a HTTP/1.1\r\n\r\n", 400),
    ("HEAD with a line that is no field", b"HEAD /ns/a HTTP/1.1\r\nHost: x\r\nX\r\n\r\n", 400),
    ("204 on DELETE", b"DELETE /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", 204),
    ("204 on OPTIONS", b"OPTIONS /ns/a HTTP/1.1\r\nHost: x\r\n\r\n", 204),
    ("304", b"GET /ns/a HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n", 304),
]


@pytest.mark.parametrize(("sent", "status"), **named(HEADERS_ONLY))
def test_no_body(listening: InProcess, stored: redis.Redis, sent: bytes, status: int) -> None:
    """Nothing follows the head of an answer that has no body, but the next answer (RFC 9112 section 6.3)."""
    wire = listening.connect()
    wire.send(sent)
    answer = wire.answer("HEAD")
    assert answer.status == status
    assert (status in (200, 204, 304)) == ("Content-Length" not in dict(answer.lines))
    if answer.closes:
        assert wire.rest() == b""
    else:
        wire.send(GET)
        assert wire.answer().status in (200, 404)
    wire.close()


def test_date(listening: InProcess, stored: redis.Redis) -> None:
    """Date is there, once, and right within two seconds (RFC 9110 section 6.6.1)."""
    asked_at = time.time()
    date = dict(ask(listening, GET).lines)["Date"]
    read = time.mktime(time.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
    assert asked_at - 2 < read <= time.time()


def test_keep_alive_of_1_0_is_said(listening: InProcess, stored: redis.Redis) -> None:
    """A client of HTTP/1.0 that asks to keep the connection waits for its end unless it is told (RFC 9112 appendix C.2.2)."""
    answer = ask(listening, b"GET /ns/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert ("connection", "keep-alive") in [(name.lower(), value.lower()) for name, value in answer.lines]


# Expect: 100-continue. Head of a PUT, statuses 1xx that come before its body is sent, and the status after.
EXPECT = b"Expect: 100-continue\r\n"
CONTINUE = [
    ("wanted", b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n" + EXPECT, b"1", [100], 201),
    (
        "wanted, in any case",
        b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nexpect: 100-Continue\r\n",
        b"1",
        [100],
        201,
    ),
    (
        "wanted, in chunks",
        b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + EXPECT,
        b"1\r\n1\r\n0\r\n\r\n",
        [100],
        201,
    ),
    ("not asked for", b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n", b"1", [], 201),
    ("1.0 does not know it", b"PUT /ns/new HTTP/1.0\r\nContent-Length: 1\r\n" + EXPECT, b"1", [], 201),
    ("no body", b"GET /ns/a HTTP/1.1\r\nHost: x\r\n" + EXPECT, b"", [], 200),
    ("a body of nothing", b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + EXPECT, b"", [], 400),
    ("too large", b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n" + EXPECT, b"", [], 413),
    ("a bad length", b"PUT /ns/new HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n" + EXPECT, b"", [], 400),
    ("no Host", b"PUT /ns/new HTTP/1.1\r\nContent-Length: 1\r\n" + EXPECT, b"", [], 400),
]


@pytest.mark.parametrize("row", [row[1:] for row in CONTINUE], ids=[row[0] for row in CONTINUE])
def test_100_continue(listening: InProcess, stored: redis.Redis, row: tuple[bytes, bytes, list[int], int]) -> None:
    """A client that waits is told to go on, once, and only where the body will be read (RFC 9110 section 10.1.1)."""
    head, body, interim, status = row
    wire = listening.connect()
    wire.send(head + b"\r\n")
    if interim:
        wait_until(lambda: wire.socket.recv(100, socket.MSG_PEEK).endswith(b"\r\n\r\n"), 30)
    if body:
        wire.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wire.answer()
        assert wire.interim == interim
        wire.socket.settimeout(30)
        wire.send(body)
    assert wire.answer().status == status
    assert wire.interim == interim
    wire.close()


def test_no_100_where_the_body_is_there(listening: InProcess, stored: redis.Redis) -> None:
    """A client that did not wait is not told to go on."""
    wire = listening.connect()
    wire.send(put(b"/ns/new", fields=EXPECT) + GET)
    assert [wire.answer().status, wire.answer().status] == [201, 200]
    assert wire.interim == []
    wire.close()


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (GET, [200]),
        (put(b"/ns/new"), [201]),
        (GET * 3, [200] * 3),
        (put(b"/ns/b") + GET, [201, 200]),
        (GET.replace(b"/ns/a", b"/_/ready") * 2 + GET, [200] * 3),
    ],
)
def test_a_half_closed_client_is_answered(listening: InProcess, stored: redis.Redis, sent: bytes, statuses: list[int]) -> None:
    """A client that has said all it will say gets an answer to all of it, then the connection ends."""
    wire = listening.connect()
    wire.send(sent)
    wire.half_close()
    assert [wire.answer().status for _ in statuses] == statuses
    assert wire.rest() == b""
    wire.close()


def test_a_half_closed_client_that_reads_late_is_answered(listening: InProcess, stored: redis.Redis) -> None:
    """Also what waited for room, when it says that it will send nothing more."""
    wire = listening.connect()
    large = put(b"/ns/large", b'"%b"' % (b"x" * 100_000))
    wire.send(large)
    assert wire.answer().status == 201
    wire.send(GET.replace(b"/ns/a", b"/ns/large") * 200)
    time.sleep(0.3)
    wire.half_close()
    assert [wire.answer().status for _ in range(200)] == [200] * 200
    assert wire.rest() == b""
    wire.close()


def test_a_reply_that_goes_on_has_its_time_to_be_taken() -> None:
    """Also where its head alone has filled what the kernel takes."""

    async def due() -> float:
        connection = server.ClientConnection(server_of(Answering()))
        taken = Socket()
        taken.write = lambda written: connection.pause_writing()  # type: ignore[method-assign]
        connection.connection_made(taken)
        connection.data_received(GET)
        await asyncio.sleep(0)
        connection._send(
            Request("GET", b"/ns/", {}), Response(200, (), b"1", List(parse_path(b"/ns/"), "", 1, False, True, False, ""))
        )
        return connection.due - asyncio.get_running_loop().time()

    assert 0 < asyncio.run(due()) <= bounds.WRITE_S


ABORTED = [
    ("half a line", b"PUT /ns/ne"),
    ("half a head", put(b"/ns/new")[:-12]),
    ("no body", put(b"/ns/new")[:-1]),
    ("half a body that is JSON", put(b"/ns/new", b"12")[:-1]),
    ("a chunk that is JSON, without the last", chunked(b"1\r\n1\r\n")),
    ("without the last line", chunked(b"1\r\n1\r\n0\r\n")),
    ("within the last line", chunked(b"1\r\n1\r\n0\r\n\r")),
    ("within a trailer", chunked(b"1\r\n1\r\n0\r\nX: y\r\n")),
]


@pytest.mark.parametrize("end", [Wire.close, Wire.half_close, Wire.abort], ids=["closed", "half-closed", "reset"])
@pytest.mark.parametrize("sent", **named([(name, sent) for name, sent in ABORTED]) | {"argvalues": [row[1] for row in ABORTED]})
def test_an_aborted_request_stores_nothing(
    listening: InProcess, stored: redis.Redis, sent: bytes, end: Callable[[Wire], None]
) -> None:
    """Half a request is none, and the connection is not kept."""
    before, others = contents(stored), set(listening.server.connections)
    wire = listening.connect()
    wire.send(sent)
    wait_until(lambda: listening.server.connections - others, 30)
    end(wire)
    wait_until(lambda: not listening.server.connections - others, 30)
    wire.close()
    assert contents(stored) == before


@pytest.fixture
def impatient(redis_server: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """The production server, which looks often whose time is over."""
    monkeypatch.setattr(shared, "CHECK_S", 0.02)
    running = InProcess(redis_server.url)
    yield running
    running.stop()


# What never becomes a request: it ends with the time limit.
ENDLESS = [
    ("HTTP/0.9", b"GET /ns/a\r\n", 408),
    ("bare line feeds", b"GET /ns/a HTTP/1.1\nHost: x\n\n", (400, 408)),
    ("half a line", b"GET /ns/a HT", 408),
    ("half a head", b"GET /ns/a HTTP/1.1\r\nHost:", 408),
    ("no body", put(b"/ns/new")[:-1], 408),
    ("half a body", put(b"/ns/new", b"12")[:-1], 408),
    ("half a chunk", chunked(b"3\r\n1"), 408),
    ("no last chunk", chunked(b"1\r\n1\r\n"), 408),
    ("no end of the trailers", chunked(b"1\r\n1\r\n0\r\n"), 408),
]


async def let_time_pass(running: InProcess) -> None:
    """Let the time of what has begun be over, which is limited."""
    for connection in running.server.connections:
        assert connection.due <= asyncio.get_running_loop().time() + bounds.BODY_S
        connection.due = 0.0


@pytest.mark.parametrize(("sent", "statuses"), **named(ENDLESS))
def test_what_never_ends(impatient: InProcess, stored: redis.Redis, sent: bytes, statuses: Any) -> None:
    """It is refused when its time is over, and nothing is stored."""
    before = contents(stored)
    wire = impatient.connect()
    wire.send(sent)
    wait_until(lambda: impatient.server.connections, 30)
    impatient.catch_up()
    impatient.run(let_time_pass(impatient))
    answer = wire.answer()
    assert answer.status in (statuses if isinstance(statuses, tuple) else (statuses,))
    assert answer.closes
    assert wire.rest() == b""
    wire.close()
    assert contents(stored) == before


def test_pipelined_requests_a_byte_at_a_time(listening: InProcess, stored: redis.Redis) -> None:
    """Over a real socket as well: three requests in packets of one byte are three answers in order."""
    sent = put(b"/ns/b", b"[1]") + chunked(b"1\r\n2\r\n0\r\n\r\n") + b"GET /ns/b HTTP/1.1\r\nHost: x\r\n\r\n"
    wire = listening.connect()
    wire.trickle([sent[at : at + 1] for at in range(len(sent))], pause_s=0)
    assert [wire.answer() for _ in range(3)][2].body == b"[1]\n"
    wire.close()


# --- Without a socket: every split of the bytes -------------------------------------------------------------------------


class Played(NamedTuple):
    """What came of some bytes: the requests that were read, what was written, whether the connection was closed."""

    requests: list[Request]
    written: bytes
    closed: bool


class Socket(asyncio.Transport):
    """A transport into memory."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, written: Any) -> None:
        assert not self.closed, "nothing is written after close"
        self.written += written

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Answering:
    """A store that answers one turn of the loop later, as a real one does."""

    def submit(self, command: object, done: Callable[[Any, Any], None], context: Any) -> None:
        asyncio.get_running_loop().call_soon(done, context, NotFound("thing doesn't exist: nothing is stored here"))

    async def execute(self, command: object) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def server_of(store: Any) -> shared.Server:
    """A server that nobody follows and nobody waits for."""
    nobody: Any = None
    return shared.Server(
        Runtime(Settings(express=False), store, nobody, nobody, nobody, nobody)
    )  # each request is one that a test sees


class Player:
    """Feeds bytes, piece by piece, to a connection of a server whose store has nothing."""

    def __init__(self) -> None:
        self.server = server_of(Answering())

    async def play(self, pieces: list[bytes]) -> Played:
        requests: list[Request] = []
        connection, transport = server.ClientConnection(self.server), Socket()
        decide = vars(server)["decide"]

        def note(request: Request, *others: object) -> object:
            requests.append(request)
            return decide(request, *others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.server, "decide", note)
            patch.setattr(server, "decide", note)
            connection.connection_made(transport)
            for piece in pieces:
                if transport.closed:
                    break
                connection.data_received(piece)
                for _ in range(2):
                    await asyncio.sleep(0)
            for _ in range(30):
                await asyncio.sleep(0)
            connection.connection_lost(None)
        written = bytes(transport.written).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
        return Played(requests, re.sub(rb"\r\nDate: [^\r]+", b"", written), transport.closed)


def play(*ways: list[bytes]) -> list[Played]:
    """What comes of each way to cut the same bytes into pieces."""

    async def play_all() -> list[Played]:
        player = Player()
        return [await player.play(way) for way in ways]

    return asyncio.run(play_all())


def cuts(sent: bytes) -> list[list[bytes]]:
    """The bytes in one piece, in single bytes, and in two pieces cut anywhere."""
    return [[sent], [sent[at : at + 1] for at in range(len(sent))], *([sent[:at], sent[at:]] for at in range(1, len(sent)))]


ROWS: list[Any] = [*READ, *REFUSED]
SHORT = [row for row in ROWS if len(row[1]) <= 1000]


@pytest.mark.parametrize("sent", argvalues=[row[1] for row in SHORT], ids=[row[0] for row in SHORT])
def test_any_split_is_read_alike(sent: bytes) -> None:
    """However the bytes come, they are the same requests and get the same answers."""
    whole, *others = play(*cuts(sent))
    for other in others:
        assert other == whole


@pytest.mark.few
@pytest.mark.parametrize(
    "sent", argvalues=[row[1] for row in LIMITS if len(row[1]) < 50_000], ids=[row[0] for row in LIMITS if len(row[1]) < 50_000]
)
def test_any_split_finds_the_same_limit(sent: bytes) -> None:
    """Also where a limit is reached or passed."""
    ways = [[sent[at : at + size] for at in range(0, len(sent), size)] for size in (1, 7, 100, 4096)]
    whole, *others = play([sent], *ways)
    for other in others:
        assert other == whole


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nf4240\r\n"])
def test_what_trickles_costs_the_same_however_much_is_there(framing: bytes) -> None:
    """A byte of a body is not paid for with a copy of all that came before it."""

    def cost_s(there: int) -> float:
        reader = http1.Reader()
        reader.feed(b"PUT /ns/a HTTP/1.1\r\nHost: x\r\n" + framing)
        reader.next()
        reader.feed(b" " * there)
        begun = time.thread_time()
        for _ in range(500):
            reader.feed(b" ")
            assert reader.next() is None
        return time.thread_time() - begun

    assert min(cost_s(900_000) for _ in range(3)) < 30 * min(cost_s(1000) for _ in range(3))  # with copies: 80 times


@pytest.mark.parametrize("over", range(-4, 5))
def test_the_limit_of_a_head_is_one_number(over: int) -> None:
    """Whether a head is too large does not depend on how it came."""
    sent = get(HOST + b"X: %b\r\n" % (b"x" * (bounds.MAX_HEAD_BYTES - 32 + over)))
    whole, bytewise = play([sent], [sent[:-40], *(sent[at : at + 1] for at in range(len(sent) - 40, len(sent)))])
    assert whole == bytewise


# --- h11 as a second opinion --------------------------------------------------------------------------------------------

tokens = st.text(st.sampled_from("abcXYZ019!#$%&'*+-.^_`|~"), min_size=1, max_size=12)
targets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30).map(lambda text: "/" + text)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=30).map(str.strip)
OURS = {"host", "content-length", "transfer-encoding", "connection", "expect", "content-type", "upgrade"}
fields = st.lists(st.tuples(tokens, values).filter(lambda field: field[0].lower() not in OURS), max_size=5)
bodies = st.lists(st.binary(max_size=50), max_size=4)


class Sent(NamedTuple):
    """A request that h11 wrote."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    parts: list[bytes]
    chunked: bool


requests = st.builds(Sent, tokens.filter(lambda name: name != "CONNECT"), targets, fields, bodies, st.booleans())


def write_by_h11(connection: h11.Connection, sent: Sent) -> bytes:
    """The bytes of a request, by h11."""
    framing = ("Transfer-Encoding", "chunked") if sent.chunked else ("Content-Length", str(sum(map(len, sent.parts))))
    lines = [("Host", "x"), *sent.fields, framing]
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in lines]
    events: list[h11.Event] = [h11.Request(method=sent.method, target=sent.target, headers=encoded)]
    events += [h11.Data(data=part) for part in sent.parts]
    return b"".join(connection.send(event) or b"" for event in [*events, h11.EndOfMessage()])


def cut(sent: bytes, at: list[int]) -> list[bytes]:
    """The bytes in pieces, cut at these places."""
    places = sorted({place % (len(sent) + 1) for place in at} | {0, len(sent)})
    return [sent[one:two] for one, two in pairwise(places)]


@given(st.lists(requests, min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=12))
def test_what_h11_writes_we_read(sent: list[Sent], at: list[int]) -> None:
    """Whatever requests h11 writes, in any pieces, are read as they were meant, and h11 reads the answers."""
    client = h11.Connection(h11.CLIENT)
    wire = b"".join(write_by_h11(h11.Connection(h11.CLIENT), request) for request in sent)
    (played,) = play(cut(wire, at))
    assert not played.closed
    assert len(played.requests) == len(sent)
    for read, meant in zip(played.requests, sent, strict=True):
        assert (read.method, read.target.decode(), read.body) == (meant.method, meant.target, b"".join(meant.parts))
        expected: dict[str, str] = {}
        for name, value in meant.fields:
            at_name = name.lower()
            expected[at_name] = f"{expected[at_name]}, {value}" if at_name in expected else value
        assert {name: value for name, value in read.headers.items() if name not in OURS} == expected
    client.receive_data(played.written)
    client.receive_data(b"")
    for request in sent:
        client.send(h11.Request(method=request.method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        answer = client.next_event()
        assert isinstance(answer, h11.Response)
        while not isinstance(client.next_event(), h11.EndOfMessage):
            pass
        client.start_next_cycle()
    assert client.trailing_data[0] == b""


PARTS = [
    b"GET /a HTTP/1.1\r\n",
    b"PUT /a HTTP/1.1\r\n",
    b"PUT /a HTTP/1.0\r\n",
    b"Host: x\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length:5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: x\r\n",
    b"Connection: close\r\n",
    b"X: y\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b",",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"1;x\r\n1\r\n",
    b"abc",
    b"5",
    b"\0",
    b"chunked",
]
SHAPES = st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join)
NEARLY = st.tuples(
    st.sampled_from([b"PUT /a HTTP/1.1\r\nHost: x\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\n", b"PUT /a HTTP/1.0\r\n"]), SHAPES
).map(b"".join)


def read_by_h11(wire: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The requests that h11 reads: method, target, body. What it refuses, and what follows, is left out.

    It does not ignore empty lines before a request, as RFC 9112 section 2.2 wants it: they are taken away before it reads.
    """
    found: list[tuple[bytes, bytes, bytes]] = []
    try:
        while True:
            connection = h11.Connection(h11.SERVER)
            if wire := re.sub(rb"\A(?:\r\n)+", b"", wire):
                connection.receive_data(wire)
            event = connection.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED):
                return found
            assert isinstance(event, h11.Request)
            body = b""
            while not isinstance(part := connection.next_event(), h11.EndOfMessage):
                if not isinstance(part, h11.Data):
                    assert part in (h11.NEED_DATA, h11.PAUSED)
                    return found
                body += bytes(part.data)
            found.append((event.method, event.target, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
            wire = connection.trailing_data[0]
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return found


@given(NEARLY | SHAPES, st.lists(st.integers(0, 500), max_size=6))
@hypothesis_settings(max_examples=400)
def test_what_we_read_h11_reads(wire: bytes, at: list[int]) -> None:
    """Nothing is taken for a request that h11 reads differently, and any split of the bytes is read alike."""
    whole, pieces = play([wire], cut(wire, at))
    assert pieces == whole
    ours = [(request.method.encode(), request.target, request.body) for request in whole.requests]
    assert ours == read_by_h11(wire)[: len(ours)]
