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

from kvstore.core.paths import split_target
from kvstore.core.settings import Settings
from kvstore.http.messages import Request

MAX_PATH, MAX_SUBJECT = 2048, 256  # characters in a line: longer ones than 4,096 bytes of two processes may get mixed

_is_plain = re.compile(r"(?!-\Z)[!#-~]+").fullmatch
_unsafe = re.compile(rb"[^!#-\[\]-~]")  # also what JSON escapes, so that a path is spelled alike in both forms


class RequestLog:
    """Writes a line for each request; `write` takes it with its line feed."""

    def __init__(self, form: str, write: Callable[[str], object]) -> None:
        self._is_json = form == "json"
        self._write = write

    def record(self, request: Request, status: int) -> None:
        """Note the response to a request."""
        caller = request.caller
        ms = 1000 * (monotonic() - caller.began_s) if caller else 0.0
        now = time()
        at = f"{_second(int(now))}.{int(now * 1000) % 1000:03}Z"
        method = _shown(request.method.encode("utf-8", "replace")[:32])
        path = _shown((request.base.encode("latin-1", "replace") + split_target(request.target)[0])[:MAX_PATH])[:MAX_PATH]
        subject = caller.subject if caller else None
        who = _as_json(subject and subject[:MAX_SUBJECT])
        if self._is_json:
            line = f'{{"time":"{at}","method":"{method}","path":"{path}","status":{status},"ms":{ms:.1f},"subject":{who}}}\n'
        else:
            who = "-" if subject is None else subject if who == f'"{subject}"' and _is_plain(subject) else who
            line = f"{at} {method or '-'} {path or '-'} {status} {ms:.1f} {who}\n"
        self._write(line)


def _shown(text: bytes) -> str:
    """Return bytes as printable ASCII without spaces, quotes and backslashes, the others percent-encoded."""
    return _unsafe.sub(_escaped, text).decode("ascii")


@lru_cache(maxsize=1024)  # of at most MAX_SUBJECT characters
def _as_json(subject: str | None) -> str:
    return json.dumps(subject)


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
