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
from typing import Any, NamedTuple

from kvstore import codec, messages
from kvstore.commands import Again, Command, Conclude, Edit, Get, Missing, Once, Post, Register, Reply, below
from kvstore.conditions import parse_conditions
from kvstore.errors import (
    PROBLEMS,
    BatchRefused,
    ContentTooLarge,
    InvalidDocument,
    InvalidRequest,
    NotInBatch,
    Problem,
    problem_of_reply,
)
from kvstore.messages import DOCUMENT, SAFE, Request, refuse
from kvstore.paths import Path
from kvstore.scripts import BATCH, IN_A_BATCH, Script

MAX_REQUESTS = 1000
MAX_READ_BYTES = 16 * 1024 * 1024  # of the documents in the answers of a batch, about

# What a request of a batch asks of the store, or what it is answered without it.
Step = Command | messages.Reply | Problem

_LEFT_OUT = {name for name, _ in (*DOCUMENT, *SAFE)}  # header fields that are the same in every response


REFUSED = b"refused in a batch"


class Answers(NamedTuple):
    """What the requests of a batch came to, in their order: outcomes, replies and problems."""

    requests: list[Request]
    answers: list[Any]


class Refused(NamedTuple):
    """One request of an atomic batch came to a refusal, so none was applied."""

    place: int
    request: Request
    answer: Any


class Batch(NamedTuple):
    """Carry out the steps from `at` to `stop`, all of one namespace, then the others: Answers, or Refused where `atomic`."""

    requests: list[Request]
    steps: list[Step]
    answers: list[Any]
    atomic: bool
    at: int = 0
    stop: int = 0
    left_bytes: int = MAX_READ_BYTES  # of the answers
    once: bool = False
    is_whole: bool = False
    script: Script = BATCH

    @property
    def as_replayed(self) -> "Batch":
        """This batch as it reads the answer to all of it, whatever must be read before."""
        return self._replace(is_whole=True)

    @property
    def path(self) -> Path:
        """The path of its first command."""
        return _path(self.steps[self._places()[0]])

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys[:1]

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        places = self._places()
        prefix, _ = below(self.path)
        arguments: list[bytes | str | int] = [prefix, "atomic" if self.atomic else "each", self.left_bytes]
        for place in places:
            command: Any = self.steps[place]
            own = _arguments(command)
            arguments += (command.script.name, len(own), *own)
        return tuple(arguments)

    def outcome(self, reply: Reply) -> Answers | Refused | Again:
        if reply[0] == REFUSED:  # by what was read, and replayed
            place = int(reply[1])
            return Refused(place, self.requests[place], PROBLEMS[reply[2].decode()](reply[3].decode()))
        places = self._places()
        word, found = reply[0], reply[1]
        if word in (b"undone", b"lost"):
            place = places[found]
            answer = self._answer(place, reply[2])
            if answer is None:
                return Again(self)
            if isinstance(answer, Problem) and answer.status >= 500:
                raise answer  # a full Redis refuses the batch, not one request of it
            # A refusal that came after reading is kept here; the other the script has kept.
            return self._refused(place, answer) if word == b"lost" else Refused(place, self.requests[place], answer)
        unfinished = False
        register: Register | None = None
        for place, part in zip(places, found, strict=True):
            answer = self._answer(place, part)
            if isinstance(answer, Register):
                register, answer = answer, answer.then
            if answer is None:
                unfinished = True
            elif self.atomic and word == b"read":
                return self._refused(place, answer)
            self.answers[place] = answer
        if unfinished:
            following: Answers | Again = Again(self)
        elif self.atomic:
            following = self.next()
        else:
            following = self._replace(left_bytes=self.left_bytes - reply[2]).next()
        return Again(register._replace(then=following)) if register else following

    def next(self) -> Answers | Again:
        """The next requests of one namespace that follow each other, or the answers where all are there."""
        steps, at = self.steps, self.stop
        while at < len(steps) and not _is_command(steps[at]):
            at += 1
        if at == len(steps):
            return Answers(self.requests, self.answers)
        stop = at + 1
        if self.atomic:
            stop = len(steps)
        elif not isinstance(steps[at], Edit):
            namespace = _path(steps[at]).namespace
            while stop < len(steps) and _joins(steps[stop], namespace):
                stop += 1
        return Again(self._replace(at=at, stop=stop))

    def _refused(self, place: int, answer: Any) -> Refused | Again:
        refused = Refused(place, self.requests[place], answer)
        if not (self.once and isinstance(answer, Problem)):
            return refused
        words = (REFUSED.decode(), str(place), type(answer).__name__, answer.detail)
        return Again(Conclude(self, words, refused))

    def _places(self) -> list[int]:
        """Where the commands of this run are: those that must read before they can write come first, alone."""
        places = [place for place in range(self.at, self.stop) if _is_command(self.steps[place])]
        if self.is_whole:
            return places
        return [place for place in places if isinstance(self.steps[place], Edit)] or places

    def _answer(self, place: int, reply: Reply) -> Any:
        """What a request came to; None where it has become another command that is still to be carried out."""
        command: Any = self.steps[place]
        try:
            if reply[0] == b"error":
                raise problem_of_reply(reply[1].decode("utf-8", "replace"))
            if reply[0] == b"too much":
                raise ContentTooLarge("the answers of a batch have at most 16 MiB together: ask for this in another batch")
            if isinstance(command, Get):
                outcome = Missing() if reply[0] == b"missing" else command.outcome(reply[1])
            else:
                outcome = command.outcome(reply)
        except Problem as problem:
            return problem
        if isinstance(outcome, Again):
            if isinstance(outcome.command, Register):
                return outcome.command
            self.steps[place] = outcome.command
            return None
        return outcome


def _is_command(step: Step) -> bool:
    return not isinstance(step, messages.Reply | Problem)


def _joins(step: Step, namespace: str) -> bool:
    return not _is_command(step) or (not isinstance(step, Edit) and _path(step).namespace == namespace)


def _path(step: Any) -> Path:
    path: Path = step.container if isinstance(step, Post) else step.path
    return path


def _arguments(command: Any) -> tuple[bytes | str | int, ...]:
    if not isinstance(command, Get):
        own: tuple[bytes | str | int, ...] = command.arguments
        return own
    conditions = command.conditions
    since_s = conditions.unmodified_since_s
    return (command.path.rest, conditions.match, "" if since_s is None else since_s)


def parse_batch(request: Request, parse: Callable[[Request], Command | messages.Reply]) -> tuple[bool, Batch]:
    """What a batch asks, and whether it is atomic; raises a Problem. `parse` is for the requests in it."""
    atomic, requests = _envelope(request)
    steps: list[Step] = []
    for part in requests:
        try:
            command = parse(part)
            if isinstance(command, Get):
                command = command._replace(conditions=parse_conditions(part.headers))
            if isinstance(command, messages.Reply) or command.script.name in ("read", *IN_A_BATCH):
                steps.append(command)
            elif isinstance(command, Once):
                raise InvalidRequest("an Idempotency-Key is for the whole batch, and for an atomic one")
            else:
                raise NotInBatch("a container is listed, deleted or taken from by a request of its own, not in a batch")
        except Problem as problem:
            steps.append(problem)
    if atomic:
        _check_atomic(steps)
    answers = [None if _is_command(step) else step for step in steps]
    return atomic, Batch(requests, steps, answers, atomic, once="idempotency-key" in request.headers)


def _check_atomic(steps: list[Step]) -> None:
    commands: list[Any] = [step for step in steps if _is_command(step)]
    if len({_path(command).namespace for command in commands}) > 1:
        raise NotInBatch(
            'the requests of an atomic batch are in one namespace, their path\'s first segment; or say "atomic":false'
        )
    paths = [_path(command).text for command in commands if command.script.name != "read"]
    for command in commands:
        if isinstance(command, Edit) and paths.count(command.path.text) > 1:
            raise NotInBatch(
                f"{command.path.text} is written more than once, and by a patch that must read it first; say"
                ' "atomic":false, or send one write for it'
            )


def _envelope(request: Request) -> tuple[bool, list[Request]]:
    """The requests of a batch as they would have come by themselves; raises InvalidDocument or ContentTooLarge."""
    members = codec.split_object(request.body)
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
    at = codec.skip(text, 1)
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
            end = codec.scan(text, at)
            requests.append(_request(len(requests), text[at:end], base))
            at = codec.skip(text, end)
            following = text[at]
            at = codec.skip(text, at + 1)
    return requests


def _request(index: int, part: str, base: str) -> Request:
    members = codec.split_object(part.encode())
    method, path, headers = (json.loads(members.get(name, default)) for name, default in _MEMBERS)
    if not isinstance(method, str) or not isinstance(path, str):
        raise InvalidDocument(f'request {index}: "method" and "path" are strings')
    if not isinstance(headers, dict) or not all(isinstance(value, str) and _is_field(value) for value in headers.values()):
        raise InvalidDocument(f'request {index}: "headers" are strings by name, as header fields may be')
    by_name = {name.lower(): value for name, value in headers.items()}
    return Request(method, path.encode("utf-8", "surrogatepass"), by_name, members.get("body", "").encode(), base)


_is_field = re.compile(r"[\t -~\x80-\xff]*").fullmatch
_MEMBERS = (("method", "null"), ("path", "null"), ("headers", "{}"))


def render_answers(answers: Answers, render: Callable[[Request, Any], messages.Reply]) -> messages.Reply:
    """The reply to a batch that was carried out. `render` is for the requests in it."""
    texts = []
    for request, answer in zip(*answers, strict=True):
        status, headers, body, _ = _reply(request, answer, render)
        if request.method == "HEAD":
            body = b""
        told = [f'"{name}":{encode_basestring(value)}' for name, value in headers if name not in _LEFT_OUT]
        texts.append(
            b'{"status":%d,"headers":{%b},"body":%b}' % (status, ",".join(told).encode(), body.rstrip(b"\n") or b"null")
        )
    return messages.Reply(200, DOCUMENT, b'{"responses":[%b]}\n' % b",".join(texts))


def render_refused(refused: Refused, render: Callable[[Request, Any], messages.Reply]) -> BatchRefused:
    """The problem of an atomic batch that was not applied."""
    reply = _reply(refused.request, refused.answer, render)
    return BatchRefused(
        f"request {refused.place}, counted from 0, was refused, so none was applied; its problem says why",
        index=refused.place,
        problem=reply.body.rstrip(b"\n"),
    )


def _reply(request: Request, answer: Any, render: Callable[[Request, Any], messages.Reply]) -> messages.Reply:
    try:
        if isinstance(answer, Problem):
            raise answer
        reply = answer if isinstance(answer, messages.Reply) else render(request, answer)
    except Problem as problem:
        reply = refuse(problem)
    return reply
