"""Import: documents are put in batches, each on its own, so that memory stays flat and a bad one stops no other.

A PUT that is sent again stores the same document again, so an import that was interrupted can be run once more from the
beginning.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from time import time
from typing import Any

from kvstore.commands.base import DAY_MS, RegisterNamespace
from kvstore.core.errors import Problem
from kvstore.core.settings import Settings
from kvstore.http.messages import Request, Response
from kvstore.http.protocol import BATCH_PATH
from kvstore.stores.blocking import BlockingStore
from kvstore.transfer.exchange import Exchange, TransferFailed, explain
from kvstore.transfer.lines import Entry, Refuse

BATCH_REQUESTS = 500  # some 3 ms of Redis
BATCH_BYTES = 512 * 1024  # half of what a body may have; a document that is larger is put by itself
MAX_MEMBER_TTL_BYTES = 4096  # of a document that gets a member `ttl`: far from all limits of a document

FATAL = (401, 507)  # the token is bad, Redis is full: nothing that follows would be stored
LATER = (429, 502, 503, 504)  # the same request may succeed


def as_one(exchange: Exchange) -> Exchange:
    """Return the same, but a batch of which nothing can be stored for now is answered as its first request is."""

    def ask(request: Request) -> Response:
        answer = exchange(request)
        if answer.status == 200 and answer.body.startswith(_NOT_NOW):
            parts = json.loads(answer.body)["responses"]
            if all(part["status"] in LATER for part in parts):
                return Response(parts[0]["status"], tuple(parts[0]["headers"].items()), json.dumps(parts[0]["body"]).encode())
        return answer

    return ask


_NOT_NOW = tuple(b'{"responses":[{"status":%d,' % status for status in LATER)


def registering(entries: Iterable[Entry], store: BlockingStore, settings: Settings) -> Iterator[Entry]:
    """Yield documents that are to be put straight into a store, and register each namespace before its first one.

    A PUT registers its namespace by a second command (DESIGN 17). An import that is killed between the two would leave it out
    of the root's listing, and so of an export, for a day. A namespace in which there is nothing is not listed.
    """
    known: set[str] = set()
    for entry in entries:
        namespace = entry.path.namespace
        if namespace not in known and namespace != "/":
            if len(known) == MAX_KNOWN:
                known.clear()
            known.add(namespace)
            ends_ms = int(1000 * (time() + (entry.ttl_s or settings.default_ttl_s)))
            expires_at_ms = (ends_ms // DAY_MS + 2) * DAY_MS  # as lua/_index.lua has it
            with suppress(Problem):  # the PUT will tell
                store.execute(RegisterNamespace(namespace, expires_at_ms, None))
        yield entry


MAX_KNOWN = 10_000  # namespaces that are not registered again


def load(exchange: Exchange, entries: Iterable[Entry], refuse: Refuse) -> Iterator[int]:
    """Store documents, and yield how many were stored by each batch; raises TransferFailed."""
    batch: list[tuple[Entry, bytes]] = []
    size = 0
    for entry in entries:
        request = _request(entry)
        if batch and (size + len(request) > BATCH_BYTES or len(batch) == BATCH_REQUESTS):
            yield _put(exchange, batch, refuse)
            batch, size = [], 0
        batch.append((entry, request))
        size += len(request)
    if batch:
        yield _put(exchange, batch, refuse)


def _request(entry: Entry) -> bytes:
    """Return the PUT of a document as a batch has it.

    The TTL is a member of a small object, since a batch of PUTs without parameters is executed as one (http/bulk_batch.py).
    """
    path, value, ttl = entry.path.text, entry.value, entry.ttl_s
    if ttl is not None:
        if value.startswith("{") and len(value) <= MAX_MEMBER_TTL_BYTES and '"ttl"' not in value and "\\" not in value:
            members = value[:-1].rstrip()
            value = f'{members}{"" if members == "{" else ","}"ttl":{ttl}}}'
        else:
            path = f"{path}?ttl={ttl}"
    return f'{{"method":"PUT","path":"{path}","body":{value}}}'.encode()


def _put(exchange: Exchange, batch: list[tuple[Entry, bytes]], refuse: Refuse) -> int:
    """Put some documents, and return how many were stored."""
    if len(batch) == 1 and len(batch[0][1]) > BATCH_BYTES:
        return _put_one(exchange, batch[0][0], refuse)
    body = b'{"atomic":false,"requests":[%b]}' % b",".join([request for _, request in batch])
    answer = exchange(Request("POST", BATCH_PATH.encode(), {"content-type": "application/json"}, body))
    if answer.status != 200:
        raise TransferFailed(f"the service refuses a batch: {explain(answer)}")
    parts: list[dict[str, Any]] = json.loads(answer.body, parse_int=_status)["responses"]
    again = []
    stored = 0
    for (entry, request), part in zip(batch, parts, strict=True):
        status = part["status"]
        if status < 300:
            stored += 1
        elif status in LATER:
            again.append((entry, request))
        else:
            _refused(entry, status, part["body"]["detail"], refuse)
    return stored + (_put(exchange, again, refuse) if again else 0)


def _put_one(exchange: Exchange, entry: Entry, refuse: Refuse) -> int:
    """Put a document that is too large for a batch."""
    target = entry.path.text + (f"?ttl={entry.ttl_s}" if entry.ttl_s is not None else "")
    headers = {"content-type": "application/json", "prefer": "return=minimal"}
    answer: Response = exchange(Request("PUT", target.encode(), headers, entry.value.encode("utf-8", "surrogatepass")))
    if answer.status < 300:
        return 1
    _refused(entry, answer.status, explain(answer), refuse)
    return 0


def _status(digits: str) -> int:
    return int(digits) if len(digits) == 3 else 0  # what else is a number is not looked at, and may be long


def _refused(entry: Entry, status: int, why: str, refuse: Refuse) -> None:
    if status in FATAL:
        raise TransferFailed(f"{entry.where}: {why}")
    refuse(entry.where, why)
