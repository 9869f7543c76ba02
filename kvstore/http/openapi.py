"""The description of the HTTP interface, as OpenAPI 3.1, made of the tables that the code uses.

OpenAPI has no word for a path of several segments. `{document}` and `{container}` stand for one or more, joined by slashes.
Source: https://spec.openapis.org/oas/v3.1.1.html
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from kvstore.core import json_text, paths
from kvstore.core.errors import (
    PROBLEMS,
    Problem,
)
from kvstore.core.query import OPERATORS
from kvstore.core.settings import Settings
from kvstore.http import containers, queries
from kvstore.http.credentials import COOKIE
from kvstore.http.operations import JSON, OPERATIONS, PROBLEM, Answer, Operation
from kvstore.http.parameters import FIELDS, parameters
from kvstore.http.static import Static, make_static

Schema = dict[str, Any]


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


def field_of(method: str) -> str:
    """Return the field of a path item that describes a method. OpenAPI has a field for QUERY from 3.2 on only."""
    return "x-query" if method == "QUERY" else method.lower()


def _path_item(path: str, operations: Mapping[str, Operation]) -> dict[str, Any]:
    item: dict[str, Any] = {field_of(method): _operation(operation) for method, operation in operations.items()}
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
    "Accept-Query": "the media types of questions",
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
            f" {json_text.MAX_MEMBERS:,} members; an object shows its remaining TTL as `ttl`, at most {settings.max_ttl_s:,} s;"
            " with `changes` it is what Changes describes"
        },
        "JSONPatch": {"type": "array", "items": _object("op path", op=text, path=text)},
        "Appended": _object("path etag ttl", path=path, etag=text, ttl=ttl),
        "Deleted": _object("deleted", deleted=number),
        "Item": _object("name path", {"value": {}}, name=text, path=path, etag=text, ttl=ttl, state=states, attempts=number),
        "Listing": _object("items", {"next": text, "takers": _list_of("Taker")}, items=_list_of("Item")),
        "Taker": _object("since until as", {"as": {}}, since=number, until=number)
        | {"description": "somebody who waits for a job here; times in ms"},
        "Change": _object(
            "op etag time",
            {"value": {}},
            op={"enum": ["put", "patch", "delete", "expire"]},
            etag=text,
            time=number,
            path=path,
            ttl=ttl | {"description": "seconds, when it was written"},
        ),
        "Changes": _object("items complete", items=_list_of("Change"), complete={"type": "boolean"}),
        "Answer": {"anyOf": [_ref("schemas", "Listing"), _object("count", count=number)]},
        "AnswerOrChanges": {"anyOf": [_ref("schemas", "Answer"), _ref("schemas", "Changes")]},
        "Question": {"type": "object", "properties": _question(), "additionalProperties": False},
        "Job": _object("path value attempts lease", path=path, value={}, attempts=number, lease=text, ttl=ttl),
        "Jobs": _object("items", items=_list_of("Job")),
        "Stream": {
            "type": "string",
            "description": "text/event-stream: `snapshot`, then `put`, `patch`, `delete`, `expire`, `leave`, `reset`",
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


def _question() -> dict[str, Schema]:
    """Return the schemas of the members of a QUERY's body."""
    names = {"type": "array", "items": {"type": "string", "minLength": 1}}
    tests: Schema = {"type": "object", "propertyNames": {"enum": list(OPERATORS)}}
    return {
        "where": {"type": "object", "additionalProperties": tests},
        "sort": names | {"maxItems": queries.MAX_SORT},
        "fields": names | {"maxItems": queries.MAX_FIELDS},
        "limit": {"type": "integer", "minimum": 1, "maximum": containers.MAX_LIMIT},
        "order": {"enum": ["asc", "desc"]},
        **{name: {"type": "boolean"} for name in queries.FLAGS},
        **{name: {"type": "string"} for name in ("search", "after")},
    }


@lru_cache(maxsize=4)
def openapi_text(settings: Settings) -> Static:
    """Return the description as JSON text."""
    return make_static(json.dumps(describe(settings), separators=(",", ":")).encode() + b"\n", JSON)
