"""Transforms: what a PATCH makes of a document that was read.

`documents.Edit` calls a transform again for each attempt to write the document back.
"""

from kvstore.commands.base import Found, Turns
from kvstore.commands.documents import Transform
from kvstore.core import codec, json_text, patch
from kvstore.core.codec import Encoded
from kvstore.core.errors import InvalidDocument, NotFound, PathNotThere
from kvstore.core.server_values import SERVER_VALUE

COPIED_FACTOR, COPIED_BYTES = 8, 8 * 1024  # of what a JSON Patch copies: a request leaves 16 times its bytes and 16 KiB at most
LARGE_BYTES = 64 * 1024  # of a document, or a patch: each step of a larger one has a turn of the event loop of its own


def merge_patch_transform(body: bytes, *, asked_ms: int | None, default_ms: int) -> Transform:
    """Return the transform of a merge patch. `body` is JSON text that codec.encode accepts. Source: RFC 7396."""

    def transform(current: Found | None) -> Turns[tuple[Encoded, int | None]]:
        is_large = len(body) + (len(current.text) if current else 0) > LARGE_BYTES
        tree = patch.load(body)
        if isinstance(tree, dict):
            tree.pop("ttl", None)
        if is_large:
            yield
        target = patch.load(current.text) if current else None
        if isinstance(target, dict) and isinstance(tree, dict):
            for name, value in tree.items():
                if isinstance(value, dict) and SERVER_VALUE in value:
                    target[name] = None  # or merge() would merge into the stored object; Redis reads the stored integer
        if is_large:
            yield
        text = patch.dump(patch.merge(target, tree))
        del target, tree
        if is_large:
            yield
        return codec.encode(text), asked_ms or (None if current else default_ms)

    return transform


def json_patch_transform(body: bytes, *, asked_ms: int | None) -> Transform:
    """Return the transform of a JSON Patch; raises InvalidPatch, InvalidDocument or PathNotThere. Source: RFC 6902."""
    if patch.points_at(patch.check_body(body), "ttl"):
        raise PathNotThere("ttl is no member of the stored document; ask for another TTL with ?ttl=")

    def transform(current: Found | None) -> Turns[tuple[Encoded, int | None]]:
        if current is None:
            raise NotFound("thing doesn't exist: a JSON Patch needs a document; a merge patch creates one")
        is_large = len(body) + len(current.text) > LARGE_BYTES
        operations = patch.check_json_patch(patch.load(body))  # each attempt uses them up
        if is_large:
            yield
        tree = patch.load(current.text)
        if is_large:
            yield
        try:
            tree = yield from patch.apply(tree, operations, COPIED_FACTOR * len(body) + COPIED_BYTES)
            if is_large:
                yield
            text = patch.dump(tree)
        except RecursionError:
            raise InvalidDocument(f"a document is at most {json_text.MAX_DEPTH} levels deep") from None
        del tree, operations
        if is_large:
            yield
        encoded = codec.encode(text)
        if encoded.ttl_s is not None:
            raise PathNotThere("the patch would make a member ttl, a name that is reserved; ask for another TTL with ?ttl=")
        return encoded, asked_ms

    return transform
