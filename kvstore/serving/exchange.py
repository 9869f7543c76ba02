"""A request and its response, the same for every adapter: what to do with a request, and how an outcome is answered.

An adapter reads a request, asks `decide()` what to do with it, and then sends a Response, starts a stream, or has the store
execute a command and sends what `respond()` makes of the outcome. Nothing here does I/O.
"""

from typing import TypeAlias

from kvstore.commands.base import Command
from kvstore.commands.subscriptions import Follow, LongPoll
from kvstore.core.errors import ContentTooLarge, InvalidRequest, Problem, problem_in
from kvstore.core.settings import Settings
from kvstore.http.cors import shown_to
from kvstore.http.hosts import check_host
from kvstore.http.messages import MAX_BODY_BYTES, Headers, Request, Response, refuse
from kvstore.http.protocol import STREAM, Outcome, parse, render

Asked: TypeAlias = Command[Outcome] | LongPoll[Outcome]  # of a store, or of what waits
Decision: TypeAlias = Asked | Follow | Response


def decide(request: Request, settings: Settings) -> Decision:
    """What a request asks for, or its response where nothing has to be asked for."""
    try:
        decision = parse(request, settings)
    except Exception as error:
        return respond(request, error, settings)
    return _show(request, decision, settings) if isinstance(decision, Response) else decision


def decide_for_host(request: Request, settings: Settings) -> Decision:
    """The same, for a server that web pages might reach by a name of their own (hosts.py)."""
    try:
        check_host(request.headers, settings)
    except Problem as problem:
        return respond(request, problem, settings)
    return decide(request, settings)


def respond(request: Request, outcome: Outcome | Exception, settings: Settings) -> Response:
    """The response to a request that came to this: the outcome of its command, or an exception."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        response = render(request, outcome)
    except Exception as error:
        response = refuse(problem_in(error))
    return _show(request, response, settings) if "origin" in request.headers else response


def _show(request: Request, response: Response, settings: Settings) -> Response:
    """The response with the header fields that let the web page which asked see it."""
    return response._replace(headers=response.headers + shown_to(request, settings))


def stream_fields(request: Request, settings: Settings) -> Headers:
    """The header fields of the response that is a stream."""
    return STREAM + shown_to(request, settings)


def add_field(headers: dict[str, str], name: str, value: str) -> None:
    """Add a header field to those of a request; several lines of one name make one list (RFC 9110 section 5.3)."""
    headers[name] = f"{headers[name]}, {value}" if name in headers else value


def too_large() -> ContentTooLarge:
    """The problem of a body that is larger than MAX_BODY_BYTES."""
    return ContentTooLarge(f"a body has at most {MAX_BODY_BYTES:,} bytes; split the document into several")


def cut_off() -> InvalidRequest:
    """The problem of a body that ended before it was complete."""
    return InvalidRequest("the body ended before it was complete; nothing was changed")
