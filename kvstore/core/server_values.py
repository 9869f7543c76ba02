"""Server values: what a client asks Redis to fill in, as the value of a member of the outermost object.

`{".sv":"timestamp"}` becomes `@`, and `{".sv":{"increment":n}}` becomes `+n`; no JSON text starts with either. Redis resolves
them (commands/lua/_server_values.lua). Source: Firebase's REST API.
"""

import json
import re
from typing import Any

from kvstore.core.errors import InvalidDocument
from kvstore.core.json_text import uncollected

SERVER_VALUE = ".sv"
MAX_SERVER_VALUE_BYTES = 256  # without whitespace; each character may be an escape
TIMESTAMP = b"@"  # the time in ms

_MAYBE_SERVER_VALUE = re.compile(r"\.sv\"|\\u00")


def replace_server_values(text: str, members: dict[str, str], values: list[bytes]) -> bool:
    """Replace the server values of an object in `values`, which are the texts of its `members` without whitespace.

    Return whether there was one. `text` is the whole object. Raises InvalidDocument.
    """
    if not _MAYBE_SERVER_VALUE.search(text):
        return False
    if SERVER_VALUE in members:
        raise _bad_server_value()
    found = False
    for index, member in enumerate(members.values()):
        if not _MAYBE_SERVER_VALUE.search(member):
            continue
        value = json.loads(member) if len(values[index]) <= MAX_SERVER_VALUE_BYTES else None
        if not isinstance(value, dict) or SERVER_VALUE not in value:
            refuse_server_values(member)
            continue
        asked = value[SERVER_VALUE]
        if len(value) == 1 and asked == "timestamp":
            values[index] = TIMESTAMP
        elif len(value) == 1 and isinstance(asked, dict) and list(asked) == ["increment"] and _is_int64(asked["increment"]):
            values[index] = b"+%d" % asked["increment"]
        else:
            raise _bad_server_value()
        found = True
    return found


def refuse_server_values(text: str) -> None:
    """Refuse a JSON text in which there is a server value; raises InvalidDocument."""
    if _MAYBE_SERVER_VALUE.search(text):
        uncollected(_check_objects, text)


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _refuse_server_value(pairs: list[tuple[str, Any]]) -> None:
    if any(name == SERVER_VALUE for name, _ in pairs):
        raise _bad_server_value()


_check_objects = json.JSONDecoder(object_pairs_hook=_refuse_server_value).decode


def _bad_server_value() -> InvalidDocument:
    return InvalidDocument(
        'a server value must be {".sv":"timestamp"} or {".sv":{"increment":n}} with a 64-bit integer n, as the value of a'
        " member of the outermost object"
    )
