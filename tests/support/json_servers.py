"""What json-server answers: `python -m tests.support.json_servers` asks both of its versions and records that.

It installs them by npm into a temporary directory. The questions are those of docs/json-server.md. Tests read what is recorded.
"""

import json
import re
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.support.serving import READ_S, Response, read, wire
from tests.support.stores import die_with_parent, free_ports, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "json-server.md"
RECORDED = Path(__file__).with_suffix(".json")
VERSIONS = "0.17.4", "1.0.0-beta.15"


class Asked(NamedTuple):
    """A request, as a cell of the table has it."""

    method: str
    target: str
    body: str = ""

    @property
    def text(self) -> str:
        """What is written in the cell."""
        return " ".join(part for part in self if part)

    def quoted(self) -> str:
        """The target as it is sent."""
        return quote(self.target, safe="/?&=:,.-_%")


def database() -> str:
    """The db.json of the page."""
    return "\n".join(re.findall(r"^\$ echo '(.*)' >>? db\.json$", PAGE.read_text("utf-8"), re.MULTILINE))


SAME, OTHER = "The same questions", "Other answers"


def rows(heading: str) -> list[tuple[str, list[Asked | None]]]:
    """What each row of a table is for, and the requests: of each version of json-server, and ours."""
    section = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found: list[tuple[str, list[Asked | None]]] = []
    for line in re.findall(r"^\| (.*) \|$", section, re.MULTILINE):
        purpose, *cells = line.split("|")
        asked = [re.search(r"`([A-Z]+) (\S+)`(?: `(.*)`)?", cell) for cell in cells]
        if any(asked):
            found.append((purpose.strip(), [Asked(each[1], each[2], each[3] or "") if each else None for each in asked]))
    return found


# --- Recording ----------------------------------------------------------------------------------------------------------


def answers(directory: Path, version: str, asked: Asked) -> dict[str, Any]:
    """What a json-server that has just been started answers, and which posts there are then."""
    database_file = directory / "db.json"
    database_file.write_text(database(), "utf-8")
    [port] = free_ports(1)
    binary = next(each for each in ("lib/bin.js", "lib/cli/bin.js") if (directory / "node_modules/json-server" / each).exists())
    process = subprocess.Popen(
        ["node", f"node_modules/json-server/{binary}", "db.json", "--port", str(port), "--host", "127.0.0.1"],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
    )

    def ask(method: str, target: str, body: str = "") -> Response:
        with socket.create_connection(("127.0.0.1", port), READ_S) as connection:
            connection.sendall(wire(method, target, [("content-type", "application/json")], body.encode()))
            return read(connection, method)

    def is_up() -> bool:
        try:
            return ask("GET", "/posts").status == 200
        except OSError:
            return False

    try:
        wait_until(is_up, READ_S)
        answer = ask(asked.method, asked.quoted(), asked.body)
        total = answer.headers["X-Total-Count"]
        kept = {"status": answer.status, "body": json.loads(answer.content)} | ({"total": int(total)} if total else {})
        return kept if asked.method == "GET" else kept | {"posts": json.loads(ask("GET", "/posts").content)}
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Record the answers of both versions."""
    recorded: dict[str, dict[str, Any]] = {}
    for index, version in enumerate(VERSIONS):
        with tempfile.TemporaryDirectory() as name:
            subprocess.run(["npm", "install", "--silent", "--prefix", name, f"json-server@{version}"], check=True)
            questions = [asked[index] for heading in (SAME, OTHER) for _, asked in rows(heading)]
            recorded[version] = {each.text: answers(Path(name), version, each) for each in questions if each}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
