"""Presence over HTTP: the parameters `?hold=` and `?as=` of a stream."""

from kvstore.commands.presence import Hold
from kvstore.core.codec import encode
from kvstore.core.errors import InvalidParameter, Problem
from kvstore.core.paths import parse_path


def parse_hold(path: bytes | None, value: bytes | None, log_length: int) -> Hold | None:
    """Return the command for `?hold=` and `?as=`, None without them; raises InvalidParameter.

    `path` and `value` are percent-decoded once, as parameters.
    """
    if path is None:
        if value is not None:
            raise InvalidParameter("?as= requires ?hold=; send both, or neither")
        return None
    try:
        held = parse_path(path)
        encoded = encode(b"null" if value is None else value)
    except Problem as problem:
        raise InvalidParameter(f"?hold= must be the path of a document and ?as= its JSON: {problem.detail}") from None
    if held.is_container or held.text == "/_" or held.text.startswith("/_/"):
        raise InvalidParameter("?hold= must be the path of a document, not of a container and not below /_/")
    if encoded.ttl_s is not None or encoded.has_server_values:
        raise InvalidParameter("?as= takes no server values and no member ttl: the document stays for as long as it is held")
    return Hold(held, encoded, log_length)
