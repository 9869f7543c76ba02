"""Presence over HTTP: the parameters `?hold=` and `?as=` of a stream."""

from itertools import repeat

from kvstore.commands.presence import Hold
from kvstore.core.codec import encode
from kvstore.core.errors import InvalidParameter, Problem
from kvstore.core.paths import parse_path
from kvstore.core.settings import Settings
from kvstore.http.cors import check_hold_origin
from kvstore.http.messages import Query, Request


def parse_holds(request: Request, query: Query, settings: Settings, *, most: int) -> tuple[Hold, ...]:
    """Return the commands for `?hold=` and `?as=`, of which each may come up to `most` times; raises Problem."""
    paths, values = query.get("hold", []), query.get("as", [])
    if values and len(values) != len(paths):
        raise InvalidParameter("each ?hold= has one ?as=, in the same order; send as many, or no ?as= at all")
    if len(paths) > most:
        raise InvalidParameter(
            f"this stream can hold {most} documents, and ?hold= came {len(paths)} times; open another stream"
        )
    if paths:
        check_hold_origin(request.headers, settings)
    return tuple(_hold(path, value, settings.log_length) for path, value in zip(paths, values or repeat("null"), strict=False))


def _hold(path: str, value: str, log_length: int) -> Hold:
    raw_path = path.encode("utf-8", "surrogateescape")
    try:
        held = parse_path(raw_path)
        encoded = encode(value.encode("utf-8", "surrogateescape"))
    except Problem as problem:
        detail = f"?hold= must be the path of a document and ?as= its JSON: {problem.detail}"
        raise InvalidParameter(detail, path=raw_path.decode("utf-8", "replace")) from None
    if held.is_container or held.text == "/_" or held.text.startswith("/_/"):
        raise InvalidParameter("?hold= must be the path of a document, not of a container and not below /_/", path=held.text)
    if encoded.ttl_s is not None or encoded.has_server_values:
        raise InvalidParameter(
            "?as= takes no server values and no member ttl: the document stays for as long as it is held", path=held.text
        )
    return Hold(held, encoded, log_length)
