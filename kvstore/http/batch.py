"""Batches, `POST /_/batch`: several requests in one, applied all or none in one namespace, or each on its own.

    {"atomic":true,"requests":[{"method":"PUT","path":"/a/b","headers":{"If-None-Match":"*"},"body":{"any":"JSON"}}]}
    {"responses":[{"status":201,"headers":{"ETag":"\\"1700000000000-0\\""},"body":{"any":"JSON","ttl":31536000}}]}

Successive requests in one namespace are executed by one script. If a request must read before it can write (a nested merge
patch, a JSON Patch), the document is read before the batch is executed. An atomic batch starts again if it has changed since.
"""

import json
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import TypeAlias

from kvstore.commands.base import Command, Idempotent
from kvstore.commands.batch import (
    Answered,
    Answers,
    Batch,
    BatchCommand,
    BatchOutcome,
    Refused,
    Step,
    check_atomic,
)
from kvstore.commands.documents import ConditionalGet, Get
from kvstore.core import json_text
from kvstore.core.errors import (
    BatchRefused,
    ContentTooLarge,
    InvalidDocument,
    InvalidRequest,
    NotInBatch,
    Problem,
)
from kvstore.core.preconditions import NONE
from kvstore.http.messages import DOCUMENT, SAFE, Request, Response, refuse

MAX_REQUESTS = 1000

Answer: TypeAlias = Response | Problem  # of a request of a batch that needs no store
Render: TypeAlias = Callable[[Request, BatchOutcome], Response]

_LEFT_OUT = {name for name, _ in (*DOCUMENT, *SAFE)}  # header fields that are the same in each response


def parse_batch(request: Request, parse: Callable[[Request], Command[object] | Response]) -> Batch[Request, Answer]:
    """Return the command of a batch; raises Problem. `parse` is called for each request in it."""
    atomic, requests = _envelope(request)
    steps: list[Step[Answer]] = []
    for part in requests:
        try:
            command = parse(part)
            if isinstance(command, Get):
                command = ConditionalGet(command.path, NONE)
            if isinstance(command, Response):
                steps.append(Answered(command))
            elif isinstance(command, BatchCommand):
                steps.append(command)
            elif isinstance(command, Idempotent):
                raise InvalidRequest("a request in a batch takes no Idempotency-Key; send one with the whole atomic batch")
            else:
                raise NotInBatch("a batch cannot list a container, delete one or take jobs; send that request by itself")
        except Problem as problem:
            steps.append(Answered(problem))
    if atomic:
        check_atomic(steps)
    return Batch(requests, steps, {}, atomic, once="idempotency-key" in request.headers)


def _envelope(request: Request) -> tuple[bool, list[Request]]:
    """Return whether a batch is atomic, and its requests as if each had come alone; raises InvalidDocument, ContentTooLarge."""
    members = json_text.split_object(request.body)
    atomic = members.get("atomic", "true")
    if atomic not in ("true", "false"):
        raise InvalidDocument('"atomic" must be true or false')
    return atomic == "true", _requests(members.get("requests", ""), request.base)


# A request as most clients write it, in one match of the regular expression. Its body is checked when the request is parsed.
_is_usual = re.compile(
    r' \{ "method" : "([A-Z]++)" , "path" : "([^"\\\x00-\x1f]*+)" '
    r'(?:, "body" : (\{(?:[^{}\[\]"\\]++|"[^"\\]*+")*+\}) )?+\} ([,\]]) '.replace(" ", r"[ \t\n\r]*+")
).match


def _requests(text: str, base: str) -> list[Request]:
    if not text.startswith("["):
        raise InvalidDocument('a batch must be {"requests":[…]}, each request with "method" and "path"')
    requests: list[Request] = []
    following = ","
    at = json_text.skip(text, 1)
    if text[at] == "]":
        return requests
    while following == ",":
        if len(requests) == MAX_REQUESTS:
            raise ContentTooLarge(f"the batch has more than {MAX_REQUESTS:,} requests; send several batches")
        if usual := _is_usual(text, at):
            method, path, body, following = usual.groups()
            requests.append(Request(method, path.encode(), {}, body.encode() if body else b"", base))
            at = usual.end()
        else:
            members, at = json_text.split_object_at(text, at)
            requests.append(_request(len(requests), members, base))
            following = text[at]
            at = json_text.skip(text, at + 1)
    return requests


def _request(index: int, members: dict[str, str], base: str) -> Request:
    method, path, headers = (json.loads(members.get(name, default)) for name, default in _MEMBERS)
    if not isinstance(method, str) or not isinstance(path, str):
        raise InvalidDocument(f'request {index}: "method" and "path" must be strings')
    if not isinstance(headers, dict) or not all(isinstance(value, str) and _is_field(value) for value in headers.values()):
        raise InvalidDocument(f'request {index}: "headers" must be an object of valid header field values')
    by_name = {name.lower(): value for name, value in headers.items()}
    return Request(method, path.encode("utf-8", "surrogatepass"), by_name, members.get("body", "").encode(), base)


_is_field = re.compile(r"[\t -~\x80-\xff]*").fullmatch
_MEMBERS = (("method", "null"), ("path", "null"), ("headers", "{}"))


def render_answers(answers: Answers[Request, Answer], render: Render) -> Response:
    """Return the response to a batch that was executed. `render` is called for each request in it."""
    texts = []
    for request, answer in zip(*answers, strict=True):
        status, headers, body, _ = _response(request, answer, render)
        if request.method == "HEAD":
            body = b""
        told = [f'"{name}":{encode_basestring(value)}' for name, value in headers if name not in _LEFT_OUT]
        texts.append(
            b'{"status":%d,"headers":{%b},"body":%b}' % (status, ",".join(told).encode(), body.rstrip(b"\n") or b"null")
        )
    return Response(200, DOCUMENT, b'{"responses":[%b]}\n' % b",".join(texts))


def render_refused(refused: Refused[Request, Answer], render: Render) -> BatchRefused:
    """Return the problem of an atomic batch that was not applied."""
    response = _response(refused.request, refused.answer, render)
    return BatchRefused(
        f"request {refused.request_index} (counted from 0) was refused, so none was applied; `problem` says why",
        index=refused.request_index,
        problem=response.body.rstrip(b"\n"),
    )


def _response(request: Request, answer: BatchOutcome | Answer, render: Render) -> Response:
    try:
        if isinstance(answer, Problem):
            raise answer
        return answer if isinstance(answer, Response) else render(request, answer)
    except Problem as problem:
        return refuse(problem)
