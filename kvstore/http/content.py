"""Media type and content coding of request bodies. Source: RFC 9110 section 8."""

import re
from collections.abc import Mapping

from kvstore.core.errors import (
    UnsupportedMediaType,
)

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
ACCEPT_PATCH = f"{MERGE_PATCH}, {JSON_PATCH}, application/json"
ACCEPT_QUERY = "application/json"

# Accepted besides */*+json: what `curl -d` sends by default, and what clients send that do not know the type of the body.
JSON_TYPES = ("application/json", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
_JSON_SUFFIX = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.-]+\+json")


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a body, in lower case and without parameters; "" without a Content-Type."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_coding(headers: Mapping[str, str]) -> None:
    """Refuse a body with a Content-Encoding; raises UnsupportedMediaType."""
    if "content-encoding" in headers and headers["content-encoding"].strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            "a Content-Encoding is not supported; send the body without one", headers={"Accept-Encoding": "identity"}
        )


def check_json(headers: Mapping[str, str]) -> None:
    """Refuse a body whose Content-Type is not JSON; raises UnsupportedMediaType."""
    check_coding(headers)
    if "content-type" not in headers or headers["content-type"] in JSON_TYPES:
        return
    sent = media_type(headers)
    if sent and sent not in JSON_TYPES and not _JSON_SUFFIX.fullmatch(sent):
        raise UnsupportedMediaType(
            "the Content-Type is not JSON; send application/json, or no Content-Type",
            headers={"Accept": "application/json", "Accept-Patch": ACCEPT_PATCH, "Accept-Query": ACCEPT_QUERY},
        )
