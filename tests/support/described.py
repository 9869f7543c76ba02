"""Responses held against the OpenAPI description: every response of the conformance suite is one that it names.

The check is a few look-ups, for thousands of responses; tests/http/test_openapi.py holds the bodies against their schemas.
"""

import json
import re
from typing import Any

from kvstore.core.settings import Settings
from kvstore.http.openapi import describe, field_of
from kvstore.http.operations import OPERATIONS

DESCRIPTION = describe(Settings())
_GENERAL = {"allow", "ratelimit", "ratelimit-policy", "retry-after"}


def template_of(target: str | bytes) -> str | None:
    """The path of the description that a target belongs to; None for a path of the service's own that is not described."""
    text = target.decode("utf-8", "replace") if isinstance(target, bytes) else target
    path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?]*", "", text).partition("?")[0].replace("%5F", "_").replace("%68", "h")
    if path in OPERATIONS:
        return path
    if path.startswith("/_/") or path in ("", "*", "/_"):
        return None
    return "/{container}/" if path.endswith("/") else "/{document}"


def operation_of(method: str, target: str | bytes) -> Any:
    """The operation of the description that a request belongs to, None for none."""
    template = template_of(target)
    return DESCRIPTION["paths"][template][field_of(method)] if template and method in OPERATIONS[template] else None


def resolved(part: Any) -> Any:
    """A part of the description, or what it refers to."""
    while "$ref" in part:
        found: Any = DESCRIPTION
        for name in part["$ref"].split("/")[1:]:
            found = found[name]
        part = found
    return part


def check_described(method: str, target: str | bytes, status: int, media_type: str | None, body: bytes) -> None:
    """Its status, its media type and its problem are in the description of the operation."""
    operation = operation_of(method, target)
    if operation is None:
        return
    where = f"{method} {target!r}"
    assert str(status) in operation["responses"], f"{where}: {status} {body[:200]!r}"
    response = resolved(operation["responses"][str(status)])
    content = response.get("content", {})
    if media_type is None:
        return
    assert media_type.partition(";")[0] in {kind.partition(";")[0] for kind in content}, f"{where}: {status} {media_type}"
    if status >= 400 and body and method != "HEAD":
        _, kinds = content[media_type]["schema"]["allOf"]
        assert json.loads(body)["type"] in kinds["properties"]["type"]["enum"]
