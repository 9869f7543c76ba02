"""The description of the HTTP interface, as OpenAPI 3.1, made of the tables that the code uses.

OpenAPI has no word for a path of several segments. `{document}` and `{container}` stand for one or more, joined by slashes.
Source: https://spec.openapis.org/oas/v3.1.1.html
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from kvstore.core import json_text, paths
from kvstore.core.errors import (
    PROBLEMS,
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
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
    WrongType,
)
from kvstore.core.settings import Settings
from kvstore.http.content import JSON_PATCH, JSON_TYPES, MERGE_PATCH
from kvstore.http.credentials import COOKIE, NO_STORE
from kvstore.http.gate import SESSION_PATH, VISITORS_PATH
from kvstore.http.messages import EVENT_STREAM, Response
from kvstore.http.parameters import FIELDS, parameters
from kvstore.http.protocol import BATCH_PATH, HEALTH_PATH, LIMITS_PATH, METRICS_PATH, OPENAPI_PATH, READY_PATH

JSON, PROBLEM, TEXT = "application/json", "application/problem+json", "text/plain"

Schema = dict[str, Any]


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
WRITE = (*READ, InvalidTTL, Leased, UnsupportedMediaType, KeyReused, NotAnInteger)
PATCH = (*WRITE, InvalidPatch, PatchFailed, PathNotThere)
BATCH = (*PATCH, BatchRefused, NotInBatch)

_OF_DOCUMENT = ("ETag", "Last-Modified", "Sunset")
_REPLAY = ("Idempotency-Replayed", "Preference-Applied")
_JSON_BODY = dict.fromkeys((*JSON_TYPES,), "Document")
_UNCHANGED = Answer("it has not changed", {}, ("ETag",))
_NOTHING = Answer("done; there is no body", {}, (*_OF_DOCUMENT, *_REPLAY))
_DOCUMENT = Answer("the document", {JSON: "Document"}, _OF_DOCUMENT)
_STREAM = {EVENT_STREAM: "Stream"}
_CONDITIONS = ("If-Match", "If-None-Match")
_CHANGES = ("Idempotency-Key", "Prefer")
_FOLLOWS = ("last_event_id", "hold", "as", "access_token")

_GET = Operation(
    "Read a document, wait until it changes, or follow it",
    {200: _DOCUMENT._replace(content={JSON: "Document"} | _STREAM), 304: _UNCHANGED},
    READ,
    _FOLLOWS,
    (*_CONDITIONS, "Prefer", "Accept", "Last-Event-ID"),
)
_HEAD = _GET._replace(summary="Read the header fields of a GET, or wait", parameters=())
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
    ("ttl", "delay", "lease", "limit", "wait", "max_attempts"),
    _CHANGES,
    _JSON_BODY,
)
_LIST = Operation(
    "List a container, wait until something below it changes, or follow it",
    {
        200: Answer("a page", {JSON: "Listing", "application/x-ndjson": "Item"} | _STREAM, ("ETag", "Link")),
        304: _UNCHANGED,
    },
    READ,
    ("limit", "after", "order", "keys", "recursive", *_FOLLOWS),
    _GET.fields,
)
_OPTIONS = Operation("Say which methods there are", {204: Answer("Allow has them", {}, ("Allow", "Accept-Patch"))}, ANY)
_OWN = (*ANY, NotFound)


def _own(summary: str, schema: str, media_type: str = JSON) -> dict[str, Operation]:
    """Return the operations of a path of the service's own that can be read."""
    got = {200: Answer("as the summary says", {media_type: schema})}
    return {"GET": Operation(summary, got, _OWN), "HEAD": Operation(summary, got, _OWN), "OPTIONS": _OPTIONS}


OPERATIONS: dict[str, dict[str, Operation]] = {
    "/{document}": {
        **{"GET": _GET, "HEAD": _HEAD, "PUT": _PUT, "PATCH": _PATCH, "POST": _POST},
        **{"DELETE": _DELETE, "OPTIONS": _OPTIONS},
    },
    "/{container}/": {
        **{"GET": _LIST, "HEAD": _LIST._replace(summary=_HEAD.summary), "POST": _POST, "OPTIONS": _OPTIONS},
        "DELETE": _DELETE._replace(summary="Delete all documents below a container, with `recursive`"),
    },
    "/": {
        "GET": _GET._replace(
            summary="Read the root document; or list the root container, with `list`",
            answers={200: _DOCUMENT._replace(content={JSON: "Document", "application/x-ndjson": "Item"}), 304: _UNCHANGED},
            parameters=("list", "limit", "after", "order", "keys", *_FOLLOWS),
        ),
        **{"HEAD": _HEAD, "PUT": _PUT, "PATCH": _PATCH, "POST": _POST, "DELETE": _DELETE, "OPTIONS": _OPTIONS},
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
    LIMITS_PATH: _own("All limits", "Limits"),
    METRICS_PATH: _own("Metrics of all workers, for Prometheus", "Text", TEXT),
    OPENAPI_PATH: _own("This description", "Description"),
}


def describe(settings: Settings) -> dict[str, Any]:
    """Return the description of a service with these settings."""
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "kvstore",
            "version": "1",
            "summary": "Any JSON at any path",
            "description": "`{document}` and `{container}` stand for one or more segments, joined by slashes.",
        },
        "servers": [{"url": ".."}],
        "security": [{}, {"bearer": []}, {"session": []}],
        "paths": {path: _path_item(path, operations) for path, operations in OPERATIONS.items()},
        "components": {
            "schemas": _schemas(settings),
            "parameters": {**_parameters(settings), **_fields()},
            "headers": {name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in _HEADERS.items()},
            "responses": {f"Problem{status}": _problem(status) for status in sorted(_by_status(PROBLEMS.values()))},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }


def _path_item(path: str, operations: Mapping[str, Operation]) -> dict[str, Any]:
    item: dict[str, Any] = {method.lower(): _operation(operation) for method, operation in operations.items()}
    if "{" in path:
        name = path.strip("/{}")
        schema = {"type": "string", "minLength": 1, "maxLength": paths.MAX_BYTES}
        item["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema}]
    return item


def _operation(operation: Operation) -> dict[str, Any]:
    summary, answers, problems, named, fields, body = operation
    described: dict[str, Any] = {"summary": summary}
    if named or fields:
        described["parameters"] = [_ref("parameters", name) for name in (*named, *fields)]
    if body:
        described["requestBody"] = {
            "content": {media_type: {"schema": _ref("schemas", name)} for media_type, name in body.items()}
        }
    responses = {str(status): _answer(answer) for status, answer in answers.items()}
    responses |= {str(status): _ref("responses", f"Problem{status}") for status in sorted(_by_status(problems))}
    return described | {"responses": responses}


def _answer(answer: Answer) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.meaning}
    if answer.fields:
        described["headers"] = {name: _ref("headers", name) for name in answer.fields}
    if answer.content:
        described["content"] = {kind: {"schema": _ref("schemas", name)} for kind, name in answer.content.items()}
    return described


def _by_status(problems: Iterable[type[Problem]]) -> dict[int, list[type[Problem]]]:
    found: dict[int, list[type[Problem]]] = {}
    for problem in problems:
        found.setdefault(problem.status, []).append(problem)
    return found


def _problem(status: int) -> dict[str, Any]:
    kinds = _by_status(PROBLEMS.values())[status]
    one_of = {"properties": {"type": {"enum": [kind.uri() for kind in kinds]}, "status": {"const": status}}}
    return {
        "description": "; or: ".join(kind.title() for kind in kinds),
        "content": {PROBLEM: {"schema": {"allOf": [_ref("schemas", "Problem"), one_of]}}},
    }


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _parameters(settings: Settings) -> dict[str, Any]:
    return {
        name: {
            "name": name,
            "in": "query",
            "description": meaning,
            "schema": schema,
            "allowEmptyValue": schema == {"const": ""},
        }
        for name, (schema, meaning) in parameters(settings).items()
    }


def _fields() -> dict[str, Any]:
    return {
        name: {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}
        for name, meaning in FIELDS.items()
    }


_HEADERS = {
    "ETag": "the entity-tag, quotes included",
    "Last-Modified": "when it was written",
    "Sunset": "when it expires",
    "Location": "the path of the new document",
    "Link": "the next page",
    "Allow": "the methods that there are",
    "Accept-Patch": "the media types of patches",
    "Idempotency-Replayed": "`true`: this is the response of the first request with the Idempotency-Key",
    "Preference-Applied": "the preference that was heeded",
}


def _object(required: str, optional: Schema | None = None, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": {**properties, **(optional or {})}}


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": _ref("schemas", name)}


def _schemas(settings: Settings) -> dict[str, Schema]:
    text: Schema = {"type": "string"}
    number: Schema = {"type": "integer"}
    path: Schema = {"type": "string", "pattern": "^/"}
    ttl: Schema = {"type": "integer", "minimum": 1, "description": "remaining seconds"}
    states: Schema = {"enum": ["ready", "leased", "delayed"]}
    one = _object("status headers body", status=number, headers={"type": "object"}, body={})
    asked = {"method": text, "path": path, "headers": {"type": "object", "additionalProperties": text}, "body": {}}
    return {
        "Document": {
            "description": f"any JSON of at most {json_text.MAX_BYTES:,} bytes, {json_text.MAX_DEPTH} levels and"
            f" {json_text.MAX_MEMBERS:,} members; an object shows its remaining TTL as `ttl`, at most {settings.max_ttl_s:,} s"
        },
        "JSONPatch": {"type": "array", "items": _object("op path", op=text, path=text)},
        "Appended": _object("path etag ttl", path=path, etag=text, ttl=ttl),
        "Deleted": _object("deleted", deleted=number),
        "Item": _object("name path", {"value": {}}, name=text, path=path, etag=text, ttl=ttl, state=states, attempts=number),
        "Listing": _object("items", {"next": text}, items=_list_of("Item")),
        "Job": _object("path value attempts lease", path=path, value={}, attempts=number, lease=text, ttl=ttl),
        "Jobs": _object("items", items=_list_of("Job")),
        "Stream": {
            "type": "string",
            "description": "text/event-stream: `snapshot`, then `put`, `patch`, `delete`, `expire`, `reset`",
        },
        "Batch": _object(
            "requests", atomic={"type": "boolean"}, requests={"type": "array", "items": _object("method path", asked)}
        ),
        "Responses": _object("responses", responses={"type": "array", "items": one}),
        "Token": _object("token sub expires", token=text, sub=text, expires=number),
        "Well": _object("status", status={"const": "ok"}),
        "Limits": {"type": "object", "additionalProperties": _object("value unit meaning", value={}, unit=text, meaning=text)},
        "Text": text,
        "Description": {"type": "object"},
        "Problem": _object("type title status detail", type=text, title=text, status=number, detail=text),
    }


@lru_cache(maxsize=4)
def _text(settings: Settings) -> bytes:
    return json.dumps(describe(settings), separators=(",", ":")).encode() + b"\n"


def render_openapi(settings: Settings) -> Response:
    """Return the response with the description."""
    return Response(200, (("Content-Type", JSON), *NO_STORE), _text(settings))
