"""`kvstore export` and `kvstore import`: the arguments, the files, what is printed, and the exit status.

The status is 0 if everything was moved, 1 if not, 2 for wrong arguments. Only documents go to stdout.
"""

import argparse
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TypeAlias

from kvstore.client import settings_of
from kvstore.core.errors import Problem
from kvstore.core.settings import InvalidSetting
from kvstore.stores.blocking import open_blocking_store
from kvstore.stores.embedded import StartFailed
from kvstore.transfer.exchange import Exchange, TransferFailed, check_health, over_http, patient, straight_to
from kvstore.transfer.exporting import export
from kvstore.transfer.importing import as_one, load, registering
from kvstore.transfer.lines import MAX_LINE_BYTES, Entry, parse_lines
from kvstore.transfer.progress import Progress
from kvstore.transfer.splitting import NotSplit, split
from kvstore.verbs.requests import as_path

SKIPPED_BYTES = 64 * 1024  # of a line that is too long, at a time
INTERRUPTED = 130  # 128 and SIGINT, as shells have it


def run(arguments: argparse.Namespace) -> int:
    """Run one of the two commands, and return the exit status."""
    try:
        return _export(arguments) if arguments.command == "export" else _import(arguments)
    except (TransferFailed, InvalidSetting, StartFailed) as error:
        print(f"kvstore: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kvstore: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _export(arguments: argparse.Namespace) -> int:
    try:
        url, path = _where(arguments.where)
        at = as_path(path)
    except (ValueError, Problem) as error:
        print(f"kvstore export: {getattr(error, 'detail', error)}", file=sys.stderr)
        return 2
    out = sys.stdout.buffer
    with ExitStack() as open_until_done:
        exchange, _ = _open(url, open_until_done)
        is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
        with Progress("export", None, is_shown=is_shown) as progress:
            for lines in export(patient(exchange), at):
                out.write(b"".join(lines))
                progress.go_on(len(lines))
            out.flush()
    print(f"{_documents(progress.documents)} exported", file=sys.stderr)
    return 0


def _where(given: list[str]) -> tuple[str | None, str]:
    """Return the URL (None: the configured store) and the path of an export; raises ValueError."""
    url = given.pop(0) if given and "://" in given[0] else None
    path = given.pop(0) if given else "/"
    if given or not path.startswith("/"):
        raise ValueError("the arguments are a URL, then a path that starts with a slash; both may be left out")
    return url, path


def _import(arguments: argparse.Namespace) -> int:
    bad = 0
    broken: list[Exception] = []

    def refuse(where: str, why: str) -> None:
        nonlocal bad
        bad += 1
        progress.say(f"{where}: {why}")

    with ExitStack() as open_until_done:
        file = open_until_done.enter_context(_opened(arguments.file))
        exchange, register = _open(arguments.url, open_until_done)
        status = os.fstat(file.fileno())
        total = status.st_size if stat.S_ISREG(status.st_mode) else None
        progress = open_until_done.enter_context(Progress("import", total, is_shown=sys.stderr.isatty()))
        if arguments.split:
            text = TextIOWrapper(file, encoding="utf-8", newline="")
            open_until_done.callback(text.detach)  # it would close the file when it is collected
            entries = _until_broken(split(text.read, arguments.split, refuse), broken)
        else:
            entries = parse_lines(_lines(file), refuse)
        try:
            for stored in load(patient(as_one(exchange)), register(entries), refuse):
                progress.go_on(stored, file.tell() if total is not None else None)
        except TransferFailed as error:
            broken.append(error)
    print(f"{_documents(progress.documents)} imported" + (f", {bad:,} refused" if bad else ""), file=sys.stderr)
    for each in broken:
        print(f"kvstore: {each}", file=sys.stderr)
    return 1 if bad or broken else 0


def _until_broken(entries: Iterator[Entry], broken: list[Exception]) -> Iterator[Entry]:
    """Yield the documents of a text up to where it is no JSON."""
    try:
        yield from entries
    except NotSplit as error:
        broken.append(error)


def _opened(name: str) -> AbstractContextManager[BinaryIO]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise TransferFailed(f"{name} cannot be read: {error.strerror}") from None


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines of a file, None for one that is too long."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(SKIPPED_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


Register: TypeAlias = Callable[[Iterator[Entry]], Iterator[Entry]]


def _open(url: str | None, open_until_done: ExitStack) -> tuple[Exchange, Register]:
    """Return what reaches the documents at a URL, of HTTP or of Redis, and what registers the namespaces of an import there.

    Raises TransferFailed, InvalidSetting or StartFailed.
    """
    if url is not None and url.partition("://")[0].lower() in ("http", "https"):
        exchange = over_http(url, os.environ.get("KVSTORE_TOKEN", "").strip())
        check_health(exchange)
        return exchange, lambda entries: entries
    settings = settings_of(url)
    store = open_blocking_store(settings.redis_url, verify_tls=settings.verify_tls, replicas=settings.replicas)
    open_until_done.callback(store.close)
    return straight_to(store, settings), lambda entries: registering(entries, store, settings)


def _documents(count: int) -> str:
    return f"{count:,} document" + ("" if count == 1 else "s")
