"""The explorer in Chromium: each thing that a person does there, as that person does it."""

import json
import re
from typing import Any

import pytest

from kvstore.core.paths import parse_path
from kvstore.serving.pages import PAGES
from tests.support.browser import DOWN, ENTER, LEFT, RIGHT, Browser
from tests.support.serving import Served

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
    assert {path for path, _ in loaded} == set(PAGES) - {"/_/kvstore.js"}
    assert sum(size for _, size in loaded) < 60_000
    browser.ask("POST", "/refresh", {})
    painted = browser.wait("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    assert painted < 900  # 60 to 90 ms on an idle machine; the promise is 300
    origins = browser.run("return performance.getEntriesByType('resource').map(each => new URL(each.name).origin)")
    assert set(origins) == {"http://{}:{}".format(*served.at)}
    check_quiet(browser)


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
    assert re.search(r"01:59:\d\d", facts)
    first = browser.text(".facts .ttl")
    browser.wait("document.querySelector('.facts .ttl').textContent !== arguments[0]", first)
    browser.click(".fold")
    assert "6 members" in browser.text(".value")
    assert "ratio" not in browser.text(".value")
    check_quiet(browser)


KEYS = ["/a", "/a/b", "/a/b/c", "/a/b%20c/%C3%A9", "/a%2Fb/c%25", "/%7Bx%7D/a", "/", "/a/$&+,;=:@!*'()~._-"]


def test_redis_keys_and_paths(browser: Browser, served: Served) -> None:
    """The page spells keys, and what a person types, as the service does."""
    open_at(browser, served, "/", "Import")
    for path in KEYS:
        ours = parse_path(path.encode())
        shown = browser.run(
            "return import('./api.js').then(api => [api.redisKey(arguments[0]), api.canonical(arguments[0])])", path
        )
        assert shown == [ours.keys.document, ours.text]
    typed = browser.run("return import('./api.js').then(api => api.canonical('people/Zoë b%/{x}'))")
    assert typed == parse_path(b"/people/Zo%C3%AB b%25/{x}").text


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
    browser.press(DOWN, ENTER)
    browser.wait("location.hash === '#/tree/inner/leaf'")
    browser.wait_for("kv:{tree}/inner/leaf", "main")
    browser.press(LEFT, LEFT)
    browser.wait("!document.querySelector('#tree').innerText.includes('leaf')")
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
const [css, last] = arguments
return (async () => {
  while (!document.querySelector(css).innerText.includes(last)) {
    const box = document.querySelector(css)
    box.scrollTop = box.scrollHeight
    await new Promise(resolve => setTimeout(resolve, 10))
  }
})()
"""


def test_a_hundred_thousand_documents(browser: Browser, served: Served) -> None:
    """They are scrolled through with few elements in the page, in the table and in the tree."""
    for start in range(0, 100_000, 1000):
        requests = [{"method": "PUT", "path": f"/many/{i:06}", "body": {"n": i}} for i in range(start, start + 1000)]
        write(served, "/_/batch", {"requests": requests}, "POST")
    open_at(browser, served, "/many/", "000000")
    for css in (".grid", "#tree .virtual"):
        browser.run(SCROLL, css, "099999")
        assert browser.run("return document.querySelectorAll('*').length") < 1500
    browser.type("[type=search]", "04242")
    browser.wait_for("042420", ".grid")
    check_quiet(browser)
