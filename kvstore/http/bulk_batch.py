"""The fast path for most batches: only PUTs, or only GETs, of plain paths in one namespace, each path once (DESIGN 26).

The responses are those of `http/batch.py`, but one script does the work, without undoing and with few values per request.
A batch that does not fit takes the slow path of `http/batch.py`. If the script finds that it would refuse one of the requests,
it changes nothing, and the batch takes the slow path too.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from json.encoder import encode_basestring

from kvstore.commands.base import Outcome
from kvstore.commands.batch import Answers
from kvstore.commands.bulk import CREATED, MAX_MEMBERS_AT_ONCE, GetMany, ManyRead, ManyWritten, Otherwise, PutMany
from kvstore.core import codec
from kvstore.core.errors import Problem
from kvstore.core.paths import MAX_BYTES, PLAIN_SEGMENT, parse_path
from kvstore.core.preconditions import tag_time_ms
from kvstore.core.settings import Settings
from kvstore.http.batch import MAX_REQUESTS, Answer, Render, render_answers
from kvstore.http.messages import DOCUMENT, Request, Response, http_date, with_ttl


def parse_bulk(
    request: Request, settings: Settings, otherwise: Otherwise[Outcome]
) -> PutMany[Outcome] | GetMany[Outcome] | None:
    """Return the command of a batch of similar requests; None for any other batch, and for one that may be refused."""
    requests = _split(request.body)
    if not requests:
        return None
    methods, namespaces, names, bodies = zip(*requests, strict=True)
    if not len(set(methods)) == len(set(namespaces)) == 1 or len(set(names)) < len(names):
        return None
    path = parse_path(b"/%b/%b" % (namespaces[0], names[0]))
    if path.text.startswith("/_/") or len(path.namespace) + max(map(len, names)) + 2 > MAX_BYTES:
        return None
    if methods[0] == b"GET":
        return None if any(bodies) else GetMany(path, names, otherwise)
    if request.body.count(b":") > MAX_MEMBERS_AT_ONCE + 3 * len(bodies):  # too much for one script, to all appearance
        return None
    try:
        documents = [codec.encode(body or b"") for body in bodies]
    except Problem:
        return None
    if sum([len(document.fields) for document in documents]) > 2 * MAX_MEMBERS_AT_ONCE:
        return None
    ttls_ms = []
    for _, _, _, asked_s, has_server_values in documents:
        ttl_s = settings.default_ttl_s if asked_s is None else asked_s
        if has_server_values or not 1 <= ttl_s <= settings.max_ttl_s:
            return None
        ttls_ms.append(ttl_s * 1000)
    return PutMany(path, names, documents, ttls_ms, settings.log_length, otherwise)


# A request, as far as needed to find its end; codec.encode checks that a body is JSON. Brackets are nested four deep at most.
# All quantifiers are possessive, so each byte is read once.
_SPACE = r"[ \t\n\r]*+"
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_INSIDE = rf'(?:[^\[\]{{}}"]++|{_STRING})*+'
for _ in range(3):
    _INSIDE = rf'(?:[^\[\]{{}}"]++|{_STRING}|[\[{{]{_INSIDE}[\]}}])*+'
_VALUE = rf'{_STRING}|[\[{{]{_INSIDE}[\]}}]|[^\[\]{{}}", \t\n\r]++'


def _pattern(tokens: str) -> re.Pattern[bytes]:
    """Compile a pattern in which a space stands for JSON's whitespace."""
    return re.compile(
        tokens.replace(" ", _SPACE).replace("SEGMENT", PLAIN_SEGMENT).replace("VALUE", _VALUE).encode("ascii"), re.DOTALL
    )


_begins = _pattern(r' \{ (?:("atomic") : (?:true|false) , )?"requests" : \[').match
_ends = _pattern(r' (?:, ("atomic") : (?:true|false) )?\} ').fullmatch
_request = _pattern(
    r' \{ "method" : "(PUT|GET)" , "path" : "/(SEGMENT)/(SEGMENT(?:/SEGMENT){0,30}+)" (?:, "body" : (VALUE) )?\} ([\],])'
).match


def _split(body: bytes) -> list[Sequence[bytes]]:
    """Return method, namespace, name and body of each request of a batch; an empty list if one of them does not fit."""
    begin = _begins(body)
    at, following = begin.end() if begin else 0, b","
    requests: list[Sequence[bytes]] = []
    while following == b",":
        request = _request(body, at)
        if not request or len(requests) == MAX_REQUESTS:
            return []
        at = request.end()
        *parts, following = request.groups()
        requests.append(parts)
    end = _ends(body, at)
    return requests if begin and end and not (begin[1] and end[1]) else []


def render_responses(request: Request, outcome: Answers[Request, Answer] | ManyWritten | ManyRead, render: Render) -> Response:
    """Return the response to a batch that was executed. `render` is called for each request in it."""
    match outcome:
        case ManyWritten():
            return _written(request, outcome)
        case ManyRead():
            return _read(outcome)
    return render_answers(outcome, render)


def _written(request: Request, written: ManyWritten) -> Response:
    """Return the response to the PUTs of a batch."""
    path, names, documents, ttls_ms, tags, words, lag_ms = written
    location = b',"Location":' + encode_basestring(f"{request.base}/{path.namespace}/")[:-1].encode()
    texts = []
    for name, (_, _, text, *_), ttl_ms, tag, word in zip(names, documents, ttls_ms, tags, words, strict=True):
        dates = _dates(tag.partition(b"-")[0], ttl_ms - lag_ms)
        if word == CREATED:
            texts.append(
                b'{"status":201,"headers":{"ETag":"\\"%b\\"",%b%b%b"},"body":%b}'
                % (tag, dates, location, name, with_ttl(text, ttl_ms))
            )
        else:
            texts.append(b'{"status":200,"headers":{"ETag":"\\"%b\\"",%b},"body":%b}' % (tag, dates, with_ttl(text, ttl_ms)))
    return _responses(texts)


@lru_cache(maxsize=1024)  # most of a batch is written in the same ms
def _dates(time_ms: bytes, ttl_ms: int) -> bytes:
    """Return Last-Modified and Sunset of a document that was written at `time_ms` and expires `ttl_ms` later."""
    written_at_ms = int(time_ms)
    return b'"Last-Modified":"%b","Sunset":"%b"' % (
        http_date(written_at_ms // 1000).encode(),
        http_date((written_at_ms + ttl_ms) // 1000).encode(),
    )


def _read(read: ManyRead) -> Response:
    """Return the response to the GETs of a batch."""
    documents, expires_at_ms, time_ms = read
    texts = []
    for (text, is_object, tag), at_ms in zip(documents, expires_at_ms, strict=True):
        headers, ttl_ms = [], None
        if tag is not None:
            headers.append(f'"ETag":"\\"{tag}\\"","Last-Modified":"{http_date(tag_time_ms(tag) // 1000)}"')
        if at_ms >= 0:
            headers.append(f'"Sunset":"{http_date(at_ms // 1000)}"')
            ttl_ms = at_ms - time_ms if is_object else None
        texts.append(b'{"status":200,"headers":{%b},"body":%b}' % (",".join(headers).encode(), with_ttl(text, ttl_ms)))
    return _responses(texts)


def _responses(texts: list[bytes]) -> Response:
    return Response(200, DOCUMENT, b'{"responses":[%b]}\n' % b",".join(texts))
