"""Transforms: what a PATCH makes of a document that was read.

`documents.Edit` calls a transform again for each attempt to write the document back.
"""

from kvstore.commands.base import Found
from kvstore.commands.documents import Transform
from kvstore.core import codec, json_text, patch
from kvstore.core.codec import SERVER_VALUE, Encoded
from kvstore.core.errors import InvalidDocument, NotFound, PathNotThere


def merge_patch_transform(body: bytes, *, asked_ms: int | None, default_ms: int) -> Transform:
    """Return the transform of a merge patch. `body` is JSON text that codec.encode accepts. Source: RFC 7396."""
    tree = patch.load(body)
    if isinstance(tree, dict):
        tree.pop("ttl", None)

    def transform(current: Found | None) -> tuple[Encoded, int | None]:
        target = patch.load(current.text) if current else None
        if isinstance(target, dict) and isinstance(tree, dict):
            for name, value in tree.items():
                if isinstance(value, dict) and SERVER_VALUE in value:
                    target[name] = None  # or merge() would merge into the stored object; Redis reads the stored integer
        encoded = codec.encode(patch.dump(patch.merge(target, tree)))
        return encoded, asked_ms or (None if current else default_ms)

    return transform


def json_patch_transform(body: bytes, *, asked_ms: int | None) -> Transform:
    """Return the transform of a JSON Patch; raises InvalidPatch, InvalidDocument or PathNotThere. Source: RFC 6902."""
    json_text.check(body)
    operations = patch.check_json_patch(patch.load(body))
    if patch.points_at(operations, "ttl"):
        raise PathNotThere("ttl is no member of the stored document; ask for another TTL with ?ttl=")

    def transform(current: Found | None) -> tuple[Encoded, int | None]:
        if current is None:
            raise NotFound("thing doesn't exist: a JSON Patch needs a document; a merge patch creates one")
        encoded = codec.encode(_applied(patch.load(current.text), operations))
        if encoded.ttl_s is not None:
            raise PathNotThere("the patch would make a member ttl, a name that is reserved; ask for another TTL with ?ttl=")
        return encoded, asked_ms

    return transform


def _applied(tree: patch.Tree, operations: list[dict[str, patch.Tree]]) -> bytes:
    try:
        return patch.dump(patch.apply(tree, operations))
    except RecursionError:
        raise InvalidDocument(f"a document is at most {json_text.MAX_DEPTH} levels deep") from None
