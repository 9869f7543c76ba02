"""The explorer in Chromium: each thing that a person does there, as that person does it."""

import json
import re
import shlex
import shutil
import struct
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import pytest

from kvstore.core.paths import parse_path
from kvstore.serving.pages import PAGES, read_page
from tests.pages.picture import PICTURE, SIZE, draw
from tests.support.browser import CTRL, DOWN, ENTER, LEFT, RIGHT, Browser
from tests.support.serving import Served, start_kvstore
from tests.support.stores import free_ports, wait_until
from tests.support.tokens import SECRET, in_s, signed

pytestmark = pytest.mark.slow

LIMIT_S = 20


def write(served: Served, path: str, value: Any, method: str = "PUT", **headers: str) -> bytes:
    """Somebody else writes; `value` is JSON text or a value."""
    body = value if isinstance(value, str) else json.dumps(value)
    answer = served.request(method, path, [("content-type", "application/json"), *headers.items()], body.encode())
    assert answer.status < 300, (method, path, answer.status, answer.content)
    return answer.content


def read(served: Served, path: str) -> Any:
    """What is stored at a path, None for nothing."""
    answer = served.request("GET", path)
    return json.loads(answer.content) if answer.status == 200 else None


def open_at(browser: Browser, served: Served, path: str, text: str) -> None:
    """Open the explorer anew at a path, and wait for a text in it."""
    browser.go("about:blank")
    browser.go("http://{}:{}/_/#{}".format(*served.at, path))
    browser.wait_for(text, "main")


def wait_until_closed(browser: Browser) -> None:
    """Wait until no dialog is left: the page may be told of a change before the dialog hears that it was made."""
    browser.wait("!document.querySelector('dialog')")


def check_quiet(browser: Browser) -> None:
    """Nothing was written to the console but what the browser itself says of responses of 400 and above."""
    said = [line for line in browser.logged() if "Failed to load resource" not in line]
    assert not said


# --- The page -----------------------------------------------------------------------------------------------------------


def test_the_first_sight(browser: Browser, served: Served) -> None:
    """It is small and there at once, comes from one origin, and shows how to begin where nothing is stored."""
    open_at(browser, served, "/", "Nothing is stored yet")
    assert "curl -X PUT" in browser.text("main pre")
    loaded = browser.run(
        """return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))
             .filter(each => each.name.includes('/_/')).map(each => [new URL(each.name).pathname, each.encodedBodySize])"""
    )
    assert {path for path, _ in loaded} == set(PAGES) - {"/_/kvstore.js", "/_/reference.js", "/_/tabs.js"}
    assert sum(size for _, size in loaded) <= sum(len(read_page(name).packed) for name in PAGES.values()) < 60_000
    origins = browser.run("return performance.getEntriesByType('resource').map(each => new URL(each.name).origin)")
    assert set(origins) == {"http://{}:{}".format(*served.at)}
    check_quiet(browser)


@pytest.mark.alone
def test_the_first_paint(browser: Browser, served: Served) -> None:
    """It takes less than 300 ms, in the middle of seven loads with nothing in the browser's cache."""
    painted = []
    for _ in range(7):
        browser.developer("Network.clearBrowserCache")
        open_at(browser, served, "/", "Import")
        painted.append(browser.wait("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
    assert median(painted) < 300, painted


def test_the_picture(other: Browser, place: Path) -> None:
    """What the documentation shows is what the explorer looks like: as large, and about as many bytes."""
    home = place / "picture"
    home.mkdir()
    served = start_kvstore(home)
    try:
        draw(other, served, place / "explorer.png")
    finally:
        served.kill()
        other.resize(1280, 800)
    drawn, shown = (place / "explorer.png").read_bytes(), PICTURE.read_bytes()
    assert drawn[:8] == shown[:8] == b"\x89PNG\r\n\x1a\n"
    assert drawn[16:24] == shown[16:24] == struct.pack(">II", *SIZE)
    assert len(shown) < 100_000
    assert 0.5 < len(drawn) / len(shown) < 2  # fonts differ


# --- Reading ------------------------------------------------------------------------------------------------------------

LARGE = '{"ratio":1.0,"big":123456789012345678901234567890,"tiny":1.000000000000000005,"none":null,"yes":true,"list":[]}'


def test_a_document(browser: Browser, served: Served) -> None:
    """Its value to the last digit, the time it has left, its entity-tag, dates and Redis key; parts of it are folded."""
    write(served, "/read/ada?ttl=2h", LARGE)
    open_at(browser, served, "/read/ada", "123456789012345678901234567890")
    shown = browser.text(".value")
    assert json.loads(re.sub(r"(?m)^\s*\n", "", shown)) == json.loads(LARGE)
    assert [text in shown for text in ("1.0,", "1.000000000000000005", "null", "[]")] == [True] * 4
    answer = served.request("GET", "/read/ada")
    facts = browser.text(".facts")
    assert (answer.headers["ETag"] or "x") in facts
    assert "kv:{read}/ada" in facts
    assert re.search(r"01:59:\d\d|02:00:00", facts)
    for field in ("Last-Modified", "Sunset"):
        assert browser.run("return new Date(arguments[0]).toLocaleString()", answer.headers[field]) in facts
    kinds = browser.run("return [...new Set([...document.querySelectorAll('.value span')].map(each => each.className))]")
    assert {"number", "null", "boolean"} <= set(kinds)  # each has a colour
    first = browser.text(".facts .ttl")
    browser.wait("document.querySelector('.facts .ttl').textContent !== arguments[0]", first)
    browser.developer("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.wait_for("Live", "#status")  # which is said in the same place as what was copied
    browser.click("button", "Copy the Redis key")
    browser.wait_for("copied", "#said")
    assert browser.run("return navigator.clipboard.readText()") == "kv:{read}/ada"
    browser.click("button", "Copy the curl command")
    browser.wait("navigator.clipboard.readText().then(text => text === document.getElementById('line').textContent)")
    browser.click(".fold")
    assert "6 members" in browser.text(".value")
    assert "ratio" not in browser.text(".value")
    check_quiet(browser)


def test_large_documents(browser: Browser, served: Served) -> None:
    """As large and as deep as a document may be; the page shows a part of it, and edits it."""
    deep = '{"d":' * 63 + "1" + "}" * 63
    for name, text in (
        ("string", '"%s"' % ("x" * 1_000_000)),
        ("deep", deep),
        ("array", json.dumps([[n, {}] for n in range(60_000)])),
    ):
        write(served, f"/large/{name}", text)
    open_at(browser, served, "/large/", "string")
    browser.wait("document.querySelectorAll('.grid .row').length === 3")
    for name, text in (("string", "Show all 1,000,002 characters"), ("deep", "1 member"), ("array", "Show 100 more of 59,900")):
        browser.run("location.hash = arguments[0]", f"/large/{name}")
        browser.wait_for(text, ".value")
        assert browser.run("return document.querySelectorAll('*').length") < 2500
        tag = served.request("GET", f"/large/{name}").headers["ETag"]
        browser.click("button", "Edit")
        browser.click("button", "Save")
        browser.wait(
            "document.querySelector('.facts') && !document.querySelector('.facts').innerText.includes(arguments[0])", tag
        )
    assert read(served, "/large/array") == [[n, {}] for n in range(60_000)]
    check_quiet(browser)


KEYS = ["/a", "/a/b", "/a/b/c", "/a/b%20c/%C3%A9", "/a%2Fb/c%25", "/a%2541/%252F", "/%7Bx%7D/a", "/", "/a/$&+,;=:@!*'()~._-"]


def test_redis_keys_and_paths(browser: Browser, served: Served) -> None:
    """The page spells keys, and what a person types, as the service does."""
    open_at(browser, served, "/", "Import")
    for path in KEYS:
        ours = parse_path(path.encode())
        spelled = "[api.redisKey(arguments[0]), api.canonical(arguments[0]), api.canonical(api.typed(arguments[0]))]"
        shown = browser.run(f"return import('./api.js').then(api => {spelled})", ours.text)
        assert shown == [ours.keys.document, ours.text, ours.text]
    typed = browser.run("return import('./api.js').then(api => api.canonical('people/Zoë b%/{x}'))")
    assert typed == parse_path(b"/people/Zo%C3%AB b%25/{x}").text


def test_paths_with_dots(browser: Browser, served: Served) -> None:
    """A browser would resolve them, and ask for another path than the page shows: nothing is asked."""
    write(served, "/a", {"n": "of another path"})
    open_at(browser, served, "/a/b/..", "is . or ..")
    assert "of another path" not in browser.text("main")


def test_the_tree(browser: Browser, served: Served) -> None:
    """Namespaces, containers and documents, opened by keyboard."""
    write(served, "/tree/inner/leaf", 1)
    open_at(browser, served, "/", "tree/")
    browser.wait_for("tree", "#tree")
    browser.run("document.querySelector('[role=tree]').focus()")
    rows = "[...document.querySelectorAll('#tree .row')].map(each => each.innerText.trim())"
    steps = browser.run(f"return {rows}").index("tree")
    browser.press(*[DOWN] * steps, RIGHT)
    browser.wait_for("inner", "#tree")
    browser.press(DOWN, RIGHT)
    browser.wait_for("leaf", "#tree")
    active = "document.getElementById(document.querySelector('[role=tree]').getAttribute('aria-activedescendant'))"
    assert browser.run(f"return [{active}.innerText.trim(), {active}.ariaExpanded, {active}.ariaLevel]") == [
        "inner",
        "true",
        "2",
    ]
    browser.run(HOLD_BACK, "/tree/")
    browser.press(DOWN, ENTER)
    browser.wait("location.hash === '#/tree/inner/leaf'")
    browser.press(LEFT, LEFT)
    browser.wait("!document.querySelector('#tree').innerText.includes('leaf')")
    browser.run("release()")
    browser.wait_for("kv:{tree}/inner/leaf", "main")
    assert browser.run("return asked") == 1, "the document: what is open is not loaded again, nor opened again by that"
    assert "leaf" not in browser.text("#tree")
    check_quiet(browser)


ROWS = """[...document.querySelectorAll('.grid .row')]
    .sort((a, b) => a.getBoundingClientRect().y - b.getBoundingClientRect().y)
    .map(each => each.querySelector('a').innerText).join(' ')"""


def test_the_table(browser: Browser, served: Served) -> None:
    """A column for each frequent member. The service sorts and filters, and the curl line asks it the same."""
    values = {"a": {"n": 10}, "b": {"n": 9, "x": "Ada"}, "c": {"n": "9"}, "d": {"x": None}, "e/f": 1}
    for name, value in values.items():
        write(served, f"/table/{name}", value)
    open_at(browser, served, "/table/", "Ada")
    heads = browser.run("return [...document.querySelectorAll('.head > span')].map(each => each.innerText)")
    assert heads == ["Name", "n", "x", "Expires in"]
    # By a member upwards, downwards and not at all; containers have no members.
    for order in ("d b a c", "c a b d", "a b c d e/"):
        browser.click(".head button", "n")
        browser.wait(f"{ROWS} === arguments[0]", order)
    browser.click(".head button", "Name")
    browser.wait(f"{ROWS} === 'e/ d c b a'")
    for words, expected, asked in [
        ("ada", "b", "search=ada"),
        ("n:gte=9", "b a", "order=desc&n:gte=9"),
        ('n:eq="9"', "c", "n:eq=%229%22"),
        ("da&n:lt=10&x:contains=A", "b", "search=da&n:lt=10&x:contains=A"),
        ("x:eq=A&B", "", "x:eq=A%26B"),
    ]:
        browser.type("[type=search]", words)
        browser.wait_for(asked, "#line")
        browser.wait(f"{ROWS} === arguments[0]", expected)
        browser.wait_for(f"{len(expected.split())} found", ".toolbar [role=status]")
    browser.type("[type=search]", "n:is=1")
    browser.wait_for("no operator 'is'", "[role=alert]")
    browser.type("[type=search]", "x:exists=true")
    browser.wait(f"{ROWS} === 'd b'")

    # What others change: a row is marked, comes, moves and goes.
    browser.click(".head button", "n")
    browser.wait_for("2 found", ".toolbar [role=status]")  # in the new order, which has no other rows
    browser.hear(".grid .changed")
    write(served, "/table/g", {"n": 0, "x": "Adam"})
    browser.wait(f"{ROWS} === 'd g b'")
    browser.wait_for_heard("Adam")
    write(served, "/table/g", {"n": 70, "x": "Adam"})
    browser.wait(f"{ROWS} === 'd b g'")
    browser.wait_for_heard("70")
    write(served, "/table/b", {"n": 9})
    browser.wait(f"{ROWS} === 'd g'")
    served.request("DELETE", "/table/d")
    browser.wait(f"{ROWS} === 'g'")
    check_quiet(browser)


def test_hostile_names(browser: Browser, served: Served) -> None:
    """Names and members that would be markup, a path of their own or very long are text."""
    names = ["<img src=x onerror=document.title='bad'>", "..a", "a/b", "%41", "x" * 900, "\u202egnp.exe", "🦄", "'\"`&amp;"]
    for name in names:
        write(served, "/evil/" + browser_quote(name), {name: name, "n": ["</script><script>document.title='bad'</script>"]})
    open_at(browser, served, "/evil/", "gnp.exe")
    browser.wait("document.querySelectorAll('.grid .row').length === arguments[0]", len(names))
    for name in names:
        browser.run("location.hash = '/evil/' + arguments[0]", browser_quote(name))
        browser.wait("document.querySelector('.value')?.innerText.includes(JSON.stringify(arguments[0]))", name)
    assert browser.run("return [document.images.length, document.title.includes('bad ')]") == [0, False]
    browser.run("location.hash = '/evil/none'")
    browser.wait_for("Nothing is stored at this path", "main")
    check_quiet(browser)


def browser_quote(name: str) -> str:
    """A name as a segment of a path."""
    text = parse_path(b"/" + b"".join(b"%%%02X" % byte for byte in name.encode())).text
    return text[1:]


SCROLL = """
const [css, height] = arguments
return (async () => {
  for (;;) {
    const box = document.querySelector(css)
    box.scrollTop = box.scrollHeight
    if (box.scrollHeight >= height) return
    await new Promise(resolve => setTimeout(resolve, 5))
  }
})()
"""


def test_a_hundred_thousand_documents(browser: Browser, served: Served) -> None:
    """They are scrolled through with few elements in the page, in table and tree, and sorted and filtered as one."""
    for start in range(0, 100_000, 1000):
        requests = [{"method": "PUT", "path": f"/many/{i:06}", "body": {"n": 100_000 - i}} for i in range(start, start + 1000)]
        write(served, "/_/batch", {"requests": requests}, "POST")
    open_at(browser, served, "/many/", "000000")
    for css, height, last in ((".grid", 100_000 * 36, "099999"), ("#tree .virtual", 3000 * 28, "002999")):
        browser.run(SCROLL, css, height)
        browser.wait_for(last, css)
        assert browser.run("return document.querySelectorAll('*').length") < 1500
    browser.type("[type=search]", "n:in=30000,99995,2&n:gt=100")
    browser.wait(f"{ROWS} === '000005 070000'")
    write(served, "/many/new", {"n": 30_000})
    browser.wait(f"{ROWS} === '000005 070000 new'")
    browser.type("[type=search]", "n:lte=3000")
    browser.wait_for("found so far", ".toolbar")
    browser.run(SCROLL, ".grid", 1200 * 36)
    write(served, "/many/0", {"n": 1})  # what would be asked for again is much
    browser.find(".toolbar button", "ask again")
    browser.run("window.button = document.querySelector('.toolbar button')")
    browser.hear(".toolbar [role=status]")
    write(served, "/many/0", {"n": 1})
    browser.wait("heard.length")
    assert browser.run("return button.isConnected"), "whoever points at it does not lose it"
    browser.click(".toolbar button", "ask again")
    browser.run("document.querySelector('.grid').scrollTop = 0")
    browser.wait(f"{ROWS}.startsWith('0 097000')")
    browser.type("[type=search]", "")
    browser.click(".head button", "n")
    browser.wait(f"{ROWS}.startsWith('0 099999 099998')")
    browser.run(SCROLL, ".grid", 1200 * 36)
    browser.wait_for("098800", ".grid")
    check_quiet(browser)


# --- Writing ------------------------------------------------------------------------------------------------------------


def test_create_and_edit(browser: Browser, served: Served) -> None:
    """As JSON, with the place of an error; numbers keep their text, and the document its TTL."""
    open_at(browser, served, "/", "New")
    browser.click("button", "New document")
    browser.type("input", "write/Ada Lovelace", "Name of the document")
    browser.type("textarea", '{"a": 1.0,\n "b": tru}')
    browser.wait_for("Line 2, column 7", ".error")
    browser.click("button", "Create")
    assert read(served, "/write/Ada%20Lovelace") is None
    browser.click(".error button", "Line 2")
    assert browser.run("return [document.activeElement.tagName, document.activeElement.selectionStart]") == ["TEXTAREA", 17]
    browser.type("textarea", '{"a": 1.0, "big": 123456789012345678901}')
    browser.click("button", "Create")
    browser.wait_for("kv:{write}/Ada%20Lovelace", "main")
    assert served.request("GET", "/write/Ada%20Lovelace").content.startswith(b'{"a":1.0,"big":123456789012345678901,"ttl":')
    write(served, "/write/Ada%20Lovelace?ttl=1h", "", "PATCH")
    browser.go("about:blank")
    open_at(browser, served, "/write/Ada%20Lovelace", "123456789012345678901")
    browser.click("button", "Edit")
    browser.type("textarea", '{"a": 2.50}')
    assert "If-Match: " in browser.text("#line")
    browser.press(CTRL, ENTER)
    browser.wait_for("2.50", ".value")
    stored = read(served, "/write/Ada%20Lovelace")
    assert stored["a"] == 2.5
    assert 3000 < stored["ttl"] <= 3600
    check_quiet(browser)


def test_patch_ttl_and_delete(browser: Browser, served: Served) -> None:
    """Each in a dialog, each with the entity-tag, each with its curl line; nothing is left of a container that was deleted."""
    write(served, "/write/b", {"a": 1, "list": [1]})
    open_at(browser, served, "/write/b", '"a"')
    browser.click("button", "Patch")
    browser.type("dialog textarea", '{"a": null, "c": 3}')
    browser.wait_for("merge-patch", "#line")
    browser.click("dialog button", "Apply")
    browser.wait_for('"c"', ".value")
    wait_until_closed(browser)
    browser.click("button", "Patch")
    browser.click("dialog input[value=on]:not(:checked), dialog label:last-child input")
    browser.type("dialog textarea", '[{"op": "add", "path": "/list/-", "value": 2.0}]')
    browser.click("dialog button", "Apply")
    browser.wait_for("2.0", ".value")
    wait_until_closed(browser)
    assert {**read(served, "/write/b"), "ttl": 0} == {"list": [1, 2.0], "c": 3, "ttl": 0}
    browser.click("button", "TTL")
    browser.click("dialog button", "5m")
    assert "ttl=5m" in browser.text("#line")
    browser.click("dialog button", "Change")
    browser.wait("/^00:0[45]/.test(document.querySelector('.facts .ttl')?.textContent)")
    wait_until_closed(browser)
    assert read(served, "/write/b")["ttl"] <= 300
    write(served, "/write/b?ttl=2h", "", "PATCH")  # by somebody else, of which no event tells
    browser.wait("/^0[12]:/.test(document.querySelector('.facts .ttl')?.textContent)")
    browser.click("button", "Delete")
    browser.click("dialog button", "Delete")
    browser.wait_for("has just been deleted", "main")
    assert read(served, "/write/b") is None
    write(served, "/write/deep/er", 1)
    open_at(browser, served, "/write/deep/", "er")
    browser.click("button", "Delete all")
    browser.type("dialog input", "/write/deep/")
    browser.click("dialog button", "Delete all")
    browser.wait_for("Nothing is stored here", "main")
    assert read(served, "/write/deep/er") is None
    check_quiet(browser)


def test_append(browser: Browser, served: Served) -> None:
    """A document under an id that the service makes."""
    open_at(browser, served, "/write/log/", "New")
    browser.click("button", "New document")
    browser.type("textarea", '{"said": "hello"}')
    browser.click("button", "Append")
    browser.wait_for('"hello"', ".value")
    assert len(read(served, "/write/log/")["items"]) == 1


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("bash"), reason="no curl or no bash on the PATH")
def test_the_curl_line(browser: Browser, served: Served, place: Path) -> None:
    """It does the same, whatever is in the value."""
    write(served, "/write/it's", {"a": 1})
    open_at(browser, served, "/write/it's", '"a"')
    shown = subprocess.run(["bash", "-c", browser.text("#line")], capture_output=True, check=True, cwd=place).stdout
    assert json.loads(shown)["a"] == 1
    browser.click("button", "Edit")
    value = {"a": 'it\'s "quoted" $HOME `x` \\ é', "b": [1.5]}
    browser.type("textarea", json.dumps(value))
    subprocess.run(["bash", "-c", browser.text("#line")], capture_output=True, check=True, cwd=place)
    stored = read(served, "/write/it's")
    assert stored.pop("ttl") > 0
    assert stored == value
    assert shlex.split(browser.text("#line"))[0] == "curl"
    browser.wait_for("has just changed", "main")  # which moves the buttons down
    browser.click("button", "Cancel")


def test_the_api(browser: Browser, served: Served) -> None:
    """Every operation is there, with a form that sends the request and shows the response."""
    open_at(browser, served, "/?api", "Replace a document")
    described = json.loads(served.request("GET", "/_/openapi.json").content)["paths"]
    methods = {"get": "GET", "put": "PUT", "post": "POST", "patch": "PATCH", "delete": "DELETE", "x-query": "QUERY"}
    expected = [f"{methods[each]} {path}" for path, item in described.items() for each in item if each in methods]
    shown = browser.run("return [...document.querySelectorAll('summary')].map(each => each.innerText)")
    assert [" ".join(each.split()[:2]) for each in shown] == expected
    browser.click("summary", "Replace a document")
    browser.type(".try input", "api/it's", "document")
    browser.type(".try input", "90s", "ttl")
    browser.type(".try textarea", '{"a": 1.0}')
    browser.click(".try button", "Send PUT")
    browser.wait_for("201 Created", ".try")
    browser.wait_for('{"a":1.0,"ttl":90}', "[aria-label=Response]")
    assert "ttl=90s" in browser.text("#line")
    browser.click(".try button", "Send PUT")
    browser.wait_for("200 OK", ".try")
    browser.type(".try textarea", "{")
    browser.click(".try button", "Send PUT")
    browser.wait_for("400 Bad Request", ".try")
    browser.click("summary", "Replace a document")
    browser.click("summary", "QUERY")
    browser.type(".try input", "api", "container")
    browser.type(".try textarea", '{"where": {"a": {"eq": 1}}}')
    browser.click(".try button", "Send QUERY")
    browser.wait("[...document.querySelectorAll('.try')].some(each => each.innerText.includes('200 OK'))")
    check_quiet(browser)


# --- Others ---------------------------------------------------------------------------------------------------------------


def test_what_others_change(browser: Browser, other: Browser, served: Served) -> None:
    """It appears at once and is marked: in the tree, in the table, in the document; what is gone goes."""
    write(served, "/live/ada", {"name": "Ada", "born": 1814})
    open_at(other, served, "/live/", "ada")
    open_at(browser, served, "/live/ada", "1814")
    write(served, "/live/ada", {"name": "Ada", "born": 1815})
    browser.wait("document.querySelector('.value .changed')?.innerText === '\"born\": 1815'")
    assert "26 characters" in browser.text(".facts")  # of {"name":"Ada","born":1815}
    other.wait("document.querySelector('.grid .changed')?.innerText.includes('1815')")
    other.wait("document.querySelector('#tree .changed')")
    write(served, "/live/grace", {"name": "Grace"})
    other.wait_for("Grace", ".grid")
    other.wait_for("grace", "#tree")
    browser.click("button", "Delete")
    browser.click("dialog button", "Delete")
    other.wait("!document.querySelector('.grid').innerText.includes('1815')")
    other.wait("![...document.querySelectorAll('#tree .row')].some(each => each.innerText.trim() === 'ada')")
    write(served, "/live/new/thing", 1)
    other.wait_for("new/", ".grid")
    write(served, "/newcomer/a", 1)
    other.wait_for("newcomer", "#tree")
    check_quiet(other)


def test_many_windows(browser: Browser, served: Served) -> None:
    """A browser has six connections: windows share those that are for streams, and those without one look now and then."""
    before = browser.windows()
    for name in "ab":
        write(served, f"/shared-{name}/doc", {"n": 1})
    try:
        while len(browser.windows()) < 4:
            browser.open_window()
        for window in browser.windows():
            browser.switch_to(window)
            for name in "ab":
                open_at(browser, served, f"/shared-{name}/", "doc")
        for i, window in enumerate(browser.windows()):
            browser.switch_to(window)
            write(served, "/shared-b/doc", {"n": f"for {i}"})
            browser.wait_for(f"for {i}", ".grid")
            check_quiet(browser)
    finally:
        for window in set(browser.windows()) - set(before):
            browser.switch_to(window)
            browser.ask("DELETE", "/window")
        browser.switch_to(before[0])


def test_a_conflict(browser: Browser, other: Browser, served: Served) -> None:
    """Who saves second sees both versions side by side, and decides; nothing is lost without a word."""
    write(served, "/clash/a", {"n": 0, "same": True})
    for each, text in ((browser, '{\n  "n": 1,\n  "same": true\n}'), (other, '{\n  "n": 2,\n  "same": true\n}')):
        open_at(each, served, "/clash/a", '"n"')
        each.click("button", "Edit")
        each.type("textarea", text)
    browser.click("button", "Save")
    browser.wait_for("1", ".value")
    other.wait_for("has just changed", "main")
    other.click("button", "Save")
    other.wait_for("Conflict", "main")
    cells = other.run("return [...document.querySelectorAll('.versions .differs')].map(each => each.innerText.trim())")
    assert cells == ['"n": 1,', '"n": 2,']
    assert read(served, "/clash/a")["n"] == 1
    other.click("button", "Overwrite")
    other.wait_for("2", ".value")
    browser.wait_for("2", ".value")
    assert read(served, "/clash/a")["n"] == 2
    browser.click("button", "Delete")
    write(served, "/clash/a", {"n": 3})
    browser.click("dialog button", "Delete")
    browser.wait_for("It was not deleted", "dialog")
    browser.click("dialog button", "all the same")
    other.wait_for("has just been deleted", "main")
    assert read(served, "/clash/a") is None


VERSIONS = "return [...document.querySelectorAll('dialog .versions .differs')].map(each => each.innerText.trim())"


def test_conflicts_in_dialogs(browser: Browser, served: Served) -> None:
    """Who patches, or changes the TTL, after somebody else sees both versions, and can do it again; or that it is gone."""
    write(served, "/clash/b", {"n": 0})
    open_at(browser, served, "/clash/b", '"n"')
    for at, (action, css, text, apply) in enumerate(
        (("Patch", "textarea", '{"mine": 1}', "Apply"), ("TTL", "input", "100", "Change")), start=1
    ):
        browser.click("main button", action)
        browser.type(f"dialog {css}", text, action)
        write(served, "/clash/b", {"n": at}, "PATCH")
        browser.click("dialog button", apply)
        browser.wait_for("Somebody else has changed this document", "dialog")
        seen, stored = f'"n": {at - 1}', f'"n": {at}'
        assert [line.rstrip(",") for line in browser.run(VERSIONS)] == [stored, seen]
        assert ("mine" in read(served, "/clash/b"), read(served, "/clash/b")["ttl"] > 100) == (at == 2, True)
        browser.click("dialog button", apply)
        wait_until_closed(browser)
    stored = read(served, "/clash/b")
    assert (stored["mine"], stored["n"], stored["ttl"] <= 100) == (1, 2, True)
    for action, apply in (("Patch", "Apply"), ("TTL", "Change")):
        browser.click("main button", action)
        if action == "Patch":
            browser.type("dialog textarea", "{}")
        served.request("DELETE", "/clash/b")
        browser.click("dialog button", apply)
        browser.wait_for("Somebody else has deleted this document", "dialog")
        browser.click("dialog button", "Cancel")
        browser.wait_for("has just been deleted", "main")
        write(served, "/clash/b", {"n": 0})
        browser.wait_for('"n"', ".value")
    browser.click("main button", "Edit")
    browser.type("textarea", '{"n": 1}')
    served.request("DELETE", "/clash/b")
    browser.wait_for("has just deleted", "main")  # which moves the buttons down
    browser.click("main button", "Save")
    browser.wait_for("Somebody else has deleted this document. Nothing of yours was stored", "main")
    browser.click("button", "Create it again")
    browser.wait_for("kv:{clash}/b", "main")
    assert read(served, "/clash/b")["n"] == 1
    check_quiet(browser)


def test_a_job_that_somebody_has_taken(browser: Browser, served: Served) -> None:
    """Who changes it is told so: nobody has changed what they saw, and there are no two versions."""
    write(served, "/taken/a", {"n": 0})
    served.request("POST", "/taken/?lease=60s")
    open_at(browser, served, "/taken/a", '"n"')
    for action, apply in (("TTL", "Change"), ("Delete", "Delete")):
        browser.click("main button", action)
        browser.click("dialog button", apply)
        browser.wait_for("a job that somebody has taken", "dialog")
        assert browser.run(VERSIONS) == []
        browser.click("dialog button", "Cancel")
        wait_until_closed(browser)
    browser.click("main button", "Edit")
    browser.click("main button", "Save")
    browser.wait_for("a job that somebody has taken", "main")
    check_quiet(browser)


TILES = "[...document.querySelectorAll('.tile b')].map(each => each.innerText).join(' ')"  # ready, leased, delayed, dead


def test_the_queue(browser: Browser, served: Served) -> None:
    """States, attempts, dead jobs with their reason; they are put back or deleted, and a job can be cancelled. Who waits."""
    taker = Thread(target=write, args=(served, "/work/idle/?lease=30s&wait=25&as=%22%3Cimg%20onerror%3D1%3E%22", "", "POST"))
    write(served, "/work/idle/?delay=1h", 0, "POST")
    open_at(browser, served, "/work/idle/?queue", "Nobody waits")
    browser.wait("(window.kept = document.querySelector('main td button'))")
    taker.start()
    browser.wait_for("Who waits: 1", "main")
    browser.wait_for('"<img onerror=1>"', "main")
    assert browser.run("return kept.isConnected"), "the button that somebody may be about to click"
    browser.run("window.real = fetch; window.fetch = async () => new Response('{}', {status: 429})")
    browser.wait_for("That did not work", "main")
    browser.run("window.fetch = real")
    browser.wait_for("Who waits: 1", "main")
    write(served, "/work/idle/", 1, "POST")
    browser.wait_for("Nobody waits", "main")
    taker.join()
    for n in range(3):
        write(served, "/work/mail/", {"to": n}, "POST")
    write(served, "/work/mail/?delay=1h", {"to": "later"}, "POST")
    open_at(browser, served, "/work/mail/?queue", "delayed")
    [job] = json.loads(write(served, "/work/mail/?lease=1h&max_attempts=1", "", "POST"))["items"]
    browser.wait("document.querySelector('.tile.leased b').innerText === '1'")
    write(served, f"{job['path']}?lease=0", {"reason": "no such host"}, "PATCH", **{"if-match": f'"{job["lease"]}"'})
    assert json.loads(write(served, "/work/mail/?lease=1h&max_attempts=1", "", "POST"))["items"][0]["path"] != job["path"]
    browser.wait_for("no such host", "main")
    browser.wait(
        f"{TILES} === '1 1 1 1'"
    )  # of jobs and of dead ones, which are listed at once: nothing is drawn anew after that
    browser.click("button", "Put back")
    browser.wait(f"{TILES} === '2 1 1 0'")
    write(served, "/work/mail/dead/x", {"value": 1, "reason": "nobody knows", "attempts": 5, "died": 0})
    browser.wait_for("nobody knows", "main")
    browser.click("button", "Delete x")
    browser.wait(f"{TILES} === '2 1 1 0'")
    assert read(served, "/work/mail/dead/x") is None
    values = [item["value"] for item in read(served, "/work/mail/")["items"] if "value" in item]
    assert sorted(map(str, values)) == ["{'to': 'later'}", "{'to': 0}", "{'to': 1}", "{'to': 2}"]
    browser.run("location.hash = '/work/mail/?constructor'")  # no view has this name: the first one is shown
    browser.wait("document.querySelector('.table')")
    open_at(browser, served, "/work/mail/?queue", "delayed")
    browser.click("button", "Cancel ")
    assert "-X DELETE" in browser.text("#line")
    wait_until(lambda: len(read(served, "/work/mail/")["items"]) == 3, LIMIT_S)
    requests = [{"method": "POST", "path": "/work/long/", "body": n} for n in range(201)]
    write(served, "/_/batch", {"requests": requests}, "POST")
    open_at(browser, served, "/work/long/?queue", "Jobs of the first 200")
    assert browser.run(f"return {TILES}") == "200+ 0+ 0+ 0"
    check_quiet(browser)


def test_presence(browser: Browser, other: Browser, served: Served) -> None:
    """Who is there comes and goes."""
    for each in (browser, other):
        open_at(each, served, "/room/people/?presence", "Nobody is here")
    other.type("main input", "Zoë")
    other.click("button", "Be here")
    assert other.run("return document.querySelector('main form button').disabled")  # or a second stream would be opened
    browser.wait_for("Zoë", ".people")
    other.wait_for("You are here", "main")
    other.go("about:blank")
    browser.wait_for("Nobody is here", "main")
    check_quiet(browser)


# Streams are not asked for until release() is called.
HOLD_STREAMS = """
const network = window.fetch
const released = new Promise(resolve => (window.release = resolve))
window.fetch = async (target, init) => {
  if (init.headers.Accept === "text/event-stream") await released
  return network(target, init)
}
"""


def test_changes(browser: Browser, served: Served) -> None:
    """A log of what changes, which can be paused."""
    open_at(browser, served, "/", "Import")
    browser.run(HOLD_STREAMS)
    browser.run("location.hash = '/log/?changes'")
    browser.wait_for("Pause", "main")
    write(served, "/log/a/b", {"n": 1})  # the first document of the namespace, before the page follows that
    browser.run("release()")
    browser.wait_for("/log/a/b", ".log")
    browser.click("button", "Pause")
    write(served, "/log/c", 1)
    browser.wait_for("1 more since", "main")
    assert "/log/c" not in browser.text(".log")
    browser.click("button", "Go on")
    browser.wait_for("/log/c", ".log")
    served.request("DELETE", "/log/c")
    browser.wait_for("delete", ".log")


# --- What comes late ---------------------------------------------------------------------------------------------------------

# Answers to a GET of these paths are held back until release() is called; the page is told of other things meanwhile.
HOLD_BACK = """
const [path] = arguments
const network = window.network ??= window.fetch
window.asked = 0
const released = new Promise(resolve => (window.release = resolve))
window.fetch = async (target, init) => {
  const answer = await network(target, init)
  if (!new URL(target).pathname.startsWith(path) || init.method !== "GET" || init.headers.Accept) return answer
  const body = await answer.arrayBuffer()
  window.asked++
  await released
  return new Response(body, answer)
}
"""


def test_an_answer_that_comes_late(browser: Browser, served: Served) -> None:
    """Who has gone on sees nothing of it; and what others have changed meanwhile is not undone."""
    write(served, "/late/slow", {"n": "first"})
    write(served, "/late/quick", {"n": "quick"})
    write(served, "/late/list/a", {"n": "first"})
    write(served, "/late/list/gone", {"n": "first"})
    open_at(browser, served, "/late/quick", "quick")
    browser.run(HOLD_BACK, "/late/slow")
    browser.run("location.hash = '/late/slow'")
    browser.wait("window.asked === 1")
    browser.run("location.hash = '/late/quick'")
    browser.wait_for("quick", ".value")
    browser.run("release()")
    browser.run("location.hash = '/?api'")
    browser.run("location.hash = '/late/quick'")  # before the module of the other view is loaded
    browser.run("return import('./reference.js').then(() => new Promise(resolve => setTimeout(resolve, 300)))")
    browser.wait_for("quick", ".value")
    assert "/late/quick" in browser.text("#line")
    assert "quick" in browser.run("return document.title")

    browser.run(HOLD_BACK, "/late/slow")
    browser.run("location.hash = '/late/slow'")
    browser.wait("window.asked === 1")
    write(served, "/late/slow", {"n": "second"})
    browser.wait_for("second", ".value")
    browser.run("release()")
    browser.run("return new Promise(resolve => setTimeout(resolve, 100))")
    assert "second" in browser.text(".value")

    browser.run(HOLD_BACK, "/late/list/")
    browser.run("location.hash = '/late/list/'")
    browser.wait("window.asked === 2")  # of the tree, and of the table
    write(served, "/late/list/a", {"n": "second"})
    served.request("DELETE", "/late/list/gone")
    browser.run("return new Promise(resolve => setTimeout(resolve, 300))")
    browser.run("release()")
    browser.wait_for("second", ".grid")
    browser.wait("!document.querySelector('.grid').innerText.includes('gone')")
    check_quiet(browser)


def test_a_dialog_ends_with_its_view(browser: Browser, served: Served) -> None:
    """Who goes back does not delete another document than the one that is seen."""
    write(served, "/dialogs/a", 1)
    open_at(browser, served, "/dialogs/", "Name")
    browser.run("location.hash = '/dialogs/a'")
    browser.wait_for("kv:{dialogs}/a", "main")
    browser.click("button", "Delete")
    browser.find("dialog")
    browser.run("history.back()")
    browser.wait("!document.querySelector('dialog')")
    browser.wait_for("Name", "main")


def test_what_a_long_session_keeps(browser: Browser, served: Served) -> None:
    """Of the changes only what is shown: not the values, which may be large."""
    open_at(browser, served, "/log/?changes", "Pause")
    for n in range(3):
        write(served, "/log/large", {"n": n, "text": "x" * 100_000})
    kept = "log.filter(({path}) => path === '/log/large').length, JSON.stringify(log).length"
    browser.wait("document.querySelectorAll('.log li').length >= 3")
    count, size = browser.run(f"return import('./container.js').then(({{log}}) => [{kept}])")
    assert count >= 3
    assert size < 100_000


# --- Files ------------------------------------------------------------------------------------------------------------------


# What a dialog says of its progress.
PROGRESS = """
window.progress = []
const hear = () => progress.push(document.querySelector("dialog [role=status]")?.textContent ?? "")
new MutationObserver(hear).observe(document.body, {subtree: true, childList: true})
"""


def test_export_and_import(browser: Browser, served: Served, place: Path) -> None:
    """What was exported is imported unchanged, TTLs included; lines that cannot be stored are named."""
    documents = {f"/files/{i:04}": '{"n":%d,"x":1.0}' % i for i in range(1200)}
    for path, text in documents.items():
        served.request("PUT", f"{path}?ttl=100000", (), text.encode())
    open_at(browser, served, "/files/", "0000")
    browser.run(PROGRESS)
    browser.click("button", "Export")
    browser.wait_for("1,200 documents exported", "dialog")
    wait_until((place / "files.ndjson").exists, LIMIT_S)
    exported = place / "files.ndjson"
    lines = exported.read_text("utf-8").splitlines()
    assert len(lines) == 1200
    assert re.fullmatch(r'\{"path":"/files/0007","value":\{"n":7,"x":1\.0\},"ttl":\d+\}', lines[7])
    browser.click("dialog button", "Close")
    assert served.request("DELETE", "/files/?recursive").status == 200
    exported.write_text("\n".join([*lines, '{"path":"/files/x","value":{"ttl":"x"}}', "{", '{"a":1}']), "utf-8")
    browser.attach("main input[type=file]", exported)
    browser.wait_for("1,200 documents stored, 3 refused", "dialog")
    said = browser.run("return progress")
    assert any(text.startswith("1,000 documents, ") for text in said), "of the export"
    assert [text in said for text in ("500 documents stored", "1,000 documents stored")] == [True, True]
    said = browser.text("dialog .errors")
    assert [f"Line 1,20{n}" in said for n in (1, 2, 3)] == [True] * 3
    assert re.fullmatch(rb'\{"n":7,"x":1\.0,"ttl":(99\d{3}|100000)\}\n', served.request("GET", "/files/0007").content)
    browser.click("dialog button", "Close")
    drop = """const files = new DataTransfer()
        files.items.add(new File([arguments[0]], "one.json"))
        document.querySelector("main").dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true}))"""
    browser.run(drop, '{"dropped": [1.0]}')
    browser.wait_for("1 document stored.", "dialog")
    assert served.request("GET", "/files/dropped").content == b"[1.0]\n"
    browser.click("dialog button", "Close")
    (place / "db.json").write_text('[{"id": "ada", "big": 12345678901234567890}, {"id": 7}, {}]')
    browser.attach("main input[type=file]", place / "db.json")
    browser.wait_for("3 documents stored.", "dialog")
    assert served.request("GET", "/files/ada").content.startswith(b'{"id":"ada","big":12345678901234567890,')
    assert read(served, "/files/7")["id"] == 7
    check_quiet(browser)


LONG = '"' + "x" * 1_048_570 + '"'  # a document of nearly 1 MiB: in a batch it would be too large

# A file, what the import says of it, and the documents that are below /in/ then.
IMPORTS: list[tuple[str, str, list[str]]] = [
    ('{"path":"/in/1","value":1\n{"path":"/in/2","value":2}\n', "1 document stored, 1 refused:\nLine 1: a comma or }", ["2"]),
    ('{"path":"/in/1"}\n{"path":"/in/2","value":2,"ttl":null}\n', "1 document stored, 1 refused:\nLine 1: it is not", ["2"]),
    (f'{{"path":"/in/1","value":{LONG}}}\n{{"path":"/in/2","value":2}}\n', "2 documents stored.", ["1", "2"]),
    (f'{{"path":"/in/1","value":[{LONG},100]}}\n{{"path":"/in/2","value":2}}\n', "1 refused:\nLine 1: the body has", ["2"]),
    (f'{{"path":"/in/1","value":"{"字" * 300_000}"}}\n{{"path":"/in/2","value":"{"字" * 120_000}"}}\n', "2 docu", ["1", "2"]),
    (
        '[{"id":{}},{"id":null},{"id":7},{"id":"7"}]',
        "3 documents stored, 1 refused:\nLine 4: the name 7",
        ["000000", "000001", "7"],
    ),
    ('{\n  "a": 1,\n}', "The import stopped after 0 documents: line 3, column 1: a name in double quotes", []),
]


def test_imports_of_bad_and_large_files(browser: Browser, served: Served, place: Path) -> None:
    """Whatever is in a file, what can be stored is stored, and the rest is named."""
    for at, (text, said, names) in enumerate(IMPORTS):
        served.request("DELETE", "/in/?recursive")
        open_at(browser, served, "/in/", "Nothing is stored here")
        (place / f"import{at}").write_text(text, "utf-8")
        browser.attach("main input[type=file]", place / f"import{at}")
        browser.wait_for("Close", "dialog")
        assert said in browser.text("dialog").replace("\n\n", "\n"), at
        assert [item["name"] for item in read(served, "/in/?keys")["items"]] == names
        browser.click("dialog button", "Close")


# --- For everybody ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe(place: Path) -> str:
    """axe-core, from npm; skips the test where there is no npm, or its registry cannot be reached."""
    if not shutil.which("npm"):
        pytest.skip("no npm on the PATH")

    def npm(*words: str) -> str:
        """What it prints, "" where it fails."""
        command = ["npm", *words, "--silent", "--fetch-retries=0", "--fetch-timeout=20000"]
        with suppress(subprocess.TimeoutExpired, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=60, check=True).stdout.strip()
        return ""

    packed = npm("pack", AXE)
    if not packed:
        versions = npm("view", "axe-core", "versions", "--json")
        assert not versions or AXE.partition("@")[2] in json.loads(versions), f"the registry has axe-core, but not {AXE}"
        pytest.skip("npm cannot reach its registry")
    with tarfile.open(place / packed) as package:
        script = package.extractfile("package/axe.min.js")
        assert script
        return script.read().decode()


AXE = "axe-core@4.14.1"
VIOLATIONS = """
const rules = arguments[0] === "dark" ? {runOnly: ["color-contrast"]} : {}
return axe.run(rules).then(found => found.violations.map(each => [each.id, each.nodes.map(node => node.html.slice(0, 99))]))
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(browser: Browser, served: Served, axe: str, theme: str) -> None:
    """axe-core finds nothing in any view or dialog, wide and narrow."""
    write(served, "/axe/ada", {"name": {"first": "Ada"}, "born": 1815, "none": None, "yes": True})
    for _ in range(2):
        write(served, "/axe/jobs/", {"n": 1}, "POST")
    write(served, "/axe/jobs/?lease=60s", "", "POST")
    open_at(browser, served, "/axe/ada", "1815")
    browser.run("localStorage.setItem('kvstore-theme', arguments[0])", theme)
    open_at(browser, served, "/axe/ada", "1815")

    def check() -> None:
        # A mark fades: what is measured is the colour that it begins with, on which the text must be read as well.
        browser.run("document.getAnimations().forEach(each => { each.pause(); each.currentTime = 0 })")
        assert browser.run(axe + VIOLATIONS, theme) == []

    check()
    for name in ("Patch", "TTL", "Delete"):
        browser.click("main button", name)
        check()
        browser.click("dialog button", "Cancel")
    browser.click("main button", "Edit")
    browser.type("textarea", "{")
    browser.wait_for("Line 1", ".error")
    write(served, "/axe/ada", {"name": "Ada", "born": 1815})
    browser.wait_for("just changed", "main")
    check()
    browser.click("button", "Compare")
    check()
    browser.click("button", "Discard")
    browser.wait_for("Redis key", "main")
    browser.run("location.hash = arguments[0]", f"/axe/{theme}/?queue")
    browser.wait_for("Nobody waits", "main")
    taker = Thread(target=write, args=(served, f"/axe/{theme}/?lease=1&wait=25", "", "POST"))
    taker.start()
    browser.wait_for("Who waits: 1", "main")
    check()
    write(served, f"/axe/{theme}/", 1, "POST")
    taker.join()
    for path, text in (
        ("/axe/", "ada"),
        ("/axe/jobs/?queue", "leased"),
        ("/axe/?presence", "Be here"),
        ("/axe/?changes", "/axe/ada"),
        ("/axe/none", "Nothing is stored"),
        ("/", "axe/"),
        ("/?api", "Replace a document"),
    ):
        browser.run("location.hash = arguments[0]", path)
        browser.wait_for(text, "main")
        check()
    browser.click("#access")
    check()
    browser.click("dialog button", "Close")
    browser.run("location.hash = '/axe/'")
    browser.type("[type=search]", "born:is=1815")
    browser.wait_for("no operator", "[role=alert]")
    check()
    browser.resize(390, 844)
    check()
    browser.click("#menu")
    check()
    browser.resize(1280, 800)


# --- Trouble ---------------------------------------------------------------------------------------------------------------


def test_the_server_dies(browser: Browser, place: Path) -> None:
    """The page says so, comes back by itself, and marks what has changed meanwhile."""
    home = place / "dies"
    home.mkdir()
    [port] = free_ports(1)  # one that no connection of the browser is given while the server is away
    served = start_kvstore(home, PORT=str(port))
    try:
        write(served, "/room/a", {"n": 1})
        write(served, "/room/b", {"n": 1})
        open_at(browser, served, "/room/a", '"n": 1')
        browser.wait_for("Live", "#status")
        served.kill()
        browser.wait_for("Reconnecting", "#status")
        served = start_kvstore(home, PORT=str(port))
        write(served, "/room/a", {"n": 2})
        served.request("DELETE", "/room/b")
        browser.wait("document.querySelector('.value .changed')?.innerText.includes('2')")
        browser.wait_for("Live", "#status")
        browser.wait("![...document.querySelectorAll('#tree .row')].some(each => each.innerText.trim() === 'b')")
    finally:
        served.kill()
        browser.logged()


def test_tokens(browser: Browser, place: Path) -> None:
    """Without a token the page asks for one; with one it shows what the token may see, and says what else it may do."""
    home = place / "ruled"
    home.mkdir()
    (home / "rules.toml").write_text(
        'rules = [["/users/{sub}/**", "user", "user", "user"], ["/board/**", "anyone", "user", "nobody"],'
        '["/drop/**", "nobody", "nobody", "user"]]'
    )
    served = start_kvstore(home, KVSTORE_SECRET=SECRET, KVSTORE_RULES=str(home / "rules.toml"))
    try:
        ada = signed(sub="ada", roles=["poet"], exp=in_s(600))
        for path in ("/users/ada/notes/1", "/users/ada/b"):
            write(served, path, {"said": "by ada"}, authorization=f"Bearer {ada}")
        browser.go("http://{}:{}/".format(*served.at))  # leads to the explorer
        browser.wait_for("Paste a token", "main")
        browser.click("main button", "Paste a token")
        browser.type("dialog textarea", ada)
        browser.click("dialog button", "Use this token")
        browser.wait_for("poet", "dialog")
        for place_, rights in (
            ("/board/", "read: yes append: yes write: no"),
            ("/users/bob/", "read: no append: no write: no"),
            ("/users/ada/b", "read: yes append: yes write: yes"),
            ("/drop/it", "read: no append: no write: yes"),
        ):
            browser.type("dialog input", place_)
            browser.click("dialog button", "Ask")
            browser.wait("document.querySelector('.rights').innerText.split(/\\s+/).join(' ') === arguments[0]", rights)
        assert json.loads(served.request("GET", "/board/").content) == {"items": []}
        assert b"by ada" in served.request("GET", "/users/ada/b", [("Authorization", f"Bearer {ada}")]).content
        browser.click("dialog button", "Close")
        browser.type("#path", "/users/ada/notes/1")
        browser.press(ENTER)
        browser.wait_for("by ada", ".value")
        write(served, "/users/ada/notes/1", {"said": "once more"}, authorization=f"Bearer {ada}")
        browser.wait_for("once more", ".value")
        assert ada not in browser.text()
        assert "$TOKEN" in browser.text("#line")
    finally:
        served.kill()
        browser.logged()
