"""The examples, each run as it says itself."""

import functools
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import Served, start_kvstore
from tests.support.stores import Running, wait_until
from tests.support.workers import Workers

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_adder(directory: Path) -> None:
    """The page that asks answers at once; the one that shows says that it waits, and then the sum. Nobody else sees that."""
    app = Path(shutil.copytree(EXAMPLES / "adder", directory / "adder")) / "app.py"
    served = Served(directory, [sys.executable, "-m", "flask", "--app", str(app), "run", "-p", "0"], {})
    workers = None
    try:
        asked = served.request("GET", "/add?a=1&b=2")
        assert asked.content == b"Waiting for result..."
        cookie = [("Cookie", asked.headers["Set-Cookie"].partition(";")[0])]

        def result() -> object:
            return json.loads(served.request("GET", "/add-result", cookie).content)

        assert result() == {"ready": False}
        workers = Workers(directory, app)
        shown: list[object] = []

        def is_shown() -> bool:
            assert json.loads(served.request("GET", "/add-result").content) == {"ready": False}, "a stranger sees nothing"
            shown.append(result())
            return shown[-1] != {"ready": False}

        wait_until(is_shown, 20)
        assert shown[-1] == {"ready": True, "result": 3}
        assert result() == {"ready": False}, "what was shown is forgotten, also where the old cookie is kept"
        for query in ("a=x&b=2", "a=1", "b=2", "", "a=1&b=2.5"):
            assert served.request("GET", f"/add?{query}").status == 400, query
    finally:
        if workers:
            workers.stop()
        served.kill()


# The page's first stream is refused. What somebody does who sits before it: says something once it is there, and tells us what
# it shows then.
PERSON = b"""<script>
let isFirst = true
window.EventSource = class extends EventSource {
  constructor(url) {
    super(isFirst ? new URL("/_/none", url) : url)
    isFirst = false
  }
}
</script>
<script type="module">
const there = () => document.querySelector("#people").textContent.startsWith("here")
const shows = () => document.querySelector("#messages").children.length
const until = holds => new Promise(done => { const timer = setInterval(() => holds() && done(clearInterval(timer)), 20) })
await until(there)
document.querySelector("form").text.value = "<b>hello</b> from " + me()
document.querySelector("form").requestSubmit()
await until(shows)
const shown = ["#people", "#messages"].map(id => document.querySelector(id).innerText)
await fetch(store() + "/seen/", {method: "POST", body: JSON.stringify(shown)})
function me() { return decodeURIComponent(location.hash.slice(1)) }
function store() { return new URLSearchParams(location.search).get("store") }
</script>"""


class Pages(http.server.SimpleHTTPRequestHandler):
    """The files of a directory, with a person before each."""

    def do_GET(self) -> None:
        self.path = self.path.partition("?")[0]
        page = (Path(self.directory) / "index.html").read_bytes() + PERSON
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_chat(directory: Path, started: Callable[[str], Running], browse: Callable[[str], None]) -> None:
    """A page of another origin says something, is there also after it was refused, and runs nothing of what others say."""
    store = started("redis")
    store.redis.flushall()
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(EXAMPLES / "chat")))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    served = start_kvstore(directory, REDIS_URL=store.url)

    def items(target: str) -> list[Any]:
        return [item["value"] for item in json.loads(served.request("GET", target).content)["items"]]

    try:
        host, port = served.at
        browse(f"http://127.0.0.1:{pages.server_port}/?store=http://{host}:{port}#Ada%20L.")
        wait_until(lambda: items("/seen/"), 30)
        assert items("/chat/people/") == ["Ada L."]
        [said] = items("/chat/messages/")
        assert (said["from"], said["text"]) == ("Ada L.", "<b>hello</b> from Ada L.")
        [[people, shown]] = items("/seen/")
        assert people == "here: Ada L."
        assert shown == "Ada L. <b>hello</b> from Ada L."
    finally:
        served.kill()
        pages.shutdown()
        pages.server_close()
