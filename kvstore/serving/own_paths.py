"""The service's own paths that are open to anyone.

They are answered before the token of a request, the rules and rates are looked at. So a load balancer needs no token, and is
not refused for what other clients have sent from its address.
"""

from collections.abc import Callable
from functools import partial

from kvstore.commands.readiness import CheckReadiness
from kvstore.core.paths import own_path
from kvstore.core.settings import Settings
from kvstore.http.cors import answer_options
from kvstore.http.messages import Request, Response
from kvstore.http.openapi import openapi_text
from kvstore.http.protocol import HEALTH_PATH, LIMITS_PATH, OK, OPENAPI_PATH, READY_PATH
from kvstore.http.static import Static, render_static
from kvstore.serving.limits import limits_text
from kvstore.serving.pages import PAGES, read_page


def _page(name: str, _: Settings) -> Static:
    return read_page(name)


OPEN: dict[str, Callable[[Settings], Static | Response | CheckReadiness]] = {
    HEALTH_PATH: lambda _: OK,  # this process is alive, since it answers
    READY_PATH: lambda _: CheckReadiness(),
    LIMITS_PATH: limits_text,
    OPENAPI_PATH: openapi_text,
    **{path: partial(_page, name) for path, name in PAGES.items()},
}


def answer(request: Request, settings: Settings) -> Response | CheckReadiness | None:
    """Return the response to a request for one of these paths, or what to ask Redis; None for other paths.

    Raises MethodNotAllowed.
    """
    path = own_path(request.target)
    found = OPEN.get(path) if path else None
    if found is None:
        return None
    if response := answer_options(request, "GET, HEAD"):
        return response
    opened = found(settings)
    return render_static(request, opened) if isinstance(opened, Static) else opened
