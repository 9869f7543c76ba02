"""Jobs and results as JSON text."""

import json
from typing import Any

from kvstore.core import json_text
from kvstore.core.errors import Problem


def dump_json(value: Any) -> bytes:
    """Return a value as JSON text; raises TypeError for a value that JSON cannot represent."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        _check_names(value)
    except (ValueError, RecursionError) as error:
        raise TypeError(f"not JSON: {error}") from None
    return text


def _check_names(value: Any) -> None:
    """Refuse names that are not strings; json.dumps would convert them."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str):
                raise TypeError(f"a name in a JSON object is a string, not {name!r}")
            _check_names(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_names(part)


def check_storable(text: bytes) -> None:
    """Refuse JSON text that is too large or too deep to be stored; raises TypeError."""
    try:
        json_text.check(text)
    except Problem as problem:
        raise TypeError(f"not JSON that can be stored: {problem}") from None
