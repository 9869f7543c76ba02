"""The log of requests, `KVSTORE_LOG`: a line on standard output for each, when its response is sent, or its stream ends.

    2026-11-21T15:00:00.123Z GET /people/ada 200 0.4 ada
    {"time":"2026-11-21T15:00:00.123Z","method":"GET","path":"/people/ada","status":200,"ms":0.4,"subject":"ada"}

No line has a query, a header field or a body, so none has a token or a stored value. What clients chose is escaped, so that
nobody can forge a line.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from time import gmtime, monotonic, strftime, time
from typing import NamedTuple

from kvstore.core.paths import split_target
from kvstore.core.settings import Settings
from kvstore.http.messages import Request

MAX_PATH, MAX_SUBJECT = 2048, 256  # characters in a line: longer ones than 4,096 bytes of two processes may get mixed

_is_plain = re.compile(r"[!#-~]+").fullmatch
_unsafe = re.compile(rb"[^!-~]")


class _Line(NamedTuple):
    """What a line tells. Method and path are printable ASCII without spaces."""

    at: str
    method: str
    path: str
    status: int
    ms: float
    subject: str | None


class RequestLog:
    """Writes a line for each request; `write` takes it with its line feed."""

    def __init__(self, form: str, write: Callable[[str], object]) -> None:
        self._render = _as_json if form == "json" else _as_text
        self._write = write

    def record(self, request: Request, status: int) -> None:
        """Note the response to a request."""
        caller = request.caller
        ms = 1000 * (monotonic() - caller.began_s) if caller else 0.0
        now = time()
        path = request.base.encode("latin-1", "replace") + split_target(request.target)[0]
        shown = _unsafe.sub(_escaped, path[:MAX_PATH]).decode("ascii")[:MAX_PATH]
        method = _unsafe.sub(_escaped, request.method.encode("utf-8", "replace")[:32]).decode("ascii")
        subject = caller.subject if caller else None
        at = f"{_second(int(now))}.{int(now * 1000) % 1000:03}Z"
        line = _Line(at, method, shown, status, ms, subject[:MAX_SUBJECT] if subject else subject)
        self._write(self._render(line))


def _as_text(line: _Line) -> str:
    at, method, path, status, ms, subject = line
    who = "-" if subject is None else subject if _is_plain(subject) and subject != "-" else json.dumps(subject)
    return f"{at} {method or '-'} {path or '-'} {status} {ms:.1f} {who}\n"


def _as_json(line: _Line) -> str:
    at, method, path, status, ms, subject = line
    return (
        f'{{"time":"{at}","method":{json.dumps(method)},"path":{json.dumps(path)},"status":{status},"ms":{ms:.1f},'
        f'"subject":{json.dumps(subject)}}}\n'
    )


def _escaped(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(found[0])


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))


def _print(line: str) -> None:
    try:
        sys.stdout.write(line)
        sys.stdout.flush()
    except (OSError, ValueError):  # nobody reads it any more; requests are served all the same
        pass


def open_log(settings: Settings) -> RequestLog | None:
    """Return the log that the settings ask for, None for none."""
    return None if settings.log == "none" else RequestLog(settings.log, _print)
