"""Several requests in one, `POST /_/batch`: all or none of them on one namespace, or each on its own.

    {"atomic":true,"requests":[{"method":"PUT","path":"/a/b","headers":{"If-None-Match":"*"},"body":{"any":"JSON"}}]}
    {"responses":[{"status":201,"headers":{"ETag":"\\"1700000000000-0\\""},"body":{"any":"JSON","ttl":31536000}}]}

Requests of one namespace that follow each other are one script. A request that must read before it can write (a nested merge
patch, a JSON Patch) is read before an atomic batch, and the batch is done again where another was faster.
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
)
from kvstore.commands.documents import Edit, Get
from kvstore.core import json_text
from kvstore.core.errors import (
    BatchRefused,
    ContentTooLarge,
    InvalidDocument,
    InvalidRequest,
    NotInBatch,
    Problem,
)
from kvstore.core.preconditions import parse_preconditions
from kvstore.http.messages import DOCUMENT, SAFE, Request, Response, refuse

MAX_REQUESTS = 1000

Answer: TypeAlias = Response | Problem  # of a request of a batch that needs no store
Render: TypeAlias = Callable[[Request, BatchOutcome], Response]

_LEFT_OUT = {name for name, _ in (*DOCUMENT, *SAFE)}  # header fields that are the same in every response


def parse_batch(request: Request, parse: Callable[[Request], Command[object] | Response]) -> Batch[Request, Answer]:
    """The command of a batch, of which no step is asked yet; raises Problem. `parse` is for the requests in it."""
    atomic, requests = _envelope(request)
    steps: list[Step[Answer]] = []
    for part in requests:
        try:
            command = parse(part)
            if isinstance(command, Get):
                command = command._replace(preconditions=parse_preconditions(part.headers))
            if isinstance(command, Response):
                steps.append(Answered(command))
            elif isinstance(command, BatchCommand):
                steps.append(command)
            elif isinstance(command, Idempotent):
                raise InvalidRequest("an Idempotency-Key is for the whole batch, and for an atomic one")
            else:
                raise NotInBatch("a container is listed, deleted or taken from by a request of its own, not in a batch")
        except Problem as problem:
            steps.append(Answered(problem))
    if atomic:
        _check_atomic(steps)
    return Batch(requests, steps, {}, atomic, once="idempotency-key" in request.headers)


def _check_atomic(steps: list[Step[Answer]]) -> None:
    commands = [step for step in steps if not isinstance(step, Answered)]
    if len({command.path.namespace for command in commands}) > 1:
        raise NotInBatch(
            'the requests of an atomic batch are in one namespace, their path\'s first segment; or say "atomic":false'
        )
    paths = [command.path.text for command in commands if not isinstance(command, Get)]
    for command in commands:
        if isinstance(command, Edit) and paths.count(command.path.text) > 1:
            raise NotInBatch(
                f"{command.path.text} is written more than once, and by a patch that must read it first; say"
                ' "atomic":false, or send one write for it'
            )


def _envelope(request: Request) -> tuple[bool, list[Request]]:
    """The requests of a batch as they would have come by themselves; raises InvalidDocument or ContentTooLarge."""
    members = json_text.split_object(request.body)
    atomic = members.get("atomic", "true")
    if atomic not in ("true", "false"):
        raise InvalidDocument('"atomic" is true or false')
    return atomic == "true", _requests(members.get("requests", ""), request.base)


# A request as most clients write it: in one step of the regex engine. Its body is looked at when it is parsed by itself.
_is_usual = re.compile(
    r'\{\s*"method"\s*:\s*"([A-Z]+)"\s*,\s*"path"\s*:\s*"([^"\\\x00-\x1f]*)"\s*'
    r'(?:,\s*"body"\s*:\s*(\{(?:[^{}\[\]"\\]|"[^"\\]*")*\}))?\s*\}\s*([,\]])\s*'
).match


def _requests(text: str, base: str) -> list[Request]:
    if not text.startswith("["):
        raise InvalidDocument('a batch is {"requests":[…]}, each with "method" and "path"')
    requests: list[Request] = []
    following = ","
    at = json_text.skip(text, 1)
    if text[at] == "]":
        return requests
    while following == ",":
        if len(requests) == MAX_REQUESTS:
            raise ContentTooLarge(f"a batch has at most {MAX_REQUESTS:,} requests")
        if usual := _is_usual(text, at):
            method, path, body, following = usual.groups()
            requests.append(Request(method, path.encode(), {}, body.encode() if body else b"", base))
            at = usual.end()
        else:
            end = json_text.scan(text, at)
            requests.append(_request(len(requests), text[at:end], base))
            at = json_text.skip(text, end)
            following = text[at]
            at = json_text.skip(text, at + 1)
    return requests


def _request(index: int, part: str, base: str) -> Request:
    members = json_text.split_object(part.encode())
    method, path, headers = (json.loads(members.get(name, default)) for name, default in _MEMBERS)
    if not isinstance(method, str) or not isinstance(path, str):
        raise InvalidDocument(f'request {index}: "method" and "path" are strings')
    if not isinstance(headers, dict) or not all(isinstance(value, str) and _is_field(value) for value in headers.values()):
        raise InvalidDocument(f'request {index}: "headers" are strings by name, as header fields may be')
    by_name = {name.lower(): value for name, value in headers.items()}
    return Request(method, path.encode("utf-8", "surrogatepass"), by_name, members.get("body", "").encode(), base)


_is_field = re.compile(r"[\t -~\x80-\xff]*").fullmatch
_MEMBERS = (("method", "null"), ("path", "null"), ("headers", "{}"))


def render_answers(answers: Answers[Request, Answer], render: Render) -> Response:
    """The reply to a batch that was carried out. `render` is for the requests in it."""
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
    """The problem of an atomic batch that was not applied."""
    response = _response(refused.request, refused.answer, render)
    return BatchRefused(
        f"request {refused.request_index}, counted from 0, was refused, so none was applied; its problem says why",
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
