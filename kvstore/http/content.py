"""What a body may be: its media type, its coding. Source: RFC 9110 section 8."""

import re
from collections.abc import Mapping

from kvstore.core.errors import (
    UnsupportedMediaType,
)

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
ACCEPT_PATCH = f"{MERGE_PATCH}, {JSON_PATCH}, application/json"

# Besides */*+json: what curl -d sends by itself, and what clients send that know nothing of the body.
JSON_TYPES = ("application/json", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
_JSON_SUFFIX = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.-]+\+json")


def media_type(headers: Mapping[str, str]) -> str:
    """The media type of a body, in lower case and without parameters; "" where none is given."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_coding(headers: Mapping[str, str]) -> None:
    """Refuse a body with a Content-Encoding; raises UnsupportedMediaType."""
    if "content-encoding" in headers and headers["content-encoding"].strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            "a body is read as it is, without a Content-Encoding", headers={"Accept-Encoding": "identity"}
        )


def check_json(headers: Mapping[str, str]) -> None:
    """Refuse a body whose Content-Type is not JSON; raises UnsupportedMediaType."""
    check_coding(headers)
    if "content-type" not in headers or headers["content-type"] in JSON_TYPES:
        return
    sent = media_type(headers)
    if sent and sent not in JSON_TYPES and not _JSON_SUFFIX.fullmatch(sent):
        raise UnsupportedMediaType(
            "the body must be JSON: send Content-Type: application/json, or none",
            headers={"Accept": "application/json", "Accept-Patch": ACCEPT_PATCH},
        )
