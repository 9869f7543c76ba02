"""The examples, each run as it says itself."""

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

from tests.support.browser import Driver
from tests.support.serving import Served
from tests.support.stores import wait_until
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


# Both pages of the adder in one picture, each below its address.
BOTH = """
const label = path => Object.assign(document.createElement("h3"), {textContent: `http://127.0.0.1:5000${path}`})
document.body.style.font = "16px sans-serif"
document.body.prepend(label("/add?a=1&b=2"))
const frame = Object.assign(document.createElement("iframe"), {src: "/add-result", width: "600", height: "70"})
document.body.append(label("/add-result"), frame)
"""
FRAME = "document.querySelector('iframe').contentWindow"
RESULT = f"{FRAME}.document.body.innerText"


@pytest.mark.slow
def test_the_picture_of_the_adder(directory: Path) -> None:
    """The README shows what a browser is answered; with KVSTORE_PICTURES set, it is drawn anew."""
    size, picture = (640, 220), EXAMPLES / "adder" / "adder.png"
    app = Path(shutil.copytree(EXAMPLES / "adder", directory / "adder")) / "app.py"
    driver = Driver(directory)
    served = Served(directory, [sys.executable, "-m", "flask", "--app", str(app), "run", "-p", "0"], {})
    workers = None
    try:
        workers = Workers(directory, app)
        browser = driver.open(*size)
        browser.go("http://{}:{}/add?a=1&b=2".format(*served.at))
        browser.wait_for("Waiting for result...")
        browser.run(BOTH)
        # One reload for each page that was loaded: the next one would drop an answer that is shown once.
        again = f"({FRAME}.isLeft ??= {FRAME}.location.reload() ?? true)"
        browser.wait(f"{RESULT}.includes('true') || ({RESULT}.includes('false') && !{again})")
        assert json.loads(browser.run(f"return {RESULT}.match(/{{.*}}/)[0]")) == {"ready": True, "result": 3}
        drawn = directory / "adder.png"
        browser.screenshot(drawn)
    finally:
        if workers:
            workers.stop()
        served.kill()
        driver.close()
    if os.environ.get("KVSTORE_PICTURES"):
        shutil.copy(drawn, picture)
    assert drawn.read_bytes()[16:24] == picture.read_bytes()[16:24] == struct.pack(">II", *size)
    assert 0.5 < drawn.stat().st_size / picture.stat().st_size < 2  # fonts differ
