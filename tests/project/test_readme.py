"""The README's tour, run line by line against a service started as it says, gives the output it shows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.serving import start_kvstore

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# What differs from one run to the next: ids and entity-tags, dates, times in ms, a TTL of which a second has gone.
PASSING = [
    (re.compile(r"\b\d{13}-\d+"), "TAG"),
    (re.compile(r"\b\d{13}[a-z]\d+"), "ID"),
    (re.compile(r"\b\d{13}\b"), "MS"),
    (re.compile(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"), "DATE"),
    (re.compile(r'"ttl":(3153(5\d{3}|6000)|2\d\d|300)\b'), '"ttl":TTL'),
]


def tour() -> list[tuple[str, str]]:
    """The commands of the tour and what each prints."""
    steps: list[tuple[str, str]] = []
    for block in BLOCK.findall(README.read_text("utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            steps.append((command, output))
    return steps


IDS = re.compile(r"\b\d{13}(?:-\d+(?:\.\d+)?|[a-z]\d+)")


def settled(text: str) -> str:
    for pattern, name in PASSING:
        text = pattern.sub(name, text)
    return text.replace("\r", "").rstrip("\n")


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl on the PATH")
def test_the_tour_prints_what_it_shows(directory: Path) -> None:
    steps, ids = tour(), dict[str, str]()  # an id as the README has it, and as it was here
    assert len(steps) >= 20
    service = start_kvstore(directory)
    address = "http://{}:{}".format(*service.at)
    try:
        for command, expected in steps:
            if command.startswith("redis-cli ") and not shutil.which("redis-cli"):
                continue
            assert command.startswith(("curl ", "redis-cli ")), command
            here = IDS.sub(lambda found: ids.get(found[0], found[0]), command)
            here = here.replace("http://127.0.0.1:8000", address).replace("curl ", "curl -sS ", 1)
            printed = subprocess.run(
                ["bash", "-c", here],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            assert settled(printed.stdout) == settled(expected), command
            ids.update(zip(IDS.findall(expected), IDS.findall(printed.stdout), strict=True))
    finally:
        service.kill()
