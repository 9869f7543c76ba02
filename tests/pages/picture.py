"""Draws the picture of the explorer in the documentation: `python -m tests.pages.picture`."""

import json
import shutil
from pathlib import Path

from tests.support.browser import Browser, Driver
from tests.support.serving import Served, start_kvstore
from tests.support.stores import make_directory

PICTURE = Path(__file__).parents[2] / "docs" / "explorer.png"
SIZE = (1120, 640)

PEOPLE = [
    ("ada", {"name": "Ada Lovelace", "born": 1815, "field": "mathematics", "living": False}),
    ("alan", {"name": "Alan Turing", "born": 1912, "field": "computability", "living": False}),
    ("barbara", {"name": "Barbara Liskov", "born": 1939, "field": "abstraction", "living": True}),
    ("donald", {"name": "Donald Knuth", "born": 1938, "field": "algorithms", "living": True}),
    ("grace", {"name": "Grace Hopper", "born": 1906, "field": "compilers", "living": False}),
    ("katherine", {"name": "Katherine Johnson", "born": 1918, "field": "orbits", "living": False}),
    ("radia", {"name": "Radia Perlman", "born": 1951, "field": "networks", "living": True}),
]


def draw(browser: Browser, served: Served, to: Path) -> None:
    """Store some people, look at them as somebody changes one, and write what is seen to a file."""
    documents = [(f"/people/{name}", value) for name, value in PEOPLE]
    for path, value in [*documents, ("/chat/general/1", "hello"), ("/jobs/mail/1", {"to": "ada"}), ("/settings", {})]:
        served.request("PUT", path, (), json.dumps(value).encode())
    browser.resize(*SIZE)
    browser.go("http://{}:{}/_/#/people/".format(*served.at))
    browser.wait_for("Radia Perlman", ".grid")
    browser.wait_for("radia", "#tree")
    served.request("PATCH", "/people/grace?ttl=2h", (), b'{"field":"COBOL"}')
    browser.wait_for("COBOL", ".grid")
    browser.screenshot(to)


def main() -> None:
    """Draw it."""
    directory = make_directory()
    driver = Driver(directory)
    served = start_kvstore(directory, PORT="8000")
    try:
        draw(driver.open(), served, PICTURE)
    finally:
        served.kill()
        driver.close()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
