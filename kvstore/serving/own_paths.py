"""The service's own paths that are open to anyone.

They are answered before the token of a request, the rules and rates are looked at. So a load balancer needs no token, and is
not refused for what other clients have sent from its address.
"""

from collections.abc import Callable

from kvstore.commands.readiness import CheckReadiness
from kvstore.core.paths import own_path
from kvstore.core.settings import Settings
from kvstore.http.cors import answer_options
from kvstore.http.messages import Request, Response
from kvstore.http.openapi import render_openapi
from kvstore.http.protocol import HEALTH_PATH, LIMITS_PATH, OK, OPENAPI_PATH, READY_PATH
from kvstore.serving.limits import render_limits
from kvstore.serving.pages import PAGES, render_page

OPEN: dict[str, Callable[[Request, Settings], Response | CheckReadiness]] = {
    HEALTH_PATH: lambda _, __: OK,  # this process is alive, since it answers
    READY_PATH: lambda _, __: CheckReadiness(),
    LIMITS_PATH: lambda _, settings: render_limits(settings),
    OPENAPI_PATH: lambda _, settings: render_openapi(settings),
    **dict.fromkeys(PAGES, lambda request, _: render_page(request)),
}


def answer(request: Request, settings: Settings) -> Response | CheckReadiness | None:
    """Return the response to a request for one of these paths, or what to ask Redis; None for other paths.

    Raises MethodNotAllowed.
    """
    path = own_path(request.target)
    found = OPEN.get(path) if path else None
    if found is None:
        return None
    return answer_options(request, "GET, HEAD") or found(request, settings)
