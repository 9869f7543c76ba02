"""The example of a game: two instances on one Redis, one under uvicorn and one under gunicorn, and two browsers."""

import json
import re
import signal
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.pages.game_picture import PICTURE, SIZE, draw
from tests.support.browser import ENTER, RIGHT, TAB, Browser
from tests.support.games import BROWSER, GAME, Game, start_gunicorn, start_uvicorn
from tests.support.serving import Response, wire
from tests.support.stores import Running, start_redis, wait_until

DAY_S = 86_400
TEXT = [("Accept", "text/plain")]
LIMIT_S = 20
MARKED = "[...document.querySelectorAll('#board button')].map(each => each.textContent || '.').join('')"


@pytest.fixture(scope="module")
def redis(place: Path) -> Iterator[Running]:
    """A Redis for both instances."""
    running = start_redis(place)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def first(place: Path, redis: Running) -> Iterator[Game]:
    """An instance under uvicorn."""
    game = start_uvicorn(place, redis.url)
    yield game
    game.served.kill()


@pytest.fixture(scope="module")
def second(place: Path, redis: Running) -> Iterator[Game]:
    """An instance under gunicorn."""
    game = start_gunicorn(place, redis.url)
    yield game
    game.served.kill()


def statuses(ask: Callable[[int], int], times: int) -> list[int]:
    """What many who ask at once are answered."""
    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(ask, range(times)))


# --- Over HTTP ------------------------------------------------------------------------------------------------------------


def test_a_game(first: Game) -> None:
    """Made, joined, and played to its end by two; what the rules do not permit is refused with the reason."""
    ask = first.served.request
    assert ask("GET", "/", TEXT).content == b"nothing to see"
    assert b"<!doctype html>" in ask("GET", "/", BROWSER).content
    name = first.new()
    assert re.fullmatch(r"[a-z]+-[a-z]+-[a-z]+-\d\d?", name)
    ada = first.player(name, "Ada")
    assert first.join(name, "?as=Eve", ada).status == 200
    assert (first.players(name), first.move(name, 0, ada).content) == ([first.who(ada)], b"wait for a second player")
    grace, alan = first.player(name, "%E2%80%AEGr%00ace+"), first.player(name)
    stored = first.store.get(f"/games/{name}")
    assert stored
    assert [each["name"] for each in stored.value["players"]] == ["Ada", "Grace", "Player 3"]
    moves = [
        (grace, 0, 409, b"it is not your turn"),
        (alan, 0, 403, b"only the first two players make moves"),
        ([], 0, 403, b"only the first two players make moves"),
        (ada, 0, 204, b""),
        (ada, 1, 409, b"it is not your turn"),
        (grace, 0, 409, b"the cell is taken"),
        (grace, 3, 204, b""),
        (ada, 9, 404, b"there is no such cell"),
        (ada, 1, 204, b""),
        (grace, 4, 204, b""),
        (ada, 2, 204, b""),
        (grace, 5, 409, b"the game is over"),
    ]
    for who, cell, status, said in moves:
        answer = first.move(name, cell, who)
        assert (answer.status, answer.content) == (status, said), cell
    ended = first.store.get(f"/games/{name}")
    assert ended
    assert (ended.value["board"], ended.value["line"]) == ("XXXOO....", "012")


@pytest.mark.slow
def test_what_is_not_there(first: Game, second: Game) -> None:
    """An unknown game is 404, in whichever way it is asked for; names that could be paths of the store are none."""
    for game in (first, second):
        for method, path in (("POST", "/join/"), ("GET", "/join/"), ("GET", "/")):
            for name in ("dark-red-deer-0", "%2E%2E", "x", "dark-red-deer-42%3Fttl=1", "%00", "%ff"):
                answer = game.served.request(method, path + name)
                assert (answer.status, answer.content) == (404, b"game not found"), name
        shown = game.served.request("GET", "/dark-red-deer-0", BROWSER)
        assert (shown.status, b"<!doctype html>" in shown.content) == (404, True)
        assert game.served.request("POST", "/dark-red-deer-0/0").status == 404


@pytest.mark.slow
def test_links(first: Game, second: Game) -> None:
    """A browser that follows a link to /new or /join/ is led to the game; others are told its name."""
    for game in (first, second):
        made = game.served.request("GET", "/new", BROWSER)
        assert made.status == 303
        name = (made.headers["Location"] or "")[1:]
        joined = game.served.request("GET", f"/join/{name}?as=Ada", BROWSER)
        assert (joined.status, joined.headers["Location"]) == (303, f"/{name}")
        told = game.served.request("GET", f"/join/{name}")
        assert (told.status, told.content.decode()) == (200, name)
        assert len(game.players(name)) == 2


@pytest.mark.slow
def test_who_plays(first: Game, second: Game) -> None:
    """A cookie is not made of what everyone can see: a public id, or another's signature, moves nothing."""
    name = first.new()
    ada, grace = first.player(name), second.player(name)
    set_cookie = first.join(name, "", ada).headers["Set-Cookie"] or ""
    assert {"HttpOnly", "SameSite=lax"} <= set(set_cookie.split("; "))
    public = json.loads(second.served.request("GET", f"/store/games/{name}").content)["players"]
    assert [each["id"] for each in public] == [first.who(ada), second.who(grace)]
    value = ada[0][1].removeprefix("player=")
    signature, theirs = value.rpartition(".")[2], grace[0][1].rpartition(".")[2]
    assert signature not in json.dumps(public)
    x = public[0]["id"]
    forged = [x, f"{x}.", f"{x}.{theirs}", f"{x}.{'a' * 27}", f"{x} .{signature}", f".{signature}", "\xff.\xff", "", '"\\377"']
    for cookie in forged:
        for game in (first, second):
            line = [("Cookie", f"player={cookie}")]
            assert game.who(line) is None, cookie
            assert game.move(name, 0, line).status == 403, cookie
    assert second.move(name, 0, ada).status == 204
    assert first.served.request("GET", "/store/keys/cookies").status == 401
    for method in ("PUT", "PATCH", "DELETE"):
        assert first.served.request(method, f"/store/games/{name}", (), b"{}").status == 401
    assert first.served.request("POST", "/store/games/", (), b"{}").status == 401


@pytest.mark.slow
def test_a_hundred_join_at_once(first: Game, second: Game) -> None:
    """Over three processes: a game has all who were told that they joined, and 8 at most. The others are told so."""
    full, names = first.new(), [first.new() for _ in range(20)]
    assert sorted(statuses(lambda n: (first, second)[n % 2].join(full).status, 100)) == [200] * 8 + [409] * 92
    assert len(set(first.players(full))) == 8
    assert second.join(full).content == b"the game is full"
    assert statuses(lambda n: (first, second)[n % 2].join(names[n % 20]).status, 100) == [200] * 100
    assert [len(set(first.players(name))) for name in names] == [5] * 20


@pytest.mark.slow
def test_one_joins_once(first: Game, second: Game) -> None:
    """However often they ask at the same time."""
    name = first.new()
    ada = first.player(name)
    assert statuses(lambda n: (first, second)[n % 2].join(name, "", ada).status, 20) == [200] * 20
    assert first.players(name) == [first.who(ada)]


@pytest.mark.slow
def test_no_name_is_taken_twice(redis: Running, directory: Path) -> None:
    """Where there are words for a hundred names only, 150 games that are made at once have 150 names."""
    app = directory / "crowded.py"
    words = "tictactoe.TONES = tictactoe.COLORS = tictactoe.ANIMALS = ['crowd']"
    app.write_text(f"import sys\nsys.path.insert(0, {str(GAME)!r})\nimport tictactoe\n{words}\nfrom app import app\n", "utf-8")
    games = [start_uvicorn(directory, redis.url, app), start_gunicorn(directory, redis.url, app)]
    try:
        with ThreadPoolExecutor(50) as pool:
            names = list(pool.map(lambda n: games[n % 2].new(), range(150)))
    finally:
        for game in games:
            game.served.kill()
    assert len(set(names)) == 150
    stored = {each.path.rpartition("/")[2] for each in games[0].store.list("/games/")}
    assert set(names) <= stored


@pytest.mark.slow
def test_redis_away(first: Game, second: Game, redis: Running, browser: Browser) -> None:
    """Each request is a 503, and a page that is open tries again; when Redis is back all go on."""
    name = first.new()
    ada, _ = first.player(name, "Ada"), first.player(name)
    browser.go(f"{first.url}/{name}")
    browser.wait_for("Ada's turn", "#state")
    redis.signal(signal.SIGSTOP)
    try:
        asked = [("GET", "/"), ("POST", "/new"), ("POST", f"/join/{name}"), ("GET", f"/{name}"), ("POST", f"/{name}/0")]
        with ThreadPoolExecutor(10) as pool:
            answers = pool.map(
                lambda each: each[0].served.request(*each[1], ada), [(g, a) for g in (first, second) for a in asked]
            )
            assert [(answer.status, answer.headers["Retry-After"]) for answer in answers] == [(503, "1")] * 10
        shown = first.served.request("GET", f"/{name}", BROWSER)
        assert (shown.status, b"<!doctype html>" in shown.content) == (503, True)
        browser.go("about:blank")
        browser.go(f"{first.url}/{name}")
        browser.wait_for("connecting", "#connection")
        browser.wait("!document.querySelector('#game').hidden")
        assert browser.text("#state") == ""
    finally:
        redis.signal(signal.SIGCONT)
    wait_until(lambda: first.served.request("GET", "/").status == second.served.request("GET", "/").status == 200, LIMIT_S)
    browser.wait_for("Ada's turn", "#state")
    assert second.move(name, 0, ada).status == 204
    browser.wait_for("X", "#board")
    browser.wait_for("live", "#connection")


@pytest.mark.slow
@pytest.mark.parametrize("start", [start_uvicorn, start_gunicorn])
def test_a_stop(redis: Running, directory: Path, start: Callable[[Path, str], Game]) -> None:
    """An open page does not keep an instance from stopping: its stream ends, and no traceback is printed."""
    game = start(directory, redis.url)
    try:
        with game.served.connect() as page:
            page.sendall(wire("GET", "/store/_/follow?path=/games/", [("Accept", "text/event-stream")]))
            assert page.recv(65_536).startswith(b"HTTP/1.1 200")
            game.served.stop()
    finally:
        game.served.kill()
    assert "Traceback" not in game.served.said


# --- In browsers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_play(first: Game, second: Game, browser: Browser, other: Browser) -> None:
    """Two play by mouse and by keyboard, one on each instance. One instance is killed, and started again: both go on."""
    browser.go(f"{first.url}/")
    other.go(f"{second.url}/")
    browser.click("button", "New game")
    name = browser.wait("location.pathname.slice(1)")
    other.click("#games a", name)
    browser.type("#as", "Ada")
    browser.press(ENTER)
    browser.wait_for("Waiting for a second player", "#state")
    other.wait_for("Ada", "#players")
    other.type("#as", "<script>alert(1)")
    other.click("#join button")
    for each in (browser, other):
        each.wait_for("<script>alert(1)", "#players")
    other.wait_for("you", "#players")  # it has its cookie, which may come later than the change
    alan = first.player(name, "Alan")
    browser.wait_for("watches", "#players")
    browser.wait_for("Your turn", "#state")
    other.click("#board button:nth-child(1)")
    other.wait_for("it is not your turn", "#refused")
    browser.run("document.querySelector('#board button').focus()")
    browser.press(RIGHT, RIGHT, RIGHT, RIGHT, ENTER)
    other.wait_for("Your turn", "#state")
    assert first.move(name, 0, alan).status == 403
    other.click("#board button:nth-child(1)")
    browser.wait(f"{MARKED} === 'O...X....'")
    assert browser.run("return [...document.activeElement.parentElement.children].indexOf(document.activeElement)") == 4

    first.served.kill()
    browser.wait_for("connecting", "#connection")
    browser.click("#board button:nth-child(2)")
    browser.wait_for("No connection", "#refused")
    assert second.player(name, "Joe")
    other.wait_for("Joe", "#players")
    first.start()
    browser.wait_for("Joe", "#players")
    browser.wait_for("live", "#connection")
    for who, cell in ((browser, 2), (other, 4), (browser, 8)):
        who.wait("document.querySelector('#board button[aria-disabled=false]')")
        who.click(f"#board button:nth-child({cell})")
        for each in (browser, other):
            each.wait("document.querySelector(arguments[0]).textContent", f"#board button:nth-child({cell})")
    # X has 2, 5 and 8: the middle column.
    browser.wait_for("You won.", "#state")
    other.wait_for("Ada won.", "#state")
    assert browser.run("return document.querySelectorAll('#board .won').length") == 3
    other.go(f"{second.url}/")
    other.wait_for("Ada won", "#games")
    for each in (browser, other):
        assert not [line for line in each.logged() if "Failed to load resource" not in line and "net::ERR" not in line]


@pytest.mark.slow
def test_the_lobby_is_live(first: Game, second: Game, browser: Browser) -> None:
    """Newest first; a game that is made elsewhere comes, one that nobody touches for a day goes, and the focus stays."""
    old = first.new()
    browser.go(f"{first.url}/")
    browser.wait_for(old, "#games li:first-child")
    browser.run("document.querySelector('#games a').focus()")
    name = second.new()
    browser.wait_for(name, "#games li:first-child")
    assert browser.run("return document.activeElement.textContent") == old
    browser.press(TAB)
    browser.wait_for("0 of 8", "#games li:first-child")
    ada = second.player(name)
    browser.wait_for("1 of 8", "#games li:first-child")
    second.player(name)
    browser.wait_for("playing", "#games li:first-child")
    touches: list[Callable[[], Response]] = [lambda: second.join(name, "", ada), lambda: second.move(name, 0, ada)]
    for touch in touches:
        first.store.patch(f"/games/{name}", ttl=60)
        assert touch().status < 300
        stored = first.store.get(f"/games/{name}")
        assert stored
        assert DAY_S - LIMIT_S < (stored.ttl or 0) <= DAY_S
    first.store.patch(f"/games/{name}", ttl=1)
    browser.wait("!document.querySelector('#games').innerText.includes(arguments[0])", name)
    assert second.join(name).status == 404
    browser.go(f"{first.url}/{old}")
    browser.wait_for("Join to play", "#state")
    first.store.patch(f"/games/{old}", ttl=1)
    browser.wait_for("Game not found", "#state")


@pytest.mark.slow
def test_the_page(first: Game, browser: Browser) -> None:
    """No script but its own runs in it, and it fits a phone."""
    name = first.new()
    for n in range(8):
        first.player(name, "W" * 24 if n % 2 else "<img%20src=x%20onerror=alert(1)>")
    policy = first.served.request("GET", f"/{name}", BROWSER).headers["Content-Security-Policy"] or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    try:
        for width in (1280, 360):
            browser.resize(width, 800)
            for path in (f"/{name}", "/"):
                browser.go(first.url + path)
                browser.wait_for("live", "#connection")
                browser.wait("document.querySelector('#games li, #players li')")
                assert browser.run("return document.documentElement.scrollWidth") <= width
        browser.go(f"{first.url}/{name}")
        browser.wait_for("<img src=x onerror=alert", "#players")
        assert browser.run("return [document.images.length, document.querySelector('#join').hidden]") == [1, True]
    finally:
        browser.resize(1280, 800)


@pytest.mark.slow
def test_the_picture(first: Game, other: Browser, place: Path) -> None:
    """What the README shows is what the pages look like."""
    draw(other, first, place / "game.png")
    other.resize(1280, 800)
    drawn, shown = (place / "game.png").read_bytes(), PICTURE.read_bytes()
    assert drawn[16:24] == shown[16:24] == struct.pack(">II", *SIZE)
    assert 0.5 < len(drawn) / len(shown) < 2  # fonts differ
