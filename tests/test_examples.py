"""The examples, each run as its README says."""

import json
import shutil
import sys
from pathlib import Path

from serving import Served
from stores import wait_until
from workers import Workers

EXAMPLES = Path(__file__).parent.parent / "examples"


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
        wait_until(lambda: result() != {"ready": False}, 20)
        assert result() == {"ready": True, "result": 3}
        assert json.loads(served.request("GET", "/add-result").content) == {"ready": False}
    finally:
        if workers:
            workers.stop()
        served.kill()
