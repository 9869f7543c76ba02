"""The steps between a request and its response that all adapters share. Functions of values; no I/O.

An adapter reads a request and calls `decide()`. Then it sends the Response, starts the stream, or has a store execute the
command and sends what `respond()` makes of the outcome.
"""

from time import time
from typing import TypeAlias

from kvstore.access.judging import is_plainly_permitted, judge
from kvstore.access.principal import Principal
from kvstore.access.views import Rules
from kvstore.commands.base import Command
from kvstore.commands.batch import Answers, Refused
from kvstore.commands.metrics import ReadMetrics
from kvstore.commands.readiness import CheckReadiness
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core.errors import ContentTooLarge, InvalidRequest, Problem, TooManyRequests, problem_in
from kvstore.core.paths import MAY_BE_OWN
from kvstore.core.settings import Settings
from kvstore.http.cors import shown_to
from kvstore.http.gate import FetchKeys, Gate
from kvstore.http.hosts import check_host
from kvstore.http.messages import MAX_BODY_BYTES, Headers, Request, Response, refuse_to
from kvstore.http.protocol import STREAM, Outcome, parse, render
from kvstore.serving import own_paths

Asked: TypeAlias = Command[Outcome] | LongPoll[Outcome] | ReadMetrics
Decision: TypeAlias = Asked | Follow | FollowMany | CheckReadiness | Response | FetchKeys


def decide(
    request: Request,
    settings: Settings,
    rules: Rules | None = None,
    principal: Principal | None = None,
    gate: Gate | None = None,
) -> Decision:
    """Return what a request asks for, or its response if the store is not needed.

    `rules` judge what `principal` asks for, None being a request without a token. Without rules everything is permitted. A gate
    finds the principal in the request's token; then the request must have a caller, by Gate.begin().
    """
    try:
        decision: Decision
        # Most targets do not begin like this: they are spared two calls.
        if request.target.startswith(MAY_BE_OWN) and (opened := own_paths.answer(request, settings)) is not None:
            decision = opened
        elif gate is not None:
            decision = _through(gate, request, settings, rules, principal)
        elif rules is not None:
            decision = _judged(request, settings, rules, principal)
        else:
            decision = parse(request, settings)
    except Exception as error:
        return respond(request, error, settings)
    return _show(request, decision, settings) if isinstance(decision, Response) else decision


def _through(gate: Gate, request: Request, settings: Settings, rules: Rules | None, principal: Principal | None) -> Decision:
    """Return what a request asks for, once its sender is known, and count it; raises Problem."""
    caller = request.caller
    assert caller
    caller.principal = principal
    if (answer := gate.admit(request)) is not None:
        return answer
    decision = parse(request, settings) if rules is None else _judged(request, settings, rules, caller.principal)
    return gate.charge(request, decision) if gate.counts and not isinstance(decision, Response) else decision


def _judged(
    request: Request, settings: Settings, rules: Rules, principal: Principal | None
) -> Response | Asked | Follow | FollowMany:
    """Return what a request asks for, as far as the rules permit it; raises Problem."""
    if principal is not None and "idempotency-key" in request.headers:
        request = request._replace(subject=principal.subject)
    decision = parse(request, settings)
    if isinstance(decision, Response) or is_plainly_permitted(decision, rules, principal):
        return decision
    decision = judge(decision, rules, principal)
    if isinstance(decision, Answers | Refused):  # a batch of which nothing is left to execute
        return render(request, decision)
    if isinstance(decision, LongPoll) and principal is not None and principal.expires_at_s is not None:
        decision = decision._replace(wait_s=max(0.0, min(decision.wait_s, principal.expires_at_s - time())))
    return decision


def decide_for_host(
    request: Request,
    settings: Settings,
    rules: Rules | None = None,
    principal: Principal | None = None,
    gate: Gate | None = None,
) -> Decision:
    """Do the same for a server that web pages could reach by DNS rebinding: check Host first."""
    try:
        check_host(request.headers, settings)
    except Problem as problem:
        return respond(request, problem, settings)
    return decide(request, settings, rules, principal, gate)


def respond(request: Request, outcome: Outcome | Exception, settings: Settings) -> Response:
    """Return the response to a request whose command had this outcome, or raised this exception."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        response = render(request, outcome)
    except Exception as error:
        response = refuse_to(request, problem_in(error))
    if request.caller and request.caller.quota and response.status != TooManyRequests.status:
        response = response._replace(headers=response.headers + request.caller.quota.fields)
    return _show(request, response, settings) if "origin" in request.headers else response


def _show(request: Request, response: Response, settings: Settings) -> Response:
    """Add the header fields of CORS to a response."""
    return response._replace(headers=response.headers + shown_to(request, settings))


def stream_fields(request: Request, settings: Settings) -> Headers:
    """Return the header fields of a response that is a stream."""
    quota = request.caller.quota.fields if request.caller and request.caller.quota else ()
    return STREAM + quota + shown_to(request, settings)


def add_field(headers: dict[str, str], name: str, value: str) -> None:
    """Add a header field to those of a request; fields of the same name become one list (RFC 9110 section 5.3)."""
    headers[name] = f"{headers[name]}, {value}" if name in headers else value


def too_large() -> ContentTooLarge:
    """Return the problem of a body of more than MAX_BODY_BYTES."""
    return ContentTooLarge(f"the body has more than {MAX_BODY_BYTES:,} bytes; split the document into several")


def cut_off() -> InvalidRequest:
    """Return the problem of a body that ended before it was complete."""
    return InvalidRequest("the body ended before it was complete; nothing was changed")
