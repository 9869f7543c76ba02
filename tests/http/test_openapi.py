"""`/_/openapi.json`: it is valid OpenAPI, says what the code says, and responses have the schemas that it names.

Every response of the conformance suite is also held against it, as far as its status, its media type and its problem go
(tests/support/described.py).
"""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

import kvstore
from kvstore.core.errors import PROBLEMS
from kvstore.core.settings import Settings, read_settings
from kvstore.http.cors import preflight
from kvstore.http.credentials import PARAMETER
from kvstore.http.messages import Request
from kvstore.http.openapi import describe
from kvstore.http.operations import OPERATIONS
from kvstore.http.parameters import FIELDS, parameters
from kvstore.http.protocol import ALLOW_CONTAINER, ALLOW_DOCUMENT, ALLOW_ROOT
from kvstore.serving.own_paths import OPEN
from kvstore.serving.pages import PAGES
from tests.support.clients import Checked
from tests.support.described import DESCRIPTION, operation_of, resolved
from tests.support.lanes import on_few

PACKAGE = Path(kvstore.__file__).parent


def test_it_is_valid() -> None:
    """For a validator that is not ours, whatever the settings."""
    validate(DESCRIPTION)
    validate(describe(read_settings({"KVSTORE_MAX_TTL": "60"})))
    assert DESCRIPTION["openapi"] == "3.1.1"
    assert (
        "at most 60 s" in describe(read_settings({"KVSTORE_MAX_TTL": "60"}))["components"]["parameters"]["ttl"]["description"]
    )


def test_it_has_all_methods() -> None:
    """Those that Allow names, and no others."""
    for path, allow in (("/{document}", ALLOW_DOCUMENT), ("/", ALLOW_ROOT), ("/{container}/", ALLOW_CONTAINER)):
        assert OPERATIONS[path].keys() == set(allow.split(", "))
    for own in OPEN.keys() - {page for page in PAGES if page not in ("/_/", "/_/kvstore.js")}:  # what the explorer loads
        assert OPERATIONS[own].keys() == {"GET", "HEAD", "OPTIONS"}


def read_parameters() -> set[str]:
    """The names of the query parameters that the code reads."""
    found = set()
    for file in (*PACKAGE.glob("http/*.py"), *PACKAGE.glob("serving/*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func) == "query.get":
                found |= {str(named.value) for named in node.args[:1] if isinstance(named, ast.Constant)}
            elif getattr(node.func, "id", "").strip("_") in READERS:
                found |= {str(named.value) for named in node.args[1:2] if isinstance(named, ast.Constant)}
    return found


READERS = ("parameter", "raw_parameter", "text_parameter", "number_parameter", "duration_s")


def test_it_has_all_parameters() -> None:
    """Those that the code reads, each of some operation; and the header fields."""
    table = parameters(Settings())
    assert table.keys() == read_parameters() | {PARAMETER, "conditions"}
    used = {name for methods in OPERATIONS.values() for operation in methods.values() for name in operation.parameters}
    assert used == table.keys()
    fields = {name for methods in OPERATIONS.values() for operation in methods.values() for name in operation.fields}
    assert fields == FIELDS.keys()
    of_openapi = {"Authorization", "Content-Type"}  # which says them elsewhere
    assert sent_by_pages() - fields == of_openapi | {"Cache-Control"}  # which browsers send by themselves


def sent_by_pages() -> set[str]:
    """The header fields that a page of another origin may send."""
    asked = Request("OPTIONS", b"/a", {"access-control-request-method": "PUT"}, b"")
    return set(dict(preflight(asked, "PUT"))["Access-Control-Allow-Headers"].split(", "))


def test_what_the_root_takes() -> None:
    """Its container is asked for with `list`, whichever method reads it, and a HEAD takes what a GET of one response takes."""
    assert all("list" in OPERATIONS["/"][method].parameters for method in ("GET", "HEAD", "QUERY"))
    for path in ("/{document}", "/"):
        streams = {"last_event_id", "hold", "as", PARAMETER}
        assert set(OPERATIONS[path]["HEAD"].parameters) == set(OPERATIONS[path]["GET"].parameters) - streams


# What the HTTP server answers to what is no request, or to methods that no path has.
OF_NO_OPERATION = {"MethodNotAllowed", "NotImplementedHere", "VersionNotSupported"}


def test_it_has_all_problems() -> None:
    """Each in a response of its status, and of some operation."""
    enumerated = set()
    for status, response in ((name[7:], each) for name, each in DESCRIPTION["components"]["responses"].items()):
        [of_status] = [
            each for each in response["content"]["application/problem+json"]["schema"]["allOf"] if "$ref" not in each
        ]
        assert of_status["properties"]["status"] == {"const": int(status)}
        enumerated |= set(of_status["properties"]["type"]["enum"])
    assert enumerated == {problem.uri() for problem in PROBLEMS.values()}
    used = {
        problem.__name__ for methods in OPERATIONS.values() for operation in methods.values() for problem in operation.problems
    }
    assert used == PROBLEMS.keys() - OF_NO_OPERATION


# Method, target, header fields, body: a request for each kind of body that there is.
BODIES: list[tuple[str, str, list[tuple[str, str]], bytes]] = [
    ("PUT", "/ns/a", [], b'{"a":1}'),
    ("GET", "/ns/a", [], b""),
    ("GET", "/ns/none", [], b""),
    ("PUT", "/ns/a", [("If-None-Match", "*")], b"1"),
    ("PATCH", "/ns/a", [], b'{"b":2}'),
    ("POST", "/ns/list/", [], b"1"),
    ("GET", "/ns/", [], b""),
    ("GET", "/ns/?limit=1&keys", [], b""),
    ("GET", "/?list", [], b""),
    ("GET", "/ns/a?changes", [], b""),
    ("GET", "/ns/?changes", [], b""),
    ("GET", "/ns/?a:eq=1&fields=a", [], b""),
    ("GET", "/ns/?count", [], b""),
    ("QUERY", "/ns/", [], b'{"sort":["a"]}'),
    ("POST", "/ns/list/?lease=30", [], b""),
    ("GET", "/ns/list/", [], b""),
    ("DELETE", "/ns/?recursive", [], b""),
    ("POST", "/_/batch", [], b'{"requests":[{"method":"PUT","path":"/ns/a","body":1},{"method":"GET","path":"/ns/a"}]}'),
    ("POST", "/_/batch", [], b'{"requests":[{"method":"DELETE","path":"/ns/none"}]}'),
    ("POST", "/_/visitors", [], b""),
    ("GET", "/_/health", [], b""),
    ("GET", "/_/ready", [], b""),
    ("GET", "/_/limits", [], b""),
    ("GET", "/_/openapi.json", [], b""),
]


@on_few
def test_bodies_have_their_schemas(client: Checked) -> None:
    """The requests are sent in their order."""
    kinds = set()
    for method, target, headers, body in BODIES:
        answer = client.request(method, target, headers, body)
        response = resolved(operation_of(method, target)["responses"][str(answer.status)])
        schema = response["content"][answer.headers["Content-Type"]]["schema"]
        Draft202012Validator(schema | {"components": DESCRIPTION["components"]}).validate(answer.json)
        kinds.add(json.dumps(schema))
    assert len(kinds) >= 12


@on_few
def test_it_is_served(client: Checked) -> None:
    """As it is made of the settings; `servers` leads from there to the root."""
    found = client.get("/_/openapi.json")
    assert found.json == DESCRIPTION
    assert found.json["servers"] == [{"url": ".."}]


def test_a_schema_can_fail() -> None:
    """What is of another shape is not valid."""
    listing: dict[str, Any] = {"$ref": "#/components/schemas/Listing", "components": DESCRIPTION["components"]}
    for value, is_valid in (({"items": []}, True), ({"items": [1]}, False), ({}, False), ({"items": [{"name": "a"}]}, False)):
        assert Draft202012Validator(listing).is_valid(value) is is_valid


@pytest.mark.parametrize("path", OPERATIONS)
def test_every_operation_says_what_it_does(path: str) -> None:
    """In a few words, and so does each response."""
    for operation in OPERATIONS[path].values():
        assert len(operation.summary.split()) >= 2
        assert all(answer.meaning for answer in operation.answers.values())
