"""A lobby of games. This application writes them with kvstore.aio; pages follow them in the store that it mounts."""

import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import tictactoe
from itsdangerous import BadSignature, Signer
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import kvstore
from kvstore.asgi import Application
from kvstore.core.errors import PreconditionFailed, Problem

HERE = Path(__file__).parent
NAME = re.compile(r"[a-z]+-[a-z]+-[a-z]+-[0-9]+")  # of a game
MAX_NAME_CHARACTERS = 24  # of a player
TTL = "1d"  # of a game that nobody touches
COOKIE, COOKIE_S = "player", 30 * 86_400
PAGE_FIELDS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}

db = kvstore.aio.connect()


# --- Pages ----------------------------------------------------------------------------------------------------------------


def accepted(request: Request) -> set[str]:
    """Return the media types that a client accepts."""
    return {each.partition(";")[0].strip().lower() for each in request.headers.get("accept", "").split(",")}


def page(status: int = 200, fields: dict[str, str] | None = None) -> Response:
    """Return the page. Its script shows the lobby or a game, by the path, and tries again what did not succeed."""
    return FileResponse(HERE / "index.html", status, PAGE_FIELDS | (fields or {}))


async def lobby(request: Request) -> Response:
    """The lobby for browsers."""
    if accepted(request) == {"text/plain"}:
        return PlainTextResponse("nothing to see", headers={"Vary": "Accept"})
    [_ async for _ in db.list("/games/", limit=1)]  # so that the status says whether there is a store
    return page()


async def show(request: Request) -> Response:
    """The page of a game, which must exist."""
    if not await db.get(path_of(request)):
        raise HTTPException(404, "game not found")
    return page()


async def refuse(request: Request, error: Exception) -> Response:
    """A request that failed: browsers get the page, with the status; others get the reason."""
    status, fields = 500, None
    if isinstance(error, Problem | HTTPException):
        status, fields = getattr(error, "status", None) or error.status_code, dict(error.headers or {})
    if status == 503:
        fields = {"Retry-After": "1"} | (fields or {})
    if request.method == "GET" and "text/html" in accepted(request):
        return page(status, fields)
    return PlainTextResponse(error.detail, status, fields)


# --- Who plays ------------------------------------------------------------------------------------------------------------


async def signer() -> Signer:
    """Return what signs cookies: by SECRET_KEY, otherwise by a key that all processes share in the store."""
    if app.state.signer is None:
        key = os.environ.get("SECRET_KEY")
        if not key:
            key = (await db.update("/keys/cookies", lambda stored: stored, default=secrets.token_hex(32))).value
        app.state.signer = Signer(key, salt=COOKIE)
    return app.state.signer


async def player_of(request: Request) -> str | None:
    """Return the public id of who asks, None for somebody without a cookie, or with one that we did not sign."""
    try:
        return (await signer()).unsign(request.cookies.get(COOKIE, "")).decode()
    except BadSignature:
        return None


async def me(request: Request) -> Response:
    """The public id of who asks. A script cannot read the cookie."""
    return JSONResponse({"player": await player_of(request)}, headers={"Cache-Control": "no-store"})


# --- Games ----------------------------------------------------------------------------------------------------------------


def path_of(request: Request) -> str:
    """Return the path of the game that a request names; raises HTTPException if it cannot be the name of one."""
    name = request.path_params["name"]
    if not NAME.fullmatch(name):
        raise HTTPException(404, "game not found")
    return f"/games/{name}"


async def make(request: Request) -> Response:
    """Make a game with a name that no other has."""
    for name in tictactoe.names():
        try:
            await db.put(f"/games/{name}", tictactoe.new(), if_none_match="*", ttl=TTL)
        except PreconditionFailed:
            continue
        break
    return done(request, name, 201)


async def join(request: Request) -> Response:
    """Join a game, once. Who has no cookie yet gets one."""
    asked = "".join(each for each in request.query_params.get("as", "") if each.isprintable())
    path, name = path_of(request), " ".join(asked.split())[:MAX_NAME_CHARACTERS]
    player = await player_of(request) or secrets.token_urlsafe(12)
    await db.update(path, lambda game: tictactoe.join(existing(game), player, name), ttl=TTL)
    response = done(request, request.path_params["name"], 200)
    cookie = (await signer()).sign(player).decode()
    is_secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, cookie, max_age=COOKIE_S, httponly=True, samesite="lax", secure=is_secure)
    return response


async def move(request: Request) -> Response:
    """Set a mark into a cell, 0 to 8."""
    path, cell, player = path_of(request), request.path_params["cell"], await player_of(request)
    if cell not in tuple("012345678"):
        raise HTTPException(404, "there is no such cell")
    await db.update(path, lambda game: tictactoe.move(existing(game), player, int(cell)), ttl=TTL)
    return Response(status_code=204)


def existing(game: tictactoe.Game | None) -> tictactoe.Game:
    """Return the game; raises HTTPException if there is none."""
    if game is None:
        raise HTTPException(404, "game not found")
    return game


def done(request: Request, name: str, status: int) -> Response:
    """Lead a browser to the game, and tell others its name."""
    if "text/html" in accepted(request):
        return RedirectResponse(f"/{name}", 303)
    return PlainTextResponse(name, status, {"Location": f"/{name}"})


# --- The application --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Close what was opened."""
    async with db:
        yield


store = Application(principal=lambda _: None, rules=[["/games/**", "anyone", "nobody", "nobody"]])
app = Starlette(
    routes=[
        Route("/", lobby),
        Route("/new", make, methods=["GET", "POST"]),
        Route("/me", me),
        Route("/join/{name}", join, methods=["GET", "POST"]),
        Mount("/store", store),
        Mount("/static", StaticFiles(directory=HERE / "static")),
        Route("/{name}", show),
        Route("/{name}/{cell}", move, methods=["POST"]),
    ],
    exception_handlers={Problem: refuse, HTTPException: refuse},
    lifespan=lifespan,
)
app.state.signer = None
