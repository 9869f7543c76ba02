"""Starts the example of a game, under uvicorn or gunicorn, and plays it over HTTP."""

import json
import sys
from pathlib import Path

import kvstore
from tests.support.serving import Response, Served
from tests.support.stores import free_ports

GAME = Path(__file__).parents[2] / "examples" / "game"
BROWSER = [("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")]  # what a browser sends for a page
Cookie = list[tuple[str, str]]


class Game:
    """A running instance; `store` sees what is stored."""

    def __init__(self, directory: Path, command: list[str], url: str) -> None:
        self._home = directory / command[0]
        self._home.mkdir(exist_ok=True)
        self._command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        self._environ = {"REDIS_URL": url}
        self.store = kvstore.connect(url)
        self.start()
        self.url = "http://{}:{}".format(*self.served.at)

    def start(self) -> None:
        """Start it, also once more after it was killed."""
        self.served = Served(self._home, self._command, self._environ)

    def new(self) -> str:
        """Make a game; return its name."""
        made = self.served.request("POST", "/new")
        assert made.status == 201, made.content
        return made.content.decode()

    def join(self, name: str, query: str = "", cookie: Cookie | None = None) -> Response:
        """Join a game, as somebody new or by a cookie."""
        return self.served.request("POST", f"/join/{name}{query}", cookie or [])

    def player(self, name: str, called: str = "") -> Cookie:
        """Somebody new who has joined a game: their cookie."""
        joined = self.join(name, f"?as={called}")
        assert joined.status == 200, joined.content
        return [("Cookie", (joined.headers["Set-Cookie"] or "").partition(";")[0])]

    def who(self, cookie: Cookie) -> str | None:
        """The public id of who sends a cookie."""
        player: str | None = json.loads(self.served.request("GET", "/me", cookie).content)["player"]
        return player

    def move(self, name: str, cell: int, cookie: Cookie) -> Response:
        """Set a mark."""
        return self.served.request("POST", f"/{name}/{cell}", cookie)

    def players(self, name: str) -> list[str]:
        """The public ids of who has joined a game."""
        found = self.store.get(f"/games/{name}")
        return [each["id"] for each in found.value["players"]] if found else []


def start_uvicorn(directory: Path, url: str, app: Path = GAME / "app.py") -> Game:
    """An instance under uvicorn, on the Redis at `url`."""
    options = ["--app-dir", str(app.parent), "--port", str(free_ports(1)[0])]
    return Game(directory, ["uvicorn", "--timeout-graceful-shutdown", "1", *options, f"{app.stem}:app"], url)


def start_gunicorn(directory: Path, url: str, app: Path = GAME / "app.py") -> Game:
    """An instance under gunicorn: two processes with its worker for ASGI."""
    options = ["--chdir", str(app.parent), "--bind", f"127.0.0.1:{free_ports(1)[0]}", "--no-control-socket"]
    worker = ["--worker-class", "asgi", "--workers", "2", "--graceful-timeout", "1"]
    return Game(directory, ["gunicorn", *worker, *options, f"{app.stem}:app"], url)
