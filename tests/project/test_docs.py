"""The documentation is true: its examples are run, its tables are held against the code, its links lead somewhere.

A page is README.md or a file in docs/. Its blocks are run in order, in an empty directory, beside `kvstore` with its default
settings, unless the page starts that by itself:

    ```console    a line that starts with `$ ` is a command, continued where it ends in a backslash; its output follows
    ```python     a session where it has `>>>`, otherwise code; all of a page's run in one interpreter
    # app.py      as the first line of a block of any language: the block is the file of that name
"""

import doctest
import functools
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest

from kvstore.core.errors import Problem
from kvstore.core.paths import OWN_KEYS, own_key, parse_path
from kvstore.core.settings import SETTINGS, Settings
from kvstore.serving.limits import Limit, limits
from tests.support.serving import bare_environ, session, start_kvstore
from tests.support.stores import die_with_parent, free_ports, wait_until
from tests.support.tokens import SECRET

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LIMIT_S = 60

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*\n)", re.MULTILINE)
FILE = re.compile(r"# ([\w.-]+\.\w+)\n")

# Commands that go on. A stream, or a long poll, may show what later commands do; a server is there when it says so.
STREAM = re.compile(r"curl (?:-N |-H .Prefer: wait=)")
SERVER = re.compile(r"(?:\w+=\S* )*(?:kvstore$|flask --app \w+ (?:run|kvstore worker)\b)")

# What differs from one run to the next, by name.
VOLATILE = re.compile(
    r"(?P<PLACE>~[\w-]{10,})|(?P<TAG>\b\d{13}-\d+)|(?P<ID>\b\d{13}[a-z]\d+)|(?P<MS>\b\d{13}\b)"
    r"|(?P<DATE>\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT)|(?P<TTL>(?<=\"ttl\":)\d+)|(?P<RETRY>(?<=retry: )\d+)"
)
TTL_S = 30  # that a page may take to run
PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d+|(?<=PORT=)\d+|(?<=listen )\d+")
HOME = "/home/ada"  # where the reader works, in a page

# Runs what it is sent, as an interpreter does, and answers with what that prints.
INTERPRETER = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    source, mode = json.loads(line)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(compile(source, "<page>", mode), names)
        except Exception as error:
            print("".join(traceback.format_exception_only(error)), end="")
    print(json.dumps(printed.getvalue()), flush=True)
"""


class Started:
    """A command that runs; what it prints, errors included, goes to a file in `directory`."""

    def __init__(self, command: str, directory: Path, environ: dict[str, str]) -> None:
        self._said = directory / f"said-{len(list(directory.glob('said-*')))}"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                ["bash", "-c", command],
                env=environ,
                cwd=directory / "work",
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o002,  # which many systems give their users
                preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
            )

    @property
    def said(self) -> str:
        """All that it has printed."""
        return re.sub(r"\r|\x1b\[\d*m", "", self._said.read_text("utf-8", "replace"))

    def kill(self) -> None:
        """kill -9 of it and all that it started."""
        for pid in session(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not session(self.process.pid), LIMIT_S)


class Page:
    """A page that is being run. Its ids, ports and directory are those of the run wherever a command has them."""

    def __init__(self, text: str, directory: Path) -> None:
        self._text = text
        self._directory = directory
        self._work = directory / "work"
        self._work.mkdir()
        home = directory / "home"
        home.mkdir()
        (home / ".curlrc").write_text("silent\nshow-error\n")
        shown = sorted({"8000", "5000", *PORT.findall(text)})
        self._ports = dict(zip(shown, map(str, free_ports(len(shown))), strict=True))  # as shown, and as here
        self._ids: dict[str, str] = {}  # the same
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ports = {"PORT": self._ports["8000"], "FLASK_RUN_PORT": self._ports["5000"]}
        self._environ = bare_environ(home) | ports | {"PATH": path}
        self._started: list[Started] = []
        self._streams: list[tuple[str, Started, str]] = []  # commands whose output is not complete yet
        self._interpreter: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Run all blocks and compare what they print with what they show."""
        try:
            commands = COMMAND.findall(self._text)
            if not any(re.match(r"(?:\w+=\S* )*kvstore$", command) for command in commands):
                kvstore = self._start("kvstore")
                wait_until(lambda: kvstore.process.poll() is not None or "listens on" in kvstore.said, LIMIT_S)
                assert kvstore.process.poll() is None, kvstore.said
            for language, block in BLOCK.findall(self._text):
                if file := FILE.match(block):
                    (self._work / file[1]).write_text(self._here(block))
                elif language == "console":
                    self._run_console(block)
                elif language == "python":
                    self._run_python(block)
            self._end_streams()
        finally:
            for started in self._started:
                started.kill()
            if self._interpreter:
                self._interpreter.kill()
                self._interpreter.communicate()

    def _run_console(self, block: str) -> None:
        start, *parts = COMMAND.split(block)
        assert not start, f"a console block starts with a command: {start}"
        for command, shown in zip(parts[::2], parts[1::2], strict=True):
            self._run_command(command.rstrip("\n"), shown)

    def _run_command(self, command: str, shown: str) -> None:
        if any(each[0] not in self._ids for each in VOLATILE.finditer(command) if each.lastgroup in ("TAG", "ID")):
            self._end_streams()  # it may be one that a stream tells
        started = self._start(self._here(command))
        if STREAM.match(command):
            self._streams.append((command, started, shown))
            if "data: " in shown:
                wait_until(lambda: started.process.poll() is not None or "data: " in started.said, LIMIT_S)
        elif SERVER.match(command):
            self._wait_for(command, started, shown)
        else:
            started.process.wait(LIMIT_S)
            self._compare(command, shown, started.said)

    def _end_streams(self) -> None:
        for command, started, shown in self._streams:
            self._wait_for(command, started, shown)
        self._streams.clear()

    def _wait_for(self, command: str, started: Started, shown: str) -> None:
        """Wait until a command that goes on has printed as many lines as are shown."""
        lines = shown.count("\n")
        with suppress(AssertionError):
            wait_until(lambda: started.process.poll() is not None or started.said.count("\n") >= lines, LIMIT_S)
        self._compare(command, shown, "".join(started.said.splitlines(keepends=True)[:lines]))

    def _run_python(self, block: str) -> None:
        if ">>> " not in block:
            assert not self._evaluate(block, "exec"), block
        for example in doctest.DocTestParser().get_examples(block):
            self._compare(example.source, example.exc_msg or example.want, self._evaluate(example.source, "single"))

    def _evaluate(self, source: str, mode: str) -> str:
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                [sys.executable, "-c", INTERPRETER],
                env=self._environ,
                cwd=self._work,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
            )
        interpreter = self._interpreter
        assert interpreter.stdin
        assert interpreter.stdout
        interpreter.stdin.write(json.dumps([self._here(source), mode]) + "\n")
        interpreter.stdin.flush()
        printed: str = json.loads(interpreter.stdout.readline())
        return printed

    def _start(self, command: str) -> Started:
        self._started.append(Started(command, self._directory, self._environ))
        return self._started[-1]

    def _here(self, text: str) -> str:
        """What a page shows, with the ports and ids of this run."""
        text = PORT.sub(lambda found: self._ports[found[0]], text)
        return VOLATILE.sub(lambda found: self._ids.get(found[0], found[0]), text)

    def _there(self, text: str) -> str:
        """What was printed, with the ports and the directory that the page shows."""
        text = text.replace(str(self._work), HOME)
        for shown, here in self._ports.items():
            text = re.sub(rf"\b{here}\b", shown, text)
        return text

    def _compare(self, command: str, shown: str, printed: str) -> None:
        """Each id of the page is one of the run, everywhere; a TTL may be some seconds less, or more."""
        printed = self._there(printed)
        assert fixed(printed) == fixed(shown), command
        for expected, found in zip(VOLATILE.finditer(shown), VOLATILE.finditer(printed), strict=True):
            if expected.lastgroup in ("TAG", "ID"):
                assert self._ids.setdefault(expected[0], found[0]) == found[0], (command, expected[0])
                assert list(self._ids.values()).count(found[0]) == 1, (command, found[0])
            elif expected.lastgroup == "TTL":
                assert abs(int(expected[0]) - int(found[0])) <= TTL_S, command


def fixed(text: str) -> str:
    """What is the same in every run."""
    return VOLATILE.sub(lambda found: str(found.lastgroup), text).rstrip("\n")


def blocks(page: Path, *languages: str) -> list[str]:
    """A page's blocks in these languages."""
    return [block for language, block in BLOCK.findall(page.read_text("utf-8")) if language in languages]


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("bash"), reason="no curl or no bash on the PATH")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page.name == "README.md" else pytest.mark.slow)
        for page in PAGES
        if blocks(page, "console", "python")
    ],
    ids=lambda page: page.stem,
)
def test_a_page_prints_what_it_shows(page: Path, directory: Path) -> None:
    """Every command, every session, every stream, line by line."""
    text = page.read_text("utf-8")
    if "$ redis-cli " in text and not shutil.which("redis-cli"):
        text = re.sub(r"^\$ redis-cli .*\n(?:(?!\$ |```).*\n)*", "", text, flags=re.MULTILINE)
    Page(text, directory).run()


def test_blocks_are_run() -> None:
    """What is not run is of another language, and there is little of it."""
    found = [language for page in PAGES for language, _ in BLOCK.findall(page.read_text("utf-8"))]
    assert set(found) <= {"console", "python", "text", "html", "js", "nginx", "sh", "toml"}
    assert sum(language in ("console", "python") for language in found) > 5 * sum(
        language in ("text", "sh") for language in found
    )


# --- What takes a program of its own ------------------------------------------------------------------------------------


def test_the_nginx_that_is_shown_is_the_one_that_is_tested() -> None:
    """tests/faults/test_instances.py runs deploy/nginx.conf."""
    assert blocks(DOCS / "operations.md", "nginx") == [(ROOT / "deploy" / "nginx.conf").read_text("utf-8")]


@pytest.mark.slow
def test_the_page_works_in_a_browser(directory: Path, browse: Callable[[str], None]) -> None:
    """The script of docs/live.md, in a page of this machine: it hears of what it has posted itself."""
    kvstore = start_kvstore(directory)
    address = "http://{}:{}".format(*kvstore.at)
    [script] = blocks(DOCS / "live.md", "js")
    said = f'console.log = value => fetch("{address}/said/", {{method: "POST", body: JSON.stringify(value)}})'
    (directory / "pages").mkdir()
    page = f"<!doctype html><script>{said}\n{script.replace('http://127.0.0.1:8000', address)}</script>"
    (directory / "pages" / "index.html").write_text(page)
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory / "pages"))
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    try:
        browse(f"http://127.0.0.1:{pages.server_port}/")
        wait_until(lambda: b"hello" in kvstore.request("GET", "/said/").content, LIMIT_S)
        [item] = json.loads(kvstore.request("GET", "/said/").content)["items"]
        assert item["value"] == {"text": "hello"}
    finally:
        pages.shutdown()
        pages.server_close()
        kvstore.kill()


@pytest.mark.slow
def test_the_page_with_a_token_works_in_a_browser(directory: Path, browse: Callable[[str], None]) -> None:
    """The script of docs/access.md under the rules of that page: it writes, and hears of what it has written."""
    page = DOCS / "access.md"
    [rules], [script] = blocks(page, "toml"), blocks(page, "js")
    (directory / "rules.toml").write_text(rules)
    kvstore = start_kvstore(directory, KVSTORE_SECRET=SECRET, KVSTORE_RULES=str(directory / "rules.toml"))
    address = "http://{}:{}".format(*kvstore.at)
    token = jwt.encode({"sub": "ada", "allow": [["/said/**", "read append"]]}, SECRET)
    fields = f'{{Authorization: "Bearer {token}"}}'
    said = (
        f'console.log = value => fetch("{address}/said/", {{method: "POST", headers: {fields}, body: JSON.stringify(value)}})'
    )
    (directory / "pages").mkdir()
    script = f'const token = "{token}";\n{said}\n{script.replace("http://127.0.0.1:8000", address)}'
    (directory / "pages" / "index.html").write_text(f"<!doctype html><script>{script}</script>")
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory / "pages"))
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=pages.serve_forever, daemon=True).start()

    def heard() -> list[Any]:
        answer = kvstore.request("GET", "/said/", [("Authorization", f"Bearer {token}")])
        return [item["value"] for item in json.loads(answer.content)["items"]]

    try:
        browse(f"http://127.0.0.1:{pages.server_port}/")
        wait_until(lambda: bool(heard()), LIMIT_S)
        assert heard() == [{"text": "hello"}]
    finally:
        pages.shutdown()
        pages.server_close()
        kvstore.kill()


# --- JavaScript ---------------------------------------------------------------------------------------------------------

PRINTED = re.compile(r"console\.log\(.*?\)+ // (.+)$", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="no node on the PATH")
def test_the_javascript_page_prints_what_it_shows(directory: Path) -> None:
    """Its blocks in order, in Node: what each console.log() prints is in the comment after it, lines separated by |."""
    text = "\n".join(blocks(DOCS / "javascript.md", "js"))
    kvstore = start_kvstore(directory)
    address = "http://{}:{}".format(*kvstore.at)
    module = (ROOT / "kvstore/serving/pages/kvstore.js").as_uri()
    print_json = (
        "console.log = (...values) => process.stdout.write(values.map(each => JSON.stringify(each)).join(' ') + '\\n')\n"
    )
    script = text.replace("http://127.0.0.1:8000/_/kvstore.js", module).replace("http://127.0.0.1:8000", address)
    (directory / "page.mjs").write_text(print_json + script)
    try:
        ran = subprocess.run(["node", directory / "page.mjs"], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    finally:
        kvstore.kill()
    shown = [line for comment in PRINTED.findall(text) for line in comment.split(" | ")]
    assert (ran.stdout.splitlines(), ran.stderr) == (shown, "")


@pytest.mark.slow
def test_the_javascript_page_works_in_a_browser(directory: Path, browse: Callable[[str], None]) -> None:
    """Its page on another origin of this machine: it is present, sends a message, and shows it."""
    [page] = blocks(DOCS / "javascript.md", "html")
    kvstore = start_kvstore(directory)
    address = "http://{}:{}".format(*kvstore.at)
    (directory / "pages").mkdir()
    acting = """<script>
    window.prompt = () => "Ada"
    let isSent = false
    setTimeout(function act() {
      const seen = document.querySelector("#people").innerText + " " + document.querySelector("#messages").innerText
      if (seen === "Ada " && !isSent) {
        isSent = true
        document.querySelector("input").value = "hello"
        document.querySelector("button").click()
      }
      if (seen === "Ada Ada: hello") fetch("ADDRESS/seen", {method: "PUT", body: JSON.stringify(seen)})
      else setTimeout(act, 500)
    }, 100)</script>"""
    (directory / "pages" / "index.html").write_text(
        (acting.replace("ADDRESS", address) + page).replace("http://127.0.0.1:8000", address)
    )
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory / "pages"))
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    try:
        browse(f"http://127.0.0.1:{pages.server_port}/")
        wait_until(lambda: kvstore.request("GET", "/seen").status == 200, LIMIT_S)
    finally:
        pages.shutdown()
        pages.server_close()
        kvstore.kill()


# --- Tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting: Any) -> None:
    """With its default and its meaning, in a row of its own."""
    lines = (DOCS / "configuration.md").read_text("utf-8").splitlines()
    row = next((line for line in lines if line.startswith(f"| `{setting.name}` |")), "")
    assert setting.meaning in row
    assert setting.default in row


@pytest.mark.parametrize("problem", Problem.__subclasses__(), ids=lambda problem: problem.__name__)
def test_every_problem_is_documented(problem: type[Problem]) -> None:
    """With its status, in a row of its own."""
    assert f"| {problem.status} | `{problem.uri()}` |" in (DOCS / "errors.md").read_text("utf-8")


def shown(limit: Limit) -> str:
    """The number as a page has it."""
    if limit.value is None:
        return "any"
    for size, unit in ((2**20, "MiB"), (2**10, "KiB")):
        if limit.unit == "bytes" and limit.value > 1024 and limit.value % size == 0:
            return f"{limit.value // size:,} {unit}"
    return f"{limit.value:,} {limit.unit}"


def test_every_limit_is_documented() -> None:
    """In the order of the table, with the numbers of the default settings, and no other."""
    _, _, section = (DOCS / "http.md").read_text("utf-8").partition("\n## Limits\n")
    rows = re.findall(r"^\| `.*\|$", section, re.MULTILINE)
    assert rows == [f"| `{limit.name}` | {shown(limit)} | {limit.meaning} |" for limit in limits(Settings())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_table_has_as_many_cells_in_each_row(page: Path) -> None:
    """Otherwise it is shown as a line of text."""
    tables = re.findall(r"(?:^\|.*\|\n)+", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    for table in tables:
        rows = [re.sub(r"`[^`]*`", "", row).count("|") for row in table.splitlines()]
        assert len(set(rows)) == 1, table
        assert re.fullmatch(r"\|(?: *:?-+:? *\|)+", table.splitlines()[1]), table


def test_no_problem_is_documented_that_is_none() -> None:
    """A row whose problem has gone goes as well."""
    documented = re.findall(r"^\| \d{3} \| `(urn:kvstore:[a-z-]+)` \|", (DOCS / "errors.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(problem.uri() for problem in Problem.__subclasses__())


ADA = parse_path(b"/people/ada")


@pytest.mark.parametrize(
    "key",
    [*ADA.keys, *(own_key(ADA, name) for name in (*OWN_KEYS, "idempotency:…", "holds:…", "takers:…"))],
)
def test_every_redis_key_is_documented(key: str) -> None:
    """The data layout names every kind of key that we use."""
    assert f"`{key}`" in (DOCS / "data-layout.md").read_text("utf-8")


# --- Links --------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What a link can point at in a page: its headings, spelled as GitHub and MkDocs do."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[Path, str]]:
    """The relative links of all pages."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text("utf-8"))):
            if not re.match(r"https?:", target):
                yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()), ids=lambda part: getattr(part, "stem", part))
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    """To a file that is there, and to one of its headings."""
    name, _, anchor = target.partition("#")
    linked = (page.parent / name).resolve() if name else page
    assert linked.exists()
    assert not anchor or anchor in anchors(linked)


def test_the_contents_of_the_decisions() -> None:
    """They have each decision once; within a theme the decisions are in the order of their numbers."""
    text = (ROOT / "DESIGN.md").read_text("utf-8")
    contents, _, entries = text.partition("\n## Contents\n")[2].partition("\n## ")
    themes = [re.findall(r"^### ((\d+)\. .+)$", theme, re.MULTILINE) for theme in entries.split("\n## ")]
    assert re.findall(r"^- \[(\d+\. .+)\]\(", contents, re.MULTILINE) == [heading for theme in themes for heading, _ in theme]
    assert all(theme == sorted(theme, key=lambda entry: int(entry[1])) for theme in themes)
    numbers = [number for theme in themes for _, number in theme]
    assert len(set(numbers)) == len(numbers)


def test_the_readme_is_short() -> None:
    """Somebody who is new finishes it."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200
