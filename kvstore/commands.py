"""What can be asked of a store, and what it can answer.

A command knows its script, its keys and arguments, and how to read the reply; a store only carries it. Nothing here does
I/O. The scripts are `lua/*.lua`.
"""

import hashlib
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from kvstore.codec import MAX_BYTES, MAX_MEMBERS, Encoded, decode
from kvstore.conditions import NONE, Conditions, tag_time_ms
from kvstore.errors import (
    PROBLEMS,
    ContentTooLarge,
    InternalError,
    InvalidDocument,
    KeyReused,
    NotAnInteger,
    Problem,
    problem_of_reply,
    unavailable,
)
from kvstore.paths import Path, parse_path

MAX_ATTEMPTS = 1000  # to write back a document that others write at the same time

MAX_PAGE_BYTES = 4 * 1024 * 1024  # of values in a page of a listing, or one document
MAX_DELETED_AT_ONCE = 1000  # some 10 ms of Redis's time


class Script(NamedTuple):
    """A Lua script and the SHA-1 that Redis knows it by (EVALSHA)."""

    name: str
    text: str
    sha: str


def _script(name: str, *parts: str, main: str) -> Script:
    """A script of some of the files, without the functions that it does not call: Lua makes each anew for every call."""
    texts = [(files("kvstore") / "lua" / f"{part}.lua").read_text("utf-8") for part in parts]
    functions = re.split(r"(?m)^(?=local function )", "\n".join(texts))
    text = main
    for function in reversed(functions):
        defined = re.match(r"local function (\w+)", function)
        if not defined or re.search(rf"\b{defined[1]}\b", text):
            text = function + text
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _act(name: str) -> Script:
    """A script that carries out one request on a document."""
    return _script(name, "prelude", name, main=f"return {name}(KEYS[5], 1, #ARGV)")


def _once(name: str) -> Script:
    """The same for a request with an Idempotency-Key."""
    return _script(f"{name} once", "prelude", name, "once", main=f"return once({name}, KEYS[5])")


READ = _script("read", "read", main="")
PUT = _act("put")
PATCH = _act("patch")
TOUCH = _act("touch")
DELETE = _act("delete")
POST = _act("post")
BEGIN = _act("begin")
CONCLUDE = _act("conclude")
DELETE_BELOW = _act("delete_below")
ONCE = {script.name: _once(script.name) for script in (PUT, PATCH, TOUCH, DELETE, POST, BEGIN, CONCLUDE, DELETE_BELOW)}
BATCH_PARTS = ("get", "put", "patch", "touch", "delete", "post", "begin", "batch")
BATCH = _script("batch", "prelude", *BATCH_PARTS, main="return batch(nil, 1, #ARGV)")
ONCE["batch"] = _script("batch once", "prelude", *BATCH_PARTS, "once", main="return once(batch)")
LIST = _act("list")
REGISTER = _act("register")
CENSUS = _act("census")
PLACE = _act("place")
CHANGES = _act("changes")
SCRIPTS = (
    READ,
    PUT,
    PATCH,
    TOUCH,
    DELETE,
    POST,
    BEGIN,
    CONCLUDE,
    DELETE_BELOW,
    LIST,
    REGISTER,
    CENSUS,
    PLACE,
    CHANGES,
    BATCH,
    *ONCE.values(),
)


class Found(NamedTuple):
    """A document that is stored. Times in ms, None where it does not expire."""

    text: bytes
    is_object: bool
    tag: str | None
    expires_at_ms: int | None
    ttl_ms: int | None


# What is stored (None: nothing) → what shall be, and its TTL in ms, None for the one it has; or raises a Problem.
Change = Callable[[Found | None], tuple[Encoded, int | None]]


class Missing(NamedTuple):
    """Nothing is stored there."""


class Stored(NamedTuple):
    """A document was written."""

    document: Found
    created: bool


class Appended(NamedTuple):
    """A document was appended to a container, at `path`."""

    path: str
    document: Found


class Deleted(NamedTuple):
    """A document was deleted."""


class Failed(NamedTuple):
    """A precondition failed; `current` is what is stored, None for nothing. Nothing was changed."""

    current: Found | None


class Again(NamedTuple):
    """The answer is not final: the store executes this command next."""

    command: "Command"


class Replayed(NamedTuple):
    """The answer that an earlier request with the same Idempotency-Key had."""

    outcome: Any


Written = TypeVar("Written", Stored, Appended)

Reply: TypeAlias = Any  # what Redis answers: bytes, int, None, or a list of these


class Command(Protocol):
    """One thing asked of a store: EVALSHA `script` with `keys` and `arguments`, then `outcome(reply)`."""

    @property
    def script(self) -> Script: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def arguments(self) -> tuple[bytes | str | int, ...]: ...
    def outcome(self, reply: Reply) -> Any: ...


class Get(NamedTuple):
    """Read a document: Found or Missing. The conditions are judged where it is rendered; a batch must know them before."""

    path: Path
    conditions: Conditions = NONE
    script: Script = READ

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.document,)

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return ()

    def outcome(self, reply: Reply) -> Found | Missing:
        return _found(reply) if reply else Missing()


class Put(NamedTuple):
    """Replace a document, or create it: Stored or Failed.

    `ttl_ms` None keeps the expiry of a document that `edit` has read as `base`; a document that is no longer that is edited
    again.
    """

    path: Path
    encoded: Encoded
    ttl_ms: int | None
    conditions: Conditions
    log_length: int
    edit: "Edit | None" = None
    base: str = ""
    script: Script = PUT

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        encoded, ttl_ms = self.encoded, self.ttl_ms
        options = ""
        if self.conditions is not NONE or self.edit or encoded.has_server_values:
            op, server_values = "patch" if self.edit else "put", "sv" if encoded.has_server_values else ""
            options = "\n".join((*map(str, _judged(self.conditions)), op, self.base, server_values))
        return (self.path.rest, "" if ttl_ms is None else ttl_ms, self.log_length, encoded.shape, options, *encoded.fields)

    def outcome(self, reply: Reply) -> Stored | Failed | Again:
        if reply[0] in (b"created", b"replaced"):
            return registered(self.path, reply[5], _stored(reply, self.encoded))
        if self.edit and reply[0] == b"lost":
            return self.edit.next(reply)
        return _refused(reply)


class Patch(NamedTuple):
    """Change members of a document, none of them to an object, or create it: Stored or Failed.

    A member that is null in `encoded` is taken away. `ttl_ms` None keeps the expiry.
    """

    path: Path
    encoded: Encoded
    ttl_ms: int | None
    default_ttl_ms: int
    conditions: Conditions
    log_length: int
    script: Script = PATCH

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (
            self.path.rest,
            "" if self.ttl_ms is None else self.ttl_ms,
            *_judged(self.conditions),
            self.log_length,
            self.default_ttl_ms,
            MAX_MEMBERS,
            MAX_BYTES,
            "sv" if self.encoded.has_server_values else "",
            self.encoded.shape,
            *(b"" if part == b"null" and index % 2 else part for index, part in enumerate(self.encoded.fields)),
        )

    def outcome(self, reply: Reply) -> Stored | Failed | Again:
        if reply[0] in (b"created", b"replaced"):
            return registered(self.path, reply[2], Stored(_found(reply[1]), created=reply[0] == b"created"))
        return _refused(reply)


class Touch(NamedTuple):
    """Change when a document expires: Stored, Missing or Failed."""

    path: Path
    ttl_ms: int
    conditions: Conditions
    script: Script = TOUCH

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.path.rest, self.ttl_ms, *_judged(self.conditions))

    def outcome(self, reply: Reply) -> Stored | Missing | Failed | Again:
        if reply[0] == b"touched":
            return registered(self.path, reply[2], Stored(_found(reply[1]), created=False))
        return Missing() if reply[0] == b"missing" else _refused(reply)


class Post(NamedTuple):
    """Append a document to a container: Appended."""

    container: Path
    encoded: Encoded
    ttl_ms: int
    log_length: int
    script: Script = POST

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        container, encoded = self.container, self.encoded
        return (
            *below(container),
            self.ttl_ms,
            self.log_length,
            encoded.shape,
            "sv" if encoded.has_server_values else "",
            *encoded.fields,
        )

    def outcome(self, reply: Reply) -> Appended | Again:
        if reply[0] != b"created":
            raise _problem(reply)
        tag, rest, fields = reply[1].decode(), reply[2], reply[3]
        found = Found(*decode(fields), tag_time_ms(tag) + self.ttl_ms, self.ttl_ms)
        appended = Appended(self.container.text + rest.decode().rpartition("/")[2], found)
        return registered(self.container, reply[4], appended)


class Edit(NamedTuple):
    """Read a document, change it with `change`, and write it back where nobody has written meanwhile, else again."""

    path: Path
    change: Change
    conditions: Conditions
    log_length: int
    once: bool = False
    attempts: int = 0
    script: Script = BEGIN

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.path.rest, *_judged(self.conditions))

    def outcome(self, reply: Reply) -> Again | Stored | Failed:
        if reply[0] == b"read":
            return self.next(reply)
        if reply[0] in (b"created", b"replaced"):  # only where it is replayed
            return _stored(reply, None)
        return _refused(reply)

    def next(self, reply: Reply) -> Again:
        """The next attempt, from a reply that says what is there."""
        if self.attempts >= MAX_ATTEMPTS:
            raise unavailable("too many others write this document at once; send the request again. Nothing was changed")
        current = _found(reply[1]) if reply[1] else None
        try:
            encoded, ttl_ms = self.change(current)
        except Problem as problem:
            if not self.once:
                raise
            return Again(Conclude(self.path, (type(problem).__name__, problem.detail), problem))
        base = "!" if current is None else current.tag or "-"
        edit = self._replace(attempts=self.attempts + 1)
        return Again(Put(self.path, encoded, ttl_ms, self.conditions, self.log_length, edit, base))


class Item(NamedTuple):
    """What a listing says of a document, or with `document` None of a container; `text` is empty where no values were asked."""

    name: str
    document: Found | None


class Listing(NamedTuple):
    """A page of what lies below a container. `tag` None: the root has none; `more` is the command for the next page."""

    items: list[Item]
    tag: str | None
    more: "List | None"


class Unchanged(NamedTuple):
    """A container's entity-tag is one that If-None-Match names."""

    tag: str


class DeletedBelow(NamedTuple):
    """Documents below a container were deleted."""

    documents: int


class List(NamedTuple):
    """List what lies below a container, `limit` items at most: Listing or Unchanged."""

    container: Path
    after: str
    limit: int
    descending: bool
    with_values: bool
    recursive: bool
    none_match: str
    script: Script = LIST

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (
            *below(self.container),
            self.after,
            self.limit,
            "desc" if self.descending else "asc",
            "values" if self.with_values else "keys",
            "recursive" if self.recursive else "direct",
            MAX_PAGE_BYTES,
            self.none_match,
        )

    def outcome(self, reply: Reply) -> Listing | Unchanged | Again:
        tag = reply[1].decode()
        if reply[0] == b"same":
            return Unchanged(tag)
        items = [Item(name.decode(), _found(document) if document else None) for name, *document in reply[3]]
        if not self.with_values:
            items = [Item(name, document and document._replace(text=b"")) for name, document in items]
        more = self._replace(after=items[-1].name, none_match="") if reply[2] else None
        if self.container.text != "/":
            return Listing(items, tag, more)
        listing = Listing(items, None, more)
        return Census(listing, 0).next()


class Census(NamedTuple):
    """Take the namespaces in which nothing lies out of a listing of the root, from the item `at` on: Listing."""

    listing: Listing
    at: int
    script: Script = CENSUS

    @property
    def container(self) -> Path:
        return parse_path(b"/" + self.listing.items[self.at].name.encode())

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return below(self.container)[:1]

    def outcome(self, reply: Reply) -> Listing | Again:
        if reply[0] == b"some":
            return self._replace(at=self.at + 1).next()
        del self.listing.items[self.at]
        return self.next()

    def next(self) -> Listing | Again:
        """The listing where no namespace is left to look into, else the look into the next."""
        items = self.listing.items
        for at in range(self.at, len(items)):
            if items[at].document is None:
                return Again(self._replace(at=at))
        return self.listing


class DeleteBelow(NamedTuple):
    """Delete all documents below a container, some at a time: DeletedBelow."""

    container: Path
    log_length: int
    once: bool
    deleted: int = 0
    script: Script = DELETE_BELOW

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (*below(self.container), MAX_DELETED_AT_ONCE, self.log_length)

    def outcome(self, reply: Reply) -> DeletedBelow | Again:
        if reply[0] == b"deleted below":  # only where it is replayed
            return DeletedBelow(int(reply[1]))
        deleted = reply[1] if self.once else self.deleted + reply[1]
        if reply[2]:
            return Again(self._replace(deleted=deleted))
        outcome = DeletedBelow(deleted)
        return Again(Conclude(self.container, ("deleted below", str(deleted)), outcome)) if self.once else outcome


class At(NamedTuple):
    """Where the change log of a namespace ends, and what was stored at a path then (None: nothing)."""

    place: str
    document: Found | None


class Place(NamedTuple):
    """Where the change log of a path's namespace ends now, and the document there: At."""

    path: Path
    script: Script = PLACE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return ()

    def outcome(self, reply: Reply) -> At:
        return At(reply[0].decode(), _found(reply[1]) if len(reply) > 1 and reply[1] else None)


class Changes(NamedTuple):
    """What has changed in a path's namespace since a place in its log: a list of entries, None where the log lost some."""

    path: Path
    place: str
    most: int
    script: Script = CHANGES

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.place, self.most, below(self.path)[0])

    def outcome(self, reply: Reply) -> list[Any] | None:
        return reply[1] if reply[0] == b"held" else None


class Follow(NamedTuple):
    """Follow a document or a container, from a place in the log (None: from a snapshot). No store executes it: live.py does."""

    path: Path
    place: str | None
    recursive: bool  # the snapshot of a container: all documents below it, not only what lies directly below


class Register(NamedTuple):
    """Note in the root's index that a namespace is there; the outcome is that of the command before it."""

    namespace: str
    expires_at_ms: int
    then: Any
    script: Script = REGISTER

    @property
    def keys(self) -> tuple[str, ...]:
        return parse_path(b"/").keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.namespace + "/", self.expires_at_ms)

    def outcome(self, _: Reply) -> Any:
        return self.then


class Conclude(NamedTuple):
    """Keep what was found outside of Redis under the request's Idempotency-Key: `words` that its command reads as a reply.

    The outcome is `then`, or where that is a problem it is raised.
    """

    path: Path
    words: tuple[str, ...]
    then: Any
    script: Script = CONCLUDE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return self.words

    def outcome(self, reply: Reply) -> Any:
        if isinstance(self.then, Problem):
            raise self.then
        return self.then


class Once(NamedTuple):
    """A command with an Idempotency-Key: carried out once, and answered as then ever after: Replayed.

    `key` is where the answer is kept, `request` tells this request from another with the same key.
    """

    command: Command
    key: str
    request: str

    @property
    def script(self) -> Script:
        return ONCE[self.command.script.name]

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.command.keys, self.key)

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (*self.command.arguments, self.request)

    def outcome(self, reply: Reply) -> Any:
        if reply[0] == b"reused":
            raise KeyReused("this Idempotency-Key came with another request before; use a new one for each request")
        if reply[0] == b"replayed":
            try:
                first = _replayable(self.command).outcome(_checked(reply[1]))
                while isinstance(first, Again) and isinstance(first.command, Register):
                    first = first.command.then
                return Replayed(first)
            except Problem as problem:
                problem.headers["Idempotency-Replayed"] = "true"
                raise
        outcome = self.command.outcome(_checked(reply))
        if isinstance(outcome, Again) and outcome.command.script.name in ONCE:
            return Again(self._replace(command=outcome.command))
        return outcome


class Delete(NamedTuple):
    """Delete a document: Deleted, Missing or Failed."""

    path: Path
    conditions: Conditions
    log_length: int
    script: Script = DELETE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.path.rest, *_judged(self.conditions), self.log_length)

    def outcome(self, reply: Reply) -> Deleted | Missing | Failed:
        if reply[0] == b"failed":
            return _refused(reply)
        return Deleted() if reply[0] == b"deleted" else Missing()


def _checked(reply: Reply) -> Reply:
    if reply[0] == b"error":
        raise problem_of_reply(reply[1].decode("utf-8", "replace"))
    return reply


def _replayable(command: Any) -> Any:
    """The command as it reads the answer of another that was sent before it."""
    return getattr(command, "as_replayed", command)


def below(container: Path) -> tuple[str, str]:
    """What stands before a name in the keys of documents, and a container's own name in names and log."""
    return container.keys.document.removesuffix(container.rest), container.rest + "/" if container.rest else ""


def registered(path: Path, expires_at_ms: bytes | None, outcome: Written) -> Written | Again:
    """The outcome of a write, once the root's index knows of the namespace where its own keys' expiry is new."""
    namespace = path.namespace
    if expires_at_ms is None or namespace == "/":
        return outcome
    return Again(Register(namespace, int(expires_at_ms), outcome))


def _judged(conditions: Conditions) -> tuple[str, str, str | int]:
    """The preconditions as the scripts take them."""
    if conditions is NONE:
        return "", "", ""
    since_s = conditions.unmodified_since_s
    return conditions.match, conditions.none_match, "" if since_s is None else since_s


def _found(reply: Reply) -> Found:
    fields, expires_at_ms, ttl_ms = reply
    expires = expires_at_ms >= 0
    return Found(*decode(fields), expires_at_ms if expires else None, ttl_ms if expires else None)


def _stored(reply: Reply, encoded: Encoded | None) -> Stored:
    """What put.lua wrote: `encoded`, or what the reply says."""
    word, tag, expires_at_ms, ttl_ms, fields = reply[:5]
    if fields or encoded is None:
        text, is_object, _ = decode(fields)
    else:
        text, is_object = encoded.text, encoded.is_object
    expires = expires_at_ms >= 0
    found = Found(text, is_object, tag.decode(), expires_at_ms if expires else None, int(ttl_ms) if expires else None)
    return Stored(found, created=word == b"created")


def _refused(reply: Reply) -> Failed:
    """The outcome of a reply that says no: a precondition that failed, or a Problem that is raised."""
    if reply[0] == b"failed":
        return Failed(_found(reply[1]) if len(reply) > 1 and reply[1] else None)
    raise _problem(reply)


def _problem(reply: Reply) -> Problem:
    word = reply[0]
    if word == b"no sum":
        name = reply[1].decode("utf-8", "backslashreplace")[:100]
        return NotAnInteger(f"the member {name!r} is not an integer of 64 bits, or the sum would be none; nothing was changed")
    if word == b"too many":
        return InvalidDocument(f"an object has at most {MAX_MEMBERS:,} members; split it into several documents")
    if word == b"too large":
        return ContentTooLarge(f"the document would have more than {MAX_BYTES:,} bytes")
    if word.decode() in PROBLEMS:
        return PROBLEMS[word.decode()](reply[1].decode())
    return InternalError(f"the script answered {word!r}")
