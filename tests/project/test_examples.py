"""The examples, each run as it says itself."""

import json
import shutil
import sys
from pathlib import Path

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
