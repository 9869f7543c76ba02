"""Export: the documents at or below a path as lines of NDJSON, a page of a listing at a time, so that memory stays flat.

Each page is a request of its own, so a lost connection costs one page. What changes meanwhile may be exported as it was
before or after the change; what does not change is exported once. The time is only looked at where a TTL is known as a date.
"""

import json
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from kvstore.core.json_text import skip, split_object_at
from kvstore.core.paths import Path
from kvstore.http.containers import MAX_LIMIT
from kvstore.http.messages import Request, Response
from kvstore.transfer.exchange import Exchange, TransferFailed, explain, header
from kvstore.transfer.lines import render_line


def export(exchange: Exchange, path: Path) -> Iterator[list[bytes]]:
    """Yield the lines of a document, or of all documents below a container, a list for each page; raises TransferFailed.

    `/` is everything: the root document, the other documents of one segment, and all namespaces.
    """
    if path.text != "/":
        if path.is_container:
            yield from _below(exchange, path.text)
        elif not (line := _document(exchange, path.text)):
            raise TransferFailed(f"no document is stored at {path.text}; add a slash for the container")
        else:
            yield [line]
        return
    if line := _document(exchange, "/"):
        yield [line]
    for documents, containers in _pages(exchange, "/", "list"):
        yield documents
        for container in containers:
            yield from _below(exchange, container)


def _below(exchange: Exchange, container: str) -> Iterator[list[bytes]]:
    return (documents for documents, _ in _pages(exchange, container, "recursive"))


def _pages(exchange: Exchange, container: str, how: str) -> Iterator[tuple[list[bytes], list[str]]]:
    """Yield the lines of the documents, and the paths of the containers, of each page of a listing."""
    query = f"{how}&limit={MAX_LIMIT}"
    while query:
        answer = _get(exchange, f"{container}?{query}")
        if answer.status != 200:
            raise TransferFailed(f"{container} cannot be listed: {explain(answer)}")
        text = answer.body.decode()
        page, _ = split_object_at(text, skip(text, 0))
        documents, containers = [], []
        for item in _items(page["items"]):
            if json.loads(item["path"]) != container + json.loads(item["name"]):  # of another service, or below another URL
                raise TransferFailed(f"the listing of {container} has {item['path']}, which is not below it")
            if "value" in item:
                documents.append(render_line(item["path"], item["value"], item.get("ttl")))
            else:
                containers.append(json.loads(item["path"]))
        yield documents, containers
        query = json.loads(page.get("next", '""')).partition("?")[2]


def _items(text: str) -> Iterator[dict[str, str]]:
    """Yield the members of each object in an array that is known to be JSON, as JSON texts."""
    at = skip(text, 1)
    while text[at] != "]":
        item, at = split_object_at(text, at)
        yield item
        if text[at] == ",":
            at = skip(text, at + 1)


def _document(exchange: Exchange, path: str) -> bytes | None:
    """Return the line of a document, None where nothing is stored."""
    answer = _get(exchange, path)
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise TransferFailed(f"{path} cannot be read: {explain(answer)}")
    value, ttl = answer.body.decode().rstrip("\n"), None
    if sunset := header(answer, "sunset"):
        now_s = parsedate_to_datetime(header(answer, "date")).timestamp() if header(answer, "date") else time.time()
        ttl = str(max(1, round(parsedate_to_datetime(sunset).timestamp() - now_s)))
        if value.startswith("{"):  # the service has added the TTL, as the last member
            value = value[: value.rindex('"ttl":')].removesuffix(",") + "}"
    return render_line(json.dumps(path), value, ttl)


def _get(exchange: Exchange, target: str) -> Response:
    return exchange(Request("GET", target.encode(), {"accept": "application/json"}))
