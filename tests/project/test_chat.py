"""examples/chat, as its users use it: two browsers on two instances with one Redis, and those who try more than they may."""

import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.browser import ENTER, TAB, Browser, Driver
from tests.support.serving import Response, Served
from tests.support.stores import answers, connect, free_ports, make_directory, start_redis_on_tcp, wait_for_redis, wait_until

pytest.importorskip("argon2")

CHAT = Path(__file__).parents[2] / "examples" / "chat"
PICTURE = CHAT / "chat.png"
SIZE = (1120, 640)
PASSWORD = "password123"
LIMIT_S = 60  # what a process that died holds goes after 30 s
PEOPLE = ["Alex", "Joe", "Mary", "Pablo"]
GENERAL, ROOM = "/chat/general/log/", "/chat/private/joe/mary/"


class Chat:
    """Instances of the chat on one Redis, and requests to them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        port, self._redis = start_redis_on_tcp(directory, "--save", "")
        self.url = f"redis://127.0.0.1:{port}"
        self.redis = connect(self.url)
        wait_for_redis(self._redis, directory, lambda: answers(self.redis))
        self._started: list[Served] = []

    def start(self, name: str, port: int = 0) -> Served:
        """An instance, on a port of its own choice."""
        home = self.directory / name
        home.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "flask", "--app", str(CHAT / "app.py"), "run", "-p", str(port)]
        self._started.append(Served(home, command, {"REDIS_URL": self.url}))
        return self._started[-1]

    def stop(self) -> None:
        """End the instances, and Redis."""
        for served in self._started:
            served.kill()
        self.redis.close()
        self._redis.kill()
        self._redis.wait()


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    """A Redis for a chat."""
    directory = make_directory()
    running = Chat(directory)
    yield running
    running.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def both(chat: Chat) -> Iterator[tuple[Served, Served]]:
    """Two instances that were started at once."""
    with ThreadPoolExecutor(2) as pool:  # a process ends with the thread that has started it
        one, two = pool.map(chat.start, ("one", "two"))
        yield one, two


@pytest.fixture
def driver(chat: Chat) -> Iterator[Driver]:
    """What starts browsers, which end with the test."""
    running = Driver(chat.directory)
    yield running
    running.close()


def ask(served: Served, method: str, target: str, body: Any = None, cookie: str = "", **fields: str) -> Response:
    """A request of somebody with a session."""
    headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
    if body is not None:
        headers.append(("content-type", "application/json"))
    content = b"" if body is None else json.dumps(body).encode()
    return served.request(method, target, [*headers, ("cookie", cookie)], content)


def log_in(served: Served, name: str, password: str = PASSWORD) -> Response:
    """What the chat answers."""
    return ask(served, "POST", "/login", {"username": name, "password": password})


def session_of(served: Served, name: str) -> str:
    """The cookie of somebody who has logged in."""
    field = log_in(served, name).headers["Set-Cookie"]
    assert re.search(r"; HttpOnly; Path=/; SameSite=Lax$", field), field
    return field.partition(";")[0]


def join(browser: Browser, served: Served, name: str) -> None:
    """Open the page, as one of the demo people."""
    browser.go("http://{}:{}/".format(*served.at))
    browser.click("#demo button", name)
    browser.find("#scroll li p")


def mary_and_joe(driver: Driver, one: Served, two: Served) -> tuple[Browser, Browser]:
    """Two people in General, each on an instance of their own, who see each other."""
    mary, joe = driver.open(), driver.open()
    join(mary, one, "Mary")
    join(joe, two, "Joe")
    mary.wait_for("Joe connected", "#scroll")
    return mary, joe


def say(browser: Browser, text: str) -> None:
    """Write a message as somebody does."""
    browser.type("#write input", text)
    browser.press(ENTER)


def shown(browser: Browser) -> list[str]:
    """The texts that a page shows in its room."""
    found: list[str] = browser.run("return [...document.querySelectorAll('#scroll li > p')].map(each => each.textContent)")
    return found


# --- Who somebody is ------------------------------------------------------------------------------------------------------


def test_it_starts_and_knows_its_people(directory: Path) -> None:
    """Without a browser, and on a store of its own: the page, a session, a message, and nothing for who has none."""
    served = Served(directory, [sys.executable, "-m", "flask", "--app", str(CHAT / "app.py"), "run", "-p", "0"], {})
    try:
        page = ask(served, "GET", "/")
        assert b"/static/chat.js" in page.content
        assert "script-src 'self';" in str(page.headers["Content-Security-Policy"])
        assert "unsafe" not in str(page.headers["Content-Security-Policy"])
        assert b"export function connect" in ask(served, "GET", "/_/kvstore.js").content
        assert json.loads(ask(served, "GET", "/me").content) is None
        assert ask(served, "GET", "/chat/general/log/").status == 401
        mary = session_of(served, "mary")
        assert json.loads(ask(served, "GET", "/me", cookie=mary).content) == {"id": "mary", "username": "Mary"}
        log = json.loads(ask(served, "GET", "/chat/general/log/", cookie=mary).content)["items"]
        assert [item["value"]["name"] for item in log] == ["Pablo", "Mary", "Joe", "Alex"]
    finally:
        served.kill()
    assert len((CHAT / "app.py").read_text("utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_demo_people_are_made_once(chat: Chat, both: tuple[Served, Served]) -> None:
    """By two instances that start together as well: each has an account, and has said one thing."""
    mary = session_of(both[0], "Mary")
    assert all(chat.redis.exists(f"kv:{{accounts}}/={name.lower()}") for name in PEOPLE)
    said = [item["value"]["text"] for item in json.loads(ask(both[1], "GET", GENERAL, cookie=mary).content)["items"]]
    assert [said.count(text) for text in said[:4]] == [1] * 4


LOGINS: list[tuple[Any, int, Any]] = [
    ({"username": "Mary", "password": PASSWORD}, 200, {"id": "mary", "username": "Mary"}),
    ({"username": " mARY ", "password": PASSWORD}, 200, {"id": "mary", "username": "Mary"}),
    ({"username": "Ｍary", "password": PASSWORD}, 200, {"id": "mary", "username": "Mary"}),
    ({"username": "Mary", "password": "password124"}, 401, {"message": "Invalid username or password"}),
    *[({"username": name, "password": "x"}, 400, None) for name in ("", "  ", "a" * 41, "a\0b", "\ud800", "a\u202eb", 1, None)],
    *[({"username": "Eve", "password": password}, 400, None) for password in ("", 1, None, ["x"])],
    ([], 400, None),
    (None, 400, None),
    ("Mary", 400, None),
    ({"username": "Eve"}, 400, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("body", "status", "expected"), LOGINS)
def test_logins(both: tuple[Served, Served], body: Any, status: int, expected: Any) -> None:
    """Whatever is sent, with the answers that a page can show."""
    answer = ask(both[0], "POST", "/login", body)
    assert answer.status == status
    assert ("Set-Cookie" in answer.headers) == (status == 200)
    said = json.loads(answer.content)
    assert said == expected if expected else said["message"]


@pytest.mark.slow
def test_a_name_is_taken_once(chat: Chat, both: tuple[Served, Served]) -> None:
    """By 200 at once, at both instances, in any case: one has it, and the others have not its password, nor many more tries."""

    def register(number: int) -> int:
        name = "".join(letter.upper() if number >> at & 1 else letter for at, letter in enumerate("straßeñ"))
        return log_in(both[number % 2], name, f"password of {number}").status

    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(register, range(200)))
    assert (statuses.count(201), set(statuses)) == (1, {201, 401, 429})
    assert 20 <= statuses.count(401) < 100, "20, and those that were looked at when the last of these was wrong"
    assert len([key for key in chat.redis.keys("kv:{accounts}/*") if b"stras" in key]) == 1
    waits = log_in(both[0], "Mary")
    assert (waits.status, waits.headers["Retry-After"]) == (429, "60"), "the right password as well, or one could try them all"
    assert chat.redis.keys("kv:{wrong}/*") == [b"kv:{wrong}/127.0.0.1"], "one count, also where the next minute begins"
    chat.redis.delete(*chat.redis.keys("kv:{wrong}*"))
    assert log_in(both[0], "Mary").status == 200


@pytest.mark.slow
def test_a_session_is_of_this_chat(both: tuple[Served, Served]) -> None:
    """It holds at the other instance, and not where somebody has changed it; it ends."""
    mary, joe = session_of(both[0], "Mary"), session_of(both[1], "Joe")
    assert json.loads(ask(both[1], "GET", "/me", cookie=mary).content)["id"] == "mary"
    claims, _, signature = joe.removeprefix("chat=").partition(".")
    forged = [mary.split(".")[0] + "." + signature, "chat=" + claims, f"chat={claims[:-2]}AA.{signature}", "chat=x", mary[:-1]]
    for cookie in (*forged, mary.replace("chat=", "session=")):
        assert json.loads(ask(both[0], "GET", "/me", cookie=cookie).content) is None, cookie
        assert ask(both[0], "GET", "/chat/general/log/", cookie=cookie).status == 401, cookie
        assert ask(both[0], "POST", "/chat/general/log/", signed("mary", "Mary"), cookie=cookie).status == 401, cookie
    again = session_of(both[1], "Mary")
    ended = ask(both[0], "POST", "/logout", cookie=mary)
    assert (ended.status, "Max-Age=0" in str(ended.headers["Set-Cookie"])) == (204, True)
    assert ask(both[1], "GET", "/chat/general/log/", cookie=mary).status == 401, "a copy of the cookie has ended too"
    assert ask(both[1], "GET", "/chat/general/log/", cookie=again).status == 200, "another session of the same person has not"
    for site in ("cross-site", "same-site"):  # SameSite=Lax lets in the second one, which may be another port
        assert (
            ask(both[0], "POST", "/chat/general/log/", signed("mary", "Mary"), cookie=again, sec_fetch_site=site).status == 403
        )
        assert ask(both[0], "POST", "/login", {"username": "Joe", "password": PASSWORD}, sec_fetch_site=site).status == 403


# --- Those who try more than they may -------------------------------------------------------------------------------------

WORD = "rosebud"


def signed(author: str, name: str, text: str = WORD) -> dict[str, str]:
    """A message."""
    return {"author": author, "name": name, "text": text}


def batch(*requests: dict[str, Any], atomic: bool = True) -> dict[str, Any]:
    """The body of a batch."""
    return {"atomic": atomic, "requests": list(requests)}


EVENTS, LINES = {"accept": "text/event-stream"}, {"accept": "application/x-ndjson"}
CONDITIONS = "author:eq=joe", "search=rose", "text:startsWith=r&count", "count"

# What Alex asks for, and what nobody asks for: the private messages of Joe and Mary, by every way there is. MESSAGE is one,
# and ID is that of its change.
Row = tuple[str, str, Any, dict[str, str]]  # method, target, body, header fields
READS: list[Row] = [
    *[
        (method, target, None, {})
        for method in ("GET", "HEAD")
        for target in ("MESSAGE", f"{ROOM}log/", ROOM, "/chat/private/")
    ],
    *[("GET", f"{at}?recursive", None, {}) for at in (ROOM, "/chat/private/joe/", "/chat/private/", "/chat/", "/chat/inbox/")],
    *[("GET", at, None, {}) for at in ("/chat/inbox/mary/", "/chat/inbox/mary/joe", "/chat/inbox/joe/mary")],
    *[("GET", f"{ROOM}log/?{words}", None, {}) for words in CONDITIONS],
    *[("GET", f"{ROOM}log/?{words}", None, LINES) for words in CONDITIONS[:3]],
    ("GET", f"{ROOM}log/?author:eq=joe", None, {"if-none-match": '"1-1"', "prefer": "wait=1"}),
    *[
        ("QUERY", at, body, {})
        for at in (f"{ROOM}log/", "/chat/private/")
        for body in ({}, {"recursive": True, "search": "rose"})
    ],
    *[("GET", f"{at}?changes", None, {}) for at in ("MESSAGE", f"{ROOM}log/", ROOM, "/chat/", "/chat/inbox/mary/joe")],
    ("GET", "MESSAGE?at=ID", None, {}),
    *[("GET", at, None, LINES) for at in (f"{ROOM}log/", f"{ROOM}?recursive", "/chat/?recursive")],
    *[("GET", at, None, EVENTS) for at in ("MESSAGE", f"{ROOM}log/", ROOM, "/chat/private/?recursive", "/chat/inbox/mary/")],
    *[
        ("GET", f"{at}{words}", None, EVENTS)
        for at in (f"{ROOM}log/", "/chat/")
        for words in ("?author:eq=joe", "?search=rose")
    ],
    ("GET", f"/_/follow?path={quote(f'{ROOM}log/?author:eq=joe')}", None, EVENTS),
    *[("GET", at, None, EVENTS | {"last-event-id": "0-1"}) for at in ("MESSAGE", ROOM, "/chat/", "/chat/inbox/joe/")],
    ("GET", f"{ROOM}log/", None, EVENTS | {"last-event-id": "ID"}),
    *[("GET", f"/_/follow?path={quote(at)}", None, EVENTS) for at in ("MESSAGE", f"{ROOM}?recursive", "/chat/")],
    ("GET", f"/_/follow?path=/chat/general/&path={ROOM}", None, EVENTS),
    ("GET", f"{ROOM}log/", None, {"if-none-match": '"1-1"', "prefer": "wait=1"}),
    ("GET", "MESSAGE", None, {"if-none-match": '"1-1"', "prefer": "wait=1"}),
    *[("POST", "/_/batch", batch({"method": "GET", "path": "MESSAGE"}, atomic=atomic), {}) for atomic in (True, False)],
    ("POST", "/_/batch", batch({"method": "PATCH", "path": "MESSAGE", "body": {"x": 1}}, atomic=False), {}),
    ("POST", f"{ROOM}log/?lease=30s", None, {}),
    ("PATCH", "MESSAGE", {"x": 1}, {}),
    ("PUT", "MESSAGE", signed("alex", "Alex", "mine"), {"if-match": '"ID"'}),
    ("PUT", "MESSAGE", signed("alex", "Alex", "mine"), {"if-none-match": "*"}),
    ("DELETE", "MESSAGE", None, {}),
    ("DELETE", f"{ROOM}?recursive", None, {}),
    *[("GET", at, None, {}) for at in ("/accounts/", "/accounts/=mary", "/secret", "/sessions/", "/wrong/")],
]


@pytest.mark.slow
def test_a_private_room_is_of_two(both: tuple[Served, Served]) -> None:
    """Nobody else learns what is said there, nor changes it: not Alex, and nobody without a session, whatever they ask for."""
    one, two = both
    joe, mary, alex = (session_of(one, name) for name in ("Joe", "Mary", "Alex"))
    posted = ask(one, "POST", f"{ROOM}log/", signed("joe", "Joe"), joe)
    assert posted.status == 201
    said = json.loads(posted.content)
    entry = {"name": "Joe", "text": WORD, "unread": {".sv": {"increment": 1}}, "time": {".sv": "timestamp"}}
    assert ask(one, "PATCH", "/chat/inbox/mary/joe", entry, joe).status in (200, 201)
    assert WORD.encode() in ask(two, "GET", said["path"], cookie=mary).content
    assert WORD.encode() in ask(two, "GET", f"{ROOM}?recursive", cookie=mary).content
    assert WORD.encode() in ask(two, "GET", "/chat/inbox/mary/", cookie=mary).content

    def send(row: Row, cookie: str) -> Response:
        method, target, body, fields = json.loads(
            json.dumps(row).replace("MESSAGE", said["path"]).replace("ID", said["etag"].strip('"'))
        )
        return ask(one, method, target, body, cookie, **{name.replace("-", "_"): value for name, value in fields.items()})

    for row in READS:
        for cookie, refused in ((alex, 403), ("", 401)):
            answer = send(row, cookie)
            what = (*row, answer.status, answer.content)
            if row[1] == "/_/batch":
                inner = json.loads(answer.content)
                is_atomic = row[2]["atomic"]
                assert answer.status == (409 if is_atomic else 200), what
                assert (inner["problem"] if is_atomic else inner["responses"][0])["status"] == refused, what
            else:
                assert answer.status == refused, what
            assert WORD.encode() not in answer.content, what
            assert said["etag"].strip('"').encode() not in answer.content.replace(said["path"].encode(), b""), what
            assert "ETag" not in answer.headers, what
    for row in READS:  # and each question about the room has an answer, for who may ask it
        if (
            row[1].startswith(("MESSAGE", f"{ROOM}log/"))
            and row[0] in ("GET", "QUERY")
            and "text/event-stream" not in row[3].values()
        ):
            answer = send(row, mary)
            found = WORD.encode() in answer.content or json.loads(answer.content or b"{}").get("count") == 1
            assert (answer.status, found) == (200, True), (*row, answer.status, answer.content)
    assert json.loads(ask(two, "GET", said["path"], cookie=mary).content)["text"] == WORD


FORGED: list[tuple[str, str, Any, dict[str, str]]] = [
    ("POST", GENERAL, signed("mary", "Mary"), {}),
    ("POST", GENERAL, signed("alex", "Mary"), {}),
    ("POST", GENERAL, signed("mary", "Alex"), {}),
    ("POST", GENERAL, {"text": WORD}, {}),
    ("POST", GENERAL, [WORD], {}),
    ("POST", GENERAL, {"author": ["alex"], "name": "Alex", "text": WORD}, {}),
    ("PUT", f"{GENERAL}1795260845967a0", signed("alex", "Alex"), {}),
    ("PUT", f"{GENERAL}1795260845967a0", signed("alex", "Alex"), {"if-none-match": "*"}),  # a time of their own choice
    ("PATCH", f"{GENERAL}1795260845967a0", signed("alex", "Alex"), {}),
    ("POST", f"{GENERAL}deeper/", signed("alex", "Alex"), {}),
    ("POST", "/chat/general/", signed("alex", "Alex"), {}),
    ("POST", f"{ROOM}log/", signed("alex", "Alex"), {}),
    ("POST", f"{ROOM}log/", signed("joe", "Joe"), {}),
    ("POST", "/chat/private/mary/joe/log/", signed("alex", "Alex"), {}),
    ("POST", "/chat/private/alex/mary/log/", signed("mary", "Mary"), {}),
    ("PUT", "/chat/inbox/mary/joe", {"name": "Joe", "text": WORD}, {}),
    ("PUT", "/chat/inbox/mary/alex", {"name": "Joe", "text": WORD}, {}),
    ("PATCH", "/chat/inbox/mary/alex", {"name": "Joe"}, {}),
    ("PUT", "/chat/online/mary", {"name": "Mary"}, {}),
    ("PUT", "/chat/online/alex", {"name": "Mary"}, {}),
    ("GET", '/_/follow?path=/chat/online/&hold=/chat/online/mary&as={"name":"Mary"}', None, EVENTS),
    ("GET", '/_/follow?path=/chat/online/&hold=/chat/online/alex&as={"name":"Mary"}', None, EVENTS),
    ("PUT", "/chat/general/typing/mary", {"name": "Mary"}, {}),
    ("PUT", "/chat/private/alex/mary/typing/mary", {"name": "Mary"}, {}),
    ("PUT", "/accounts/=alex", {"id": "mary", "name": "Mary"}, {}),
    ("PUT", "/secret", "x" * 64, {}),
    ("DELETE", "/chat/?recursive", None, {}),
]


def stored(chat: Chat) -> dict[Any, Any]:
    """All documents, but the count of wrong passwords, which goes after a minute."""
    keys: list[Any] = chat.redis.keys("*")
    return {key: chat.redis.dump(key) for key in keys if b"!" not in key and not key.startswith(b"kv:{wrong}")}


@pytest.mark.slow
def test_nobody_speaks_in_the_name_of_another(chat: Chat, both: tuple[Served, Served]) -> None:
    """Author, id and time are the server's, also in a batch; nothing is stored of what is refused."""
    alex = session_of(both[0], "Alex")
    # What goes by itself is gone: who was here in a test before this one, and wrote.
    wait_until(lambda: not chat.redis.keys("kv:{chat}/online/*") + chat.redis.keys("kv:{chat}/*/typing/*"), LIMIT_S)
    before = stored(chat)
    for method, target, body, fields in FORGED:
        headers = {name.replace("-", "_"): value for name, value in fields.items()}
        answer = ask(both[0], method, quote(target, safe="/?=&"), body, alex, **headers)
        assert answer.status == 403, (method, target, body, answer.status, answer.content)
        if method not in ("GET", "DELETE"):
            step = {"method": method, "path": target, "body": body, "headers": fields}
            answer = ask(both[0], "POST", "/_/batch", batch(step, atomic=False), alex)
            assert json.loads(answer.content)["responses"][0]["status"] == 403, (method, target)
    assert stored(chat) == before
    first, second = (ask(both[0], "POST", GENERAL, signed("alex", "Alex", "twice"), alex) for _ in range(2))
    assert (first.status, second.status) == (201, 201)
    assert json.loads(first.content)["path"] < json.loads(second.content)["path"], "the same text twice is two messages"


# --- In browsers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_browsers_and_two_instances(chat: Chat, both: tuple[Served, Served], driver: Driver) -> None:
    """Rooms, private messages, unread ones, typing, presence, a reload, and two tabs."""
    one, two = both
    mary, joe = mary_and_joe(driver, one, two)

    # What is said in General is seen by everybody, as text; a blank is not said.
    joe.hear("#typing")
    joe.run("window.button = document.querySelector('#rooms button')")
    mary.type("#write input", "<script>alert(1)</script><b>&amp;")
    joe.wait_for_heard("Mary is typing…")
    assert joe.run("return button.isConnected"), "a click on it that has begun is not lost"
    mary.press(ENTER)
    joe.wait("[...document.querySelectorAll('#scroll li > p')].at(-1).textContent === '<script>alert(1)</script><b>&amp;'")
    joe.wait("!document.querySelector('#typing').textContent")
    count = len(shown(joe))
    say(mary, "   ")
    say(mary, "twice")
    say(mary, "twice")
    joe.wait(f"document.querySelectorAll('#scroll li > p').length === {count + 2}")
    assert shown(joe)[-2:] == ["twice", "twice"]
    sides = joe.run("return [...document.querySelectorAll('#scroll li:not(.event)')].slice(-2).map(each => each.className)")
    assert sides == ["theirs", "theirs"]

    # A click on a name opens a private room; the other one sees that there is something unread.
    joe.click(".name", "Mary")
    joe.wait_for("Mary", "#title")
    say(joe, "between you and me")
    mary.wait_for("between you and me", "#rooms [data-id=joe]")
    mary.find("#rooms [data-id=joe] .unread")
    assert mary.run("return document.querySelector('#rooms [data-id=joe] i').className") == "here"
    mary.click("#rooms [data-id=joe]")
    mary.wait_for("between you and me", "#scroll")
    mary.wait("!document.querySelector('.unread')")
    say(mary, "and nobody else")
    joe.wait_for("and nobody else", "#scroll")

    # A reload keeps session, room and history. However long it takes, joe's page looks again when it has come to its end.
    joe.run(HOLD_TIMERS)
    mary.ask("POST", "/refresh", {})
    mary.wait_for("and nobody else", "#scroll")
    assert mary.text("#title") == "Joe"
    say(mary, "still here")
    joe.wait_for("still here", "#scroll")  # after all that joe's page is told of the reload
    check_two_tabs(mary, joe, one)
    assert not [line for each in (mary, joe) for line in each.logged() if "Failed to load resource" not in line]


# Timers of 3 s do not run, by which somebody who is not back has left.
HOLD_TIMERS = """
window.held = []
const wait = window.setTimeout
window.setTimeout = (call, ms) => (ms === 3000 ? held.push(call) : wait(call, ms))
"""


def check_two_tabs(mary: Browser, joe: Browser, one: Served) -> None:
    """They are one person, who has not left while one is open."""
    [first] = mary.windows()
    mary.switch_to(mary.open_window())
    mary.go("http://{}:{}/#general".format(*one.at))
    mary.wait_for("twice", "#scroll")
    mary.ask("DELETE", "/window")
    mary.switch_to(first)
    joe.click("#rooms [data-id=general]")
    joe.wait_for("twice", "#scroll")
    joe.run("return new Promise(done => setTimeout(done, 1000))")
    joe.wait("document.querySelector('#rooms [data-id=mary] i').className === 'here'")
    joe.run("held.forEach(call => call())")
    assert "Mary left" not in joe.text("#scroll")
    assert "Mary connected" not in joe.text("#scroll"), "the page was loaded again, that is all"


@pytest.mark.slow
def test_an_instance_is_killed(chat: Chat, both: tuple[Served, Served], driver: Driver) -> None:
    """Who was there is gone, and the other instance goes on. When it is back, nothing was missed."""
    [port] = free_ports(1)  # one that no connection of a browser is given while the instance is away
    one, two = chat.start("third", port), both[1]
    mary, joe = mary_and_joe(driver, one, two)
    mary.click(".name", "Joe")
    mary.wait_for("Joe", "#title")
    say(mary, "before")
    joe.wait_for("before", "#rooms [data-id=mary]")
    one.kill()
    dot = "return document.querySelector('#rooms [data-id=mary] i').className"
    wait_until(lambda: joe.run(dot) == "away", 90)  # a process that died holds what it held for 30 s at most
    joe.wait_for("Mary left", "#scroll")
    joe.click("#rooms [data-id=mary]")
    joe.wait_for("before", "#scroll")
    say(joe, "meanwhile")
    joe.wait_for("meanwhile", "#scroll")
    mary.wait_for("Connecting…", "#state")
    chat.start("third", port)
    mary.wait_for("meanwhile", "#scroll")
    mary.wait("!document.querySelector('#state').textContent")
    joe.wait("document.querySelector('#rooms [data-id=mary] i').className === 'here'")
    assert shown(mary)[-2:] == shown(joe)[-2:] == ["before", "meanwhile"]
    mary.close()  # as where a browser is killed: its connection ends
    joe.wait("document.querySelector('#rooms [data-id=mary] i').className === 'away'")


@pytest.mark.slow
def test_older_messages(both: tuple[Served, Served], driver: Driver) -> None:
    """They come 15 at a time, each once, while others write."""
    two = both[1]
    cookie = session_of(two, "Pablo")
    for number in range(50):
        ask(two, "POST", GENERAL, signed("pablo", "Pablo", f"message {number}"), cookie)
    browser = driver.open(390, 800)
    browser.go("http://{}:{}/#general".format(*two.at))
    browser.click("#demo button", "Alex")
    browser.wait_for("message 49", "#scroll")
    assert shown(browser) == [f"message {number}" for number in range(35, 50)]
    for _ in range(2):
        ask(two, "POST", GENERAL, signed("pablo", "Pablo", "meanwhile"), cookie)
        count = len(shown(browser))
        browser.click("#older")
        browser.wait(f"document.querySelectorAll('#scroll li > p').length >= {count + 15}")
    browser.wait(
        "[...document.querySelectorAll('#scroll li > p')].filter(each => each.textContent === 'meanwhile').length === 2"
    )
    assert shown(browser) == [f"message {number}" for number in range(5, 50)] + ["meanwhile"] * 2


@pytest.mark.slow
def test_a_new_name_by_keyboard(both: tuple[Served, Served], driver: Driver) -> None:
    """Somebody whose name is a script registers with keys alone, on a phone in the dark, and the name is text everywhere."""
    name = "<script>alert(2)</script>"
    browser, pablo = driver.open(390, 800, is_dark=True), driver.open()
    join(pablo, both[1], "Pablo")
    browser.go("http://{}:{}/".format(*both[1].at))
    browser.find("#demo button")
    browser.run("document.querySelector('[name=username]').focus()")
    for key in (*name, TAB, *"a password", ENTER):
        browser.press(key)
    browser.wait_for("General", "#rooms")
    assert browser.text("#me") == name
    pablo.wait_for(f"{name} connected", "#scroll")
    assert not browser.run("return document.querySelector('section').checkVisibility()"), "a phone shows the rooms first"
    browser.run("document.querySelector('#rooms button').focus()")
    browser.press(ENTER)
    browser.wait("document.querySelector('section').checkVisibility()")
    browser.run("document.querySelector('#write input').focus()")
    for key in (*"hello", ENTER):
        browser.press(key)
    pablo.wait("[...document.querySelectorAll('#scroll .name')].at(-1).textContent === arguments[0]", name)
    wide = browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert wide, "nothing is wider than the screen"
    browser.click("#back")
    browser.click("#logout")
    browser.find("#demo button")
    pablo.wait_for(f"{name} left", "#scroll")
    assert not [line for each in (browser, pablo) for line in each.logged() if "Failed to load resource" not in line]


@pytest.fixture
def fresh(directory: Path) -> Iterator[Chat]:
    """A Redis for a chat in which nothing was said."""
    running = Chat(directory)
    yield running
    running.stop()


@pytest.mark.slow
def test_the_picture(fresh: Chat, driver: Driver) -> None:
    """The README shows what the page looks like; with KVSTORE_PICTURES set, it is drawn anew."""
    served = fresh.start("drawn")
    mary, joe = driver.open(*SIZE), driver.open()
    join(mary, served, "Mary")
    join(joe, served, "Joe")
    mary.wait_for("Joe connected", "#scroll")
    say(mary, "Welcome, Joe!")
    joe.wait_for("Welcome, Joe!", "#scroll")
    joe.click(".name", "Mary")
    joe.wait_for("Mary", "#title")
    say(joe, "Thank you. A question for you alone…")
    mary.find("#rooms [data-id=joe] .unread", "1")
    mary.run("document.activeElement.blur()")
    drawn = fresh.directory / "chat.png"
    mary.screenshot(drawn)
    if os.environ.get("KVSTORE_PICTURES"):
        shutil.copy(drawn, PICTURE)
    for picture in (drawn, PICTURE):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.read_bytes()[16:24] == struct.pack(">II", *SIZE)
    assert PICTURE.stat().st_size < 100_000
    assert 0.5 < drawn.stat().st_size / PICTURE.stat().st_size < 2  # fonts differ
