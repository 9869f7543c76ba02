"""What can be asked of the service over HTTP, as tables: for each path and method its parameters, responses and problems.

Nothing here is executed: `openapi.py` describes it, and the tests hold every response against it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from kvstore.core.errors import (
    AlreadyStored,
    BatchRefused,
    ContentTooLarge,
    Forbidden,
    HeadersTooLarge,
    InternalError,
    InvalidDocument,
    InvalidParameter,
    InvalidPatch,
    InvalidPath,
    InvalidPrecondition,
    InvalidRequest,
    InvalidTTL,
    KeyReused,
    Leased,
    MisdirectedRequest,
    NotAnInteger,
    NotFound,
    NotInBatch,
    OriginNotAllowed,
    PatchFailed,
    PathNotThere,
    PathTooLong,
    PreconditionFailed,
    Problem,
    RequestTimeout,
    StoreFull,
    StoreUnavailable,
    TooFewReplicas,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
    WrongType,
)
from kvstore.http.containers import NDJSON
from kvstore.http.content import JSON_PATCH, JSON_TYPES, MERGE_PATCH
from kvstore.http.gate import SESSION_PATH, VISITORS_PATH
from kvstore.http.messages import EVENT_STREAM
from kvstore.http.protocol import (
    BATCH_PATH,
    FOLLOW_PATH,
    HEALTH_PATH,
    LIMITS_PATH,
    METRICS_PATH,
    OPENAPI_PATH,
    READY_PATH,
)

JSON, PROBLEM, TEXT, HTML, MODULE = "application/json", "application/problem+json", "text/plain", "text/html", "text/javascript"


class Answer(NamedTuple):
    """A response that is no problem: its meaning, the schema of its body by media type, its own header fields."""

    meaning: str
    content: Mapping[str, str] = {}
    fields: tuple[str, ...] = ()


class Operation(NamedTuple):
    """A method of a path. `parameters` and `fields` are names in http/parameters.py; `body` is its schema by media type."""

    summary: str
    answers: Mapping[int, Answer]
    problems: tuple[type[Problem], ...]
    parameters: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    body: Mapping[str, str] = {}


ANY = (
    *(InvalidRequest, InvalidPath, InvalidParameter, Unauthorized, Forbidden, RequestTimeout, PathTooLong, ContentTooLarge),
    *(MisdirectedRequest, TooManyRequests, HeadersTooLarge, InternalError, StoreUnavailable),
)
HOLD = AlreadyStored, OriginNotAllowed, InvalidDocument, StoreFull  # of the document that a stream holds
READ = (*ANY, *HOLD, InvalidPrecondition, NotFound, WrongType, PreconditionFailed)
WRITE = (*READ, InvalidTTL, Leased, UnsupportedMediaType, KeyReused, NotAnInteger, TooFewReplicas)
PATCH = (*WRITE, InvalidPatch, PatchFailed, PathNotThere)
BATCH = (*PATCH, BatchRefused, NotInBatch)

_OF_DOCUMENT = ("ETag", "Last-Modified", "Sunset")
_REPLAY = ("Idempotency-Replayed", "Preference-Applied")
_JSON_BODY = dict.fromkeys((*JSON_TYPES,), "Document")
_UNCHANGED = Answer("it has not changed", {}, ("ETag",))
_NOTHING = Answer("done; there is no body", {}, (*_OF_DOCUMENT, *_REPLAY))
_DOCUMENT = Answer("the document", {JSON: "Document"}, _OF_DOCUMENT)
_STREAM = {EVENT_STREAM: "Stream"}
_TAGS = ("If-Match", "If-None-Match")
_CONDITIONS = (*_TAGS, "If-Unmodified-Since")
_FOLLOWING = ("Prefer", "Accept", "Last-Event-ID")
_CHANGES = ("Idempotency-Key", "Prefer")
_FOLLOWS = ("last_event_id", "hold", "as", "access_token")

_GET = Operation(
    "Read a document, wait until it changes, or follow it",
    {200: _DOCUMENT._replace(content={JSON: "Document"} | _STREAM), 304: _UNCHANGED},
    READ,
    ("changes", "limit", "at", *_FOLLOWS),
    (*_CONDITIONS, "If-Modified-Since", *_FOLLOWING),
)
_HEAD = _GET._replace(summary="Read the header fields of a GET, or wait", parameters=("changes", "limit", "at"))
_WRITTEN = {
    200: Answer("it was written; this is what is stored", {JSON: "Document"}, (*_OF_DOCUMENT, *_REPLAY)),
    201: Answer("it was created", {JSON: "Document"}, ("Location", *_OF_DOCUMENT, *_REPLAY)),
    204: _NOTHING,
}
_PUT = Operation("Replace a document, or create it", _WRITTEN, WRITE, ("ttl",), (*_CONDITIONS, *_CHANGES), _JSON_BODY)
_PATCH = Operation(
    "Change a document, or its TTL; extend the lease of a job, or give it back",
    _WRITTEN,
    PATCH,
    ("ttl", "lease", "delay"),
    (*_CONDITIONS, *_CHANGES),
    {MERGE_PATCH: "Document", **_JSON_BODY, JSON_PATCH: "JSONPatch"},
)
_DELETE = Operation(
    "Delete a document; the lease of a job as If-Match says that it is done",
    {200: Answer("so many documents were deleted", {JSON: "Deleted"}, _REPLAY), 204: _NOTHING},
    WRITE,
    ("recursive",),
    (*_CONDITIONS, *_CHANGES),
)
_POST = Operation(
    "Append a document to a container; or take jobs from it, with `lease`",
    {
        200: Answer("jobs", {JSON: "Jobs"}, _REPLAY),
        201: Answer("the document was appended, at Location", {JSON: "Appended"}, ("Location", *_OF_DOCUMENT, *_REPLAY)),
        204: Answer("there is no job", {}, _REPLAY),
    },
    WRITE,
    ("ttl", "delay", "lease", "limit", "wait", "as", "max_attempts"),
    _CHANGES,
    _JSON_BODY,
)
_PAGE = {JSON: "Answer", NDJSON: "Item"}
_LISTED = ("limit", "after", "order", "keys", "conditions", "search", "sort", "fields", "count")
_LIST = Operation(
    "List a container, wait until something below it changes, or follow it",
    {
        200: Answer(
            "a page, a number of documents, or changes",
            _PAGE | {JSON: "AnswerOrChanges"} | _STREAM,
            ("ETag", "Link", "Preference-Applied"),
        ),
        304: _UNCHANGED,
    },
    READ,
    (*_LISTED, "recursive", "changes", *_FOLLOWS),
    (*_TAGS, *_FOLLOWING),
)
_QUERY = Operation(
    "Ask for documents in a container: the question of a GET with conditions, in the body",
    {**_LIST.answers, 200: _LIST.answers[200]._replace(content=_PAGE)},
    (*READ, UnsupportedMediaType),
    (),
    (*_TAGS, "Prefer", "Accept"),
    dict.fromkeys(JSON_TYPES, "Question"),
)
_ACCEPTS = ("Allow", "Accept-Patch", "Accept-Query")
_OPTIONS = Operation("Say which methods there are", {204: Answer("Allow has them", {}, _ACCEPTS)}, ANY)
_OWN = (*ANY, NotFound)


def _own(summary: str, schema: str, media_type: str = JSON) -> dict[str, Operation]:
    """Return the operations of a path of the service's own that can be read."""
    got = {200: Answer("as the summary says", {media_type: schema})}
    return {"GET": Operation(summary, got, _OWN), "HEAD": Operation(summary, got, _OWN), "OPTIONS": _OPTIONS}


def _static(summary: str, schema: str = "Text", media_type: str = JSON) -> dict[str, Operation]:
    """Return the operations of what stays as it is."""
    got = {200: Answer("as the summary says", {media_type: schema}, ("ETag",)), 304: _UNCHANGED}
    read = Operation(summary, got, (*_OWN, InvalidPrecondition), fields=("If-None-Match",))
    return {"GET": read, "HEAD": read, "OPTIONS": _OPTIONS}


OPERATIONS: dict[str, dict[str, Operation]] = {
    "/{document}": {
        **{"GET": _GET, "HEAD": _HEAD, "PUT": _PUT, "PATCH": _PATCH, "POST": _POST},
        **{"DELETE": _DELETE, "OPTIONS": _OPTIONS},
    },
    "/{container}/": {
        **{"GET": _LIST, "HEAD": _LIST._replace(summary=_HEAD.summary), "QUERY": _QUERY, "POST": _POST},
        **{"DELETE": _DELETE._replace(summary="Delete all documents below a container, with `recursive`"), "OPTIONS": _OPTIONS},
    },
    "/": {
        "HEAD": _HEAD._replace(parameters=("list", *_LISTED, "changes", "at")),
        "QUERY": _QUERY._replace(parameters=("list",)),
        "GET": _GET._replace(
            summary="Read the root document; or list the root container, with `list`",
            answers={
                200: _DOCUMENT._replace(content={JSON: "Document", NDJSON: "Item"}),
                303: Answer("the explorer, for a browser, if nothing is stored here", {}, ("Location",)),
                304: _UNCHANGED,
            },
            parameters=("list", *_LISTED, "changes", "at", *_FOLLOWS),
        ),
        **{"PUT": _PUT, "PATCH": _PATCH, "POST": _POST, "DELETE": _DELETE, "OPTIONS": _OPTIONS},
    },
    BATCH_PATH: {
        "POST": Operation(
            "Send several requests at once, all or none of them",
            {200: Answer("their responses", {JSON: "Responses"}, ("Idempotency-Replayed",))},
            BATCH,
            fields=("Idempotency-Key",),
            body=dict.fromkeys(JSON_TYPES, "Batch"),
        ),
        "OPTIONS": _OPTIONS,
    },
    FOLLOW_PATH: {
        "GET": Operation(
            "Follow several paths on one stream",
            {200: Answer("the events of all of them", _STREAM)},
            (*ANY, *HOLD),
            ("path", *_FOLLOWS),
            ("Accept", "Last-Event-ID"),
        ),
        "OPTIONS": _OPTIONS,
    },
    SESSION_PATH: {
        "POST": Operation("Keep the token of Authorization in a cookie", {204: Answer("done")}, (*_OWN, OriginNotAllowed)),
        "DELETE": Operation("Delete that cookie", {204: Answer("done")}, (*_OWN, OriginNotAllowed)),
        "OPTIONS": _OPTIONS,
    },
    VISITORS_PATH: {
        "POST": Operation("Get a token", {201: Answer("a new one", {JSON: "Token"})}, (*_OWN, OriginNotAllowed)),
        "OPTIONS": _OPTIONS,
    },
    HEALTH_PATH: _own("Whether the process is alive", "Well"),
    READY_PATH: _own("Whether Redis answers", "Well"),
    LIMITS_PATH: _static("All limits", "Limits"),
    METRICS_PATH: _own("Metrics of all workers, for Prometheus", "Text", TEXT),
    OPENAPI_PATH: _static("This description", "Description"),
    "/_/": _static("The explorer, a page for people", media_type=HTML),
    "/_/kvstore.js": _static("The client for browsers and Node, an ES module", media_type=MODULE),
}
