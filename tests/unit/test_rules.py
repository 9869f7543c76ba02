"""Access rules as values: rows, what they match, what they permit, and which are refused."""

from time import thread_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.access.principal import Principal
from kvstore.access.rules import parse_rows, parse_toml
from kvstore.access.views import PERMITTED, REFUSED, Rules, View
from kvstore.commands.rights import Right, Scope, Touch
from kvstore.core.errors import Unauthorized
from kvstore.core.paths import parse_path
from kvstore.core.settings import InvalidSetting
from tests.support.naive_rules import has_right


def view_of(rows: list[Any], claims: dict[str, Any] | None) -> View:
    """What rows are for somebody with these claims."""
    return Rules(parse_rows(rows)).view(None if claims is None else Principal(claims))


def touch(path: str, right: str, scope: Scope = Scope.ITSELF) -> Touch:
    """A right on a path."""
    return Touch(parse_path(path.encode()), Right[right.upper()], scope)


def depends_on(expected: Any, *, together: bool = False) -> frozenset[frozenset[str]]:
    """The clauses of True, of False, or of documents: each of them must exist, or one of them where they are `together`."""
    if isinstance(expected, bool):
        return frozenset() if expected else frozenset({frozenset[str]()})
    return frozenset({frozenset(expected)} if together else {frozenset({document}) for document in expected})


ADA = {"sub": "ada"}

# A pattern, a path, whether it matches for ada.
MATCHES = [
    ("/", "/", True),
    ("/", "/a", False),
    ("/**", "/", True),
    ("/**", "/a/b/c", True),
    ("/a", "/a", True),
    ("/a", "/a/b", False),
    ("/a/*", "/a", False),
    ("/a/*", "/a/b", True),
    ("/a/*", "/a/b/c", False),
    ("/a/**", "/a", True),
    ("/a/**", "/a/b/c", True),
    ("/a/**", "/ab", False),
    ("/a/**/z", "/a/z", True),
    ("/a/**/z", "/a/b/c/z", True),
    ("/a/**/z", "/a/b/c", False),
    ("/a/**/*", "/a", False),
    ("/**/b/**", "/a/b", True),
    ("/**/**", "/a/b", True),
    ("/users/{sub}/**", "/users/ada/x", True),
    ("/users/{sub}/**", "/users/bob/x", False),
    ("/users/{email}", "/users/ada", False),
    ("/teams/{teams}", "/teams/red", True),
    ("/teams/{teams}", "/teams/7", True),
    ("/teams/{teams}", "/teams/blue", False),
    ("/x/{deep}", "/x/a%2Fb", True),
    ("/x/{deep}", "/x/a/b", False),
    ("/rooms/$room/**", "/rooms/1/x", True),
    ("/rooms/$room/**", "/rooms", False),
    ("/caf%C3%A9", "/café", True),
    ("/café", "/caf%C3%A9", True),
    ("/a%2Fb", "/a/b", False),
    ("/a%2Fb", "/a%2fb", True),
    ("/%2A", "/*", True),
    ("/%2A", "/a", False),
    ("/%7Bsub%7D", "/{sub}", True),
    ("/%24x", "/$x", True),
    ("/A", "/a", False),
]


@pytest.mark.parametrize(("pattern", "path", "is_matched"), MATCHES)
def test_patterns(*, pattern: str, path: str, is_matched: bool) -> None:
    """Segment by segment, decoded once."""
    view = view_of([[pattern, "anyone", "nobody", "nobody"]], ADA | {"teams": ["red", 7], "deep": "a/b", "email": None})
    assert (view.verdict(touch(path, "read")) == PERMITTED) is is_matched


RIGHTS = [
    ("anyone", None, True),
    ("anyone", ADA, True),
    ("user", None, False),
    ("user", ADA, True),
    ("user", {}, True),
    ("nobody", ADA, False),
    ("role:editor", None, False),
    ("role:editor", ADA, False),
    ("role:editor", {"roles": ["editor"]}, True),
    ("role:editor", {"roles": ["reader", "editor"]}, True),
    ("role:editor", {"roles": "editor"}, False),
    ("role:editor", {"roles": "no editor"}, False),
    ("role:editor", {"roles": {"editor": True}}, False),
    ("role:editor role:reader", {"roles": ["reader"]}, True),
    ("role:editor user", ADA, True),
    ("in:/members/", None, False),
    ("in:/members/", {"roles": ["x"]}, False),
    ("in:/members/", ADA, {"/members/ada"}),
    ("in:/members/", {"sub": "a/b"}, {"/members/a%2Fb"}),
    ("in:/members/", {"sub": ".."}, False),
    ("in:/members/", {"sub": ""}, False),
    ("in:/members/", {"sub": "\ud800"}, False),
    ("in:/members/", {"sub": "x" * 2000}, False),
    ("in:/members/", {"sub": 7}, False),
    ("in:/", ADA, {"/ada"}),
    ("in:/members/ user", ADA, True),
    ("in:/members/$x/", ADA, {"/members/1/ada"}),
    ("in:/of/$x/in/{org}/", ADA | {"org": "o"}, {"/of/1/in/o/ada"}),
    ("in:/of/{org}/", ADA | {"org": ["o", "p"]}, {"/of/o/ada", "/of/p/ada"}),
    ("in:/of/{org}/", ADA, False),
    ("in:/a/ in:/b/", ADA, {"/a/ada", "/b/ada"}),
]


@pytest.mark.parametrize(("cell", "claims", "expected"), RIGHTS)
def test_rights(cell: str, claims: dict[str, Any] | None, expected: Any) -> None:
    """Who has one: everybody, or those for whom one of some documents exists."""
    verdict = view_of([["/r/$x/**", cell, "nobody", "nobody"]], claims).verdict(touch("/r/1/y", "read"))
    assert verdict.clauses == depends_on(expected, together=True)
    assert view_of([["/r/$x/**", cell, "nobody", "nobody"]], claims).verdict(touch("/r/1/y", "write")) == REFUSED


def test_a_claim_in_a_right_is_the_segment_that_has_matched() -> None:
    """Who is in two teams, and a member of one of them, has nothing in the other."""
    view = view_of([["/teams/{teams}/**", "in:/staff/{teams}/", "nobody", "nobody"]], ADA | {"teams": ["red", "blue"]})
    assert view.verdict(touch("/teams/red/x", "read")).clauses == {frozenset({"/staff/red/ada"})}


def test_the_first_row_decides() -> None:
    """A row further down gives nothing that one above does not."""
    view = view_of([["/a/b", "nobody", "nobody", "nobody"], ["/a/**", "anyone", "anyone", "anyone"]], ADA)
    assert view.verdict(touch("/a/b", "read")) == REFUSED
    assert view.verdict(touch("/a/c", "read")) == PERMITTED
    assert view.verdict(touch("/b", "read")) == REFUSED


def test_the_rows_of_a_token_are_added() -> None:
    """They give rights beside the table, and take none."""
    rows = [["/s/**", "user", "nobody", "nobody", {"by": "{sub}"}]]
    view = view_of(rows, ADA | {"allow": [["/s/7/**", "append"], ["/t/{sub}", "read", "write"], ["/u", "append write"]]})
    permitted = [
        (path, right)
        for path in ("/s/7/x", "/s/8/x", "/t/ada", "/t/bob", "/u")
        for right in ("read", "append", "write")
        if view.verdict(touch(path, right)) == PERMITTED
    ]
    assert permitted == [
        *[("/s/7/x", "read"), ("/s/7/x", "append"), ("/s/8/x", "read")],
        *[("/t/ada", "read"), ("/t/ada", "write"), ("/u", "append"), ("/u", "write")],
    ]


@pytest.mark.parametrize(
    "allow",
    [
        "read /x",
        [["/x"]],
        [["/x", "delete"]],
        [["x", "read"]],
        [["/x", 1]],
        [[]],
        [1],
        [["/x/", "read"]],
        {},
        [["/x", "read"]] * 101,
    ],
)
def test_bad_rows_of_a_token(allow: Any) -> None:
    """The token is refused: its owner believes that it may do something."""
    with pytest.raises(Unauthorized) as caught:
        view_of([], {"allow": allow})
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


# A row that is refused, and what is said of it.
BAD_ROWS = [
    ([], "a path, then"),
    (["/a", "user", "user"], "a path, then"),
    (["/a", "user", "user", "user", {"a": "{sub}"}, 1], "a path, then"),
    ("/abc", "a path, then"),
    (7, "a path, then"),
    (["/a", "user", "user", 7], "must be strings"),
    (["a", "user", "user", "user"], "start with a slash"),
    (["", "user", "user", "user"], "start with a slash"),
    (["/a/", "user", "user", "user"], "not end in a slash"),
    (["/a//b", "user", "user", "user"], "part of no path"),
    (["/a/../b", "user", "user", "user"], "part of no path"),
    (["/a%2", "user", "user", "user"], "part of no path"),
    (["/a%ff", "user", "user", "user"], "part of no path"),
    (["/a%0a", "user", "user", "user"], "part of no path"),
    (["/a*", "user", "user", "user"], "%2A"),
    (["/***", "user", "user", "user"], "%2A"),
    (["/{}", "user", "user", "user"], "neither"),
    (["/{a", "user", "user", "user"], "neither"),
    (["/x{a}", "user", "user", "user"], "neither"),
    (["/$", "user", "user", "user"], "neither"),
    (["/$1", "user", "user", "user"], "neither"),
    (["/$x/$x", "user", "user", "user"], "twice"),
    (["/**/$x/**", "user", "user", "user"], "between two **"),
    (["/_/x", "user", "user", "user"], "belong to the service"),
    (["/a" * 33, "user", "user", "user"], "32 segments"),
    (["/a", "", "user", "user"], "read is empty"),
    (["/a", "user", "users", "user"], "append is 'users'"),
    (["/a", "user", "", "user"], "append is empty"),
    (["/a", "user", "post:", "user"], "append is empty"),
    (["/a", "user", "post:users", "user"], "append is 'users'"),
    (["/a", "post:user", "user", "user"], "read is 'post:user'"),
    (["/a", "user", "user", "post:user"], "write is 'post:user'"),
    (["/a", "user", "user", "role:"], "write is 'role:'"),
    (["/a", "user", "user", "nobody user"], "nobody by itself"),
    (["/a", "user", "user", "User"], "write is 'User'"),
    (["/a", "in:/m", "user", "user"], "starts and ends with a slash"),
    (["/a", "in:m/", "user", "user"], "starts and ends with a slash"),
    (["/a", "in:/m/*/", "user", "user"], "one container"),
    (["/a", "in:/m//", "user", "user"], "part of no path"),
    (["/a", "in:/m/$x/", "user", "user"], "does not have"),
    (["/a", "in:/_/x/", "user", "user"], "belong to the service"),
    (["/**/{t}/**", "in:/m/{t}/", "user", "user"], "between two **"),
    (["/a", "user", "user", "user", {}], "fifth column"),
    (["/a", "user", "user", "user", ["a"]], "fifth column"),
    (["/a", "user", "user", "user", {"a": "sub"}], "must have a claim"),
    (["/a", "user", "user", "user", {"a": 1}], "must have a claim"),
    (["/a", "user", "user", "user", {"ttl": "{sub}"}], "no document"),
    (["/a", "user", "user", "user", {"$kv": "{sub}"}], "no document"),
]


@pytest.mark.parametrize(("row", "why"), BAD_ROWS)
def test_bad_rows(row: Any, why: str) -> None:
    """They stop the start, with their number and what is wrong."""
    with pytest.raises(InvalidSetting) as caught:
        parse_rows([["/ok", "user", "user", "user"], row])
    assert "row 2 " in str(caught.value)
    assert why in str(caught.value)


BAD_FILES = [
    ("rules = [", "not TOML"),
    ("", "rules = ["),
    ("rules = 1", "rules = ["),
    ("rules = []\nmore = 1", "rules = ["),
    ('rules = [["/a", "user", "user"]]', "row 1 "),
]


@pytest.mark.parametrize(("text", "why"), BAD_FILES)
def test_bad_files(text: str, why: str) -> None:
    """A file says what is wrong with it."""
    with pytest.raises(InvalidSetting, match="(?s)" + why.replace("[", r"\[")):
        parse_toml(text)


def test_a_file() -> None:
    """A table as docs/access.md has them."""
    text = """
        rules = [
          # path                      read       append      write
          ["/public/**",              "anyone",  "anyone",   "anyone"],
          ["/users/{sub}/**",         "user",    "user",     "user"],
          ["/guestbook/**",           "anyone",  "user",     "role:editor"],
          ["/rooms/$room/**",         "in:/members/$room/", "in:/members/$room/", "nobody", {author = "{sub}"}],
        ]
    """
    assert len(parse_toml(text)) == 4


# --- Everything below a container -----------------------------------------------------------------------------------------

ALL = ["anyone", "anyone", "anyone"]
NONE = ["nobody", "nobody", "nobody"]
STAFF = ["in:/staff/"] * 3

# Rows, a container, and what reading all below it depends on for ada: True, False, or documents.
COVERED: list[tuple[list[list[Any]], str, Any]] = [
    ([["/**", *ALL]], "/", True),
    ([["/*/**", *ALL]], "/", False),  # the root document
    ([["/", *ALL], ["/*/**", *ALL]], "/", True),
    ([["/a/**", *ALL]], "/", False),
    ([["/a/**", *ALL]], "/a/", True),
    ([["/a/**", *ALL]], "/a/b/c/", True),
    ([["/a/**", *ALL]], "/b/", False),
    ([["/a/*", *ALL]], "/a/", False),  # what is two levels below
    ([["/a/*", *ALL], ["/a/*/*/**", *ALL]], "/a/", True),
    ([["/a/*", *ALL], ["/a/*/*", *ALL], ["/a/**/x", *ALL]], "/a/", False),
    ([["/a", *NONE], ["/a/**", *ALL]], "/a/", True),  # /a itself is not below /a/
    ([["/a/secret", *NONE], ["/a/**", *ALL]], "/a/", False),
    ([["/a/secret", *NONE], ["/a/**", *ALL]], "/a/b/", True),
    ([["/a/**", *ALL], ["/a/secret", *NONE]], "/a/", True),
    ([["/**/secret", *NONE], ["/**", *ALL]], "/a/b/", False),
    ([["/**/secret/**", *NONE], ["/**", *ALL]], "/a/secret/", False),
    ([["/a/*/x", *NONE], ["/a/**", *ALL]], "/a/b/c/", True),
    ([["/a/*/x", *NONE], ["/a/**", *ALL]], "/a/b/", False),
    ([["/a/{sub}", *NONE], ["/a/**", *ALL]], "/a/", False),
    ([["/a/{email}", *NONE], ["/a/**", *ALL]], "/a/", True),  # no row for ada
    ([["/u/{sub}/**", *ALL]], "/u/", False),
    ([["/u/{sub}/**", *ALL]], "/u/ada/", True),
    ([["/u/{sub}/**", *ALL]], "/u/bob/", False),
    ([["/r/$r/**", *["in:/m/$r/"] * 3]], "/r/1/", {"/m/1/ada"}),
    ([["/r/$r/**", *["in:/m/$r/"] * 3]], "/r/", False),  # nobody is in every room
    ([["/r/$r/**", *["in:/m/$r/ user"] * 3]], "/r/", True),
    ([["/**/$r", *["in:/m/$r/"] * 3]], "/r/", False),
    ([["/t/{teams}/**", *["in:/m/{teams}/"] * 3], ["/**", *ALL]], "/t/", {"/m/red/ada", "/m/blue/ada"}),
    ([["/r/1/**", *STAFF], ["/r/**", *ALL]], "/r/", {"/staff/ada"}),
    ([["/r/1/**", *STAFF], ["/r/**", *ALL]], "/r/2/", True),
    ([["/" + "a/" * 30 + "*/*", *NONE], ["/**", *ALL]], "/" + "a/" * 30, False),
    ([["/**/x/y", *NONE], ["/**", *ALL]], "/" + "a/" * 31, True),  # no path has 33 segments
    ([["/**/x/y", *NONE], ["/**", *ALL]], "/" + "a/" * 30, False),
    ([], "/" + "a/" * 32, False),  # nothing can be there, but its entity-tag is the namespace's
]


@pytest.mark.parametrize(("rows", "container", "expected"), COVERED)
def test_covering(rows: list[Any], container: str, expected: Any) -> None:
    """What reading everything below a container depends on."""
    claims = ADA | {"teams": ["red", "blue"]}
    clauses = view_of(rows, claims).verdict(touch(container, "read", Scope.BELOW)).clauses
    assert clauses == depends_on(expected)


ADDED: list[tuple[list[list[Any]], str, Any]] = [
    ([["/log/*", *ALL]], "/log/", True),
    ([["/log", *ALL]], "/log/", False),
    ([["/log/pinned", *NONE], ["/log/*", *ALL]], "/log/", True),  # no id is spelled like this
    ([["/log/1795168800000a0", *NONE], ["/log/*", *ALL]], "/log/", False),
    ([["/*", *ALL]], "/", True),
    ([["/r/$r/*", *["in:/m/$r/"] * 3]], "/r/1/", {"/m/1/ada"}),
    ([["/r/$r", *["in:/m/$r/"] * 3]], "/r/", False),
    ([["/log/*", "nobody", "post:user", "nobody"]], "/log/", True),
    ([["/log/*", "nobody", "post:role:editor role:admin", "nobody"]], "/log/", False),
    ([["/r/$r/*", "nobody", "user post:in:/m/$r/", "nobody"]], "/r/1/", True),
    ([["/r/$r/*", "nobody", "post:in:/m/$r/", "nobody"]], "/r/1/", {"/m/1/ada"}),
]


@pytest.mark.parametrize(("rows", "container", "expected"), ADDED)
def test_appending(rows: list[Any], container: str, expected: Any) -> None:
    """What appending to a container depends on, whose name the service assigns."""
    clauses = view_of(rows, ADA).verdict(touch(container, "append", Scope.ADDED)).clauses
    assert clauses == depends_on(expected)


def test_a_table_that_is_too_much_work_refuses() -> None:
    """Patterns with many `**` have states beyond counting: then only admin may, and one document is judged as ever."""
    view = view_of([*([f"/**/x{i}/**/y{i}/**", *STAFF] for i in range(30)), ["/**", *ALL]], ADA)
    began = thread_time()
    assert view.verdict(touch("/", "read", Scope.BELOW)) == REFUSED
    assert thread_time() - began < 1  # some 50 ms
    assert view.verdict(touch("/x1/y2/x2", "read")) == PERMITTED


# --- Against a second reading --------------------------------------------------------------------------------------------

NAMES = ["a", "b", "ada", "red"]
FRESH = ["new", "other"]  # that no row names
CLAIMS: list[dict[str, Any] | None] = [
    None,
    {"sub": "ada"},
    {"sub": "ada", "teams": ["red", "b"], "roles": ["editor"]},
    {"sub": "b", "teams": "a", "allow": [["/a/**", "read", "append"]]},
    {"sub": "ada", "roles": ["admin"]},
    {"roles": ["editor"]},
]
CELLS = [
    "anyone",
    "user",
    "nobody",
    "role:editor",
    "in:/a/",
    "in:/b/{teams}/",
    "in:/b/$x/",
    "role:editor in:/a/$x/",
    "in:/a/{sub}/",
    "post:user in:/a/",  # by POST alone; only the column append may say so
]
STORED = {"/a/ada", "/a/b", "/b/red/ada", "/b/a/b", "/b/b/ada", "/a/a/ada", "/a/red/ada", "/a/ada/ada"}

cells = st.one_of(
    st.just("anyone"), st.just("nobody"), st.sampled_from(CELLS)
)  # so that often one right is given, and not another
elements = st.sampled_from([*NAMES[:3], "*", "**", "**", "{sub}", "{teams}", "$x"])


@st.composite
def tables(draw: st.DrawFn) -> list[list[Any]]:
    """Rules that start."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        row: list[Any] = [draw(st.sampled_from(["/**", "/" + "/".join(draw(st.lists(elements, max_size=4)))]))]
        row += [draw(cells) for _ in range(3)]
        if draw(st.integers(0, 3)) == 0:
            row.append({"by": "{sub}"})
        try:
            parse_rows([row])
        except InvalidSetting:
            continue
        rows.append(row)
    return rows


def paths_below(container: list[str], depth: int) -> list[list[str]]:
    """The paths of a small world below a container."""
    found, level = [], [container]
    for _ in range(depth):
        level = [[*path, name] for path in level for name in NAMES + FRESH]
        found += level
    return found


@settings(max_examples=200)
@given(tables(), st.sampled_from(CLAIMS), st.lists(st.sampled_from([*NAMES, "new"]), max_size=3), st.sampled_from(list(Right)))
def test_the_automaton_reads_as_the_documentation(
    rows: list[Any], claims: dict[str, Any] | None, names: list[str], right: Right
) -> None:
    """One document, and everything below a container, are permitted where each path is by itself."""
    view = view_of(rows, claims)
    if view.is_admin:
        return
    column = right.name.lower()
    alone = view.verdict(touch("/" + "/".join(names), column))
    is_permitted, members = has_right(rows, claims, STORED, names, column)
    assert all(clause & STORED for clause in alone.clauses) == is_permitted
    if is_permitted:
        assert {name for name, _ in alone.members} == set(members)
    below = view.verdict(touch("/" + "".join(name + "/" for name in names), column, Scope.BELOW))
    if claims and claims.get("sub") == "ada" and any("other" in clause for clause in below.clauses):
        raise AssertionError("a segment that no row names is in a clause")
    each = [has_right(rows, claims, STORED, path, column)[0] for path in paths_below(names, 3 if len(names) else 4)]
    if not names:
        each.append(has_right(rows, claims, STORED, [], column)[0])
    assert all(clause & STORED for clause in below.clauses) == all(each)
