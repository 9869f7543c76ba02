"""The query that asks for presence: `?hold=` and `?as=` of a stream."""

from kvstore.commands.presence import Hold
from kvstore.core.codec import encode
from kvstore.core.errors import InvalidParameter, Problem
from kvstore.core.paths import parse_path


def parse_hold(path: bytes | None, value: bytes | None, log_length: int) -> Hold | None:
    """What `?hold=` and `?as=` of a stream ask for, as they were sent but percent-decoded; raises InvalidParameter."""
    if path is None:
        if value is not None:
            raise InvalidParameter("?as= is the document that ?hold= keeps at its path; send both, or none")
        return None
    try:
        held = parse_path(path)
        encoded = encode(b"null" if value is None else value)
    except Problem as problem:
        raise InvalidParameter(f"?hold= is the path of a document, and ?as= its JSON: {problem.detail}") from None
    if held.is_container or held.text == "/_" or held.text.startswith("/_/"):
        raise InvalidParameter("?hold= is the path of a document: not of a container, and not one of the service's own")
    if encoded.ttl_s is not None or encoded.has_server_values:
        raise InvalidParameter("?as= has no server values, and no member ttl: it is there for as long as it is held")
    return Hold(held, encoded, log_length)
