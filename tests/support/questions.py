"""Random documents, and random questions to them, spelled in each of the ways that there are."""

import json
from typing import Any, NamedTuple
from urllib.parse import quote

from hypothesis import strategies as st

from tests.support.naive_query import Asked, Wanted

CHARACTERS = st.characters(exclude_categories=["Cs"])


def as_json(text: str) -> str:
    """A string as JSON text."""
    return json.dumps(text, ensure_ascii=False)


def query_string(asked: list[tuple[str, str]]) -> str:
    """Parameters as a query string."""
    return "&".join(f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in asked)


# Some are equal, some nearly, and some are equal as doubles only.
NUMBERS = ["0", "-0", "0.0", "0e5", "1", "1.0", "10e-1", "1e2", "100", "1E+02", "-1", "-1.50", "-1.5", "-15", "2", "10", "-10"]
NUMBERS += ["1e-400", "-1e-400", "2e-400", "0.1", "0.10", "0.1000000000000000055511151231257827", "5e-324", "1.5", "1.51", "15"]
NUMBERS += ["123456789012345678901234567890", "123456789012345678901234567891", "1.23456789012345678901234567890e29"]
NUMBERS += ["9007199254740993", "9007199254740992.0", "9007199254740992", "9" * 400, "-" + "9" * 400, "1e300", "1" + "0" * 300]
STRINGS = ["", "a", "A", "ab", "abc", "b", "ß", "SS", "é", "e\u0301", "\U0001f600", "\uffff", "\u0130"]
STRINGS += ["42", "true", "null", '"a"', "[1]", "1"]
TEXTS = st.sampled_from(STRINGS) | st.text(CHARACTERS, max_size=2)
SCALARS = st.sampled_from(NUMBERS) | TEXTS.map(as_json) | st.sampled_from(["null", "true", "false"])
MEMBERS = st.sampled_from(["a", "b", "0", "1", "", "é", "$kv"])


def composed(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Arrays, and objects some of whose members cannot be asked for."""
    return st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]") | st.dictionaries(
        MEMBERS | st.sampled_from(["a.b", "a:eq", "-a"]), inner, max_size=4
    ).map(lambda parts: "{%s}" % ",".join(f"{as_json(name)}:{part}" for name, part in parts.items()))


VALUES = SCALARS | st.recursive(SCALARS, composed, max_leaves=6)
PAIRS = st.tuples(VALUES, VALUES).map(lambda pair: f'{{"a":{pair[0]},"b":{pair[1]}}}')  # most questions are about `a` and `b`
DOCUMENTS = PAIRS | PAIRS | composed(VALUES) | VALUES
PATHS = st.sampled_from(["a", "a", "b"]) | st.lists(MEMBERS, min_size=1, max_size=3).map(".".join)
NAMED_PATHS = PATHS.filter(bool)  # `sort` and `fields` take no empty one
NAMES = st.sampled_from(["a", "B", "b0", "%C3%A9", "z~", "10", "2", "a%20b", "a/b", "c", "d", "e", "f"])

IN_TEXTS = ("contains", "startsWith", "endsWith")


class Drawn(NamedTuple):
    """A condition, as a parameter of a query string, and as it is in the body of a QUERY."""

    asked: Asked
    name: str
    text: str
    member: str


def is_json(text: str) -> bool:
    """Whether a text would be read as JSON."""
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: json.loads("?"))
    except json.JSONDecodeError:
        return False
    return True


@st.composite
def conditions(draw: st.DrawFn) -> Drawn:
    """A condition, spelled in one of the ways that there are."""
    member, op = draw(PATHS), draw(st.sampled_from(["eq", "ne", "lt", "lte", "gt", "gte", "in", *IN_TEXTS, "exists"]))
    if op == "exists":
        text = draw(st.sampled_from(["true", "false"]))
        return Drawn(Asked(member, op, text, text), f"{member}:exists", text, member)
    if op == "in":
        parts = draw(st.lists(VALUES, max_size=3))
        text = f"[{','.join(parts)}]"
        return Drawn(Asked(member, op, text, text), f"{member}:in", text, member)
    if op in IN_TEXTS or draw(st.booleans()):
        written = draw(TEXTS)
        suffix = ":string" if is_json(written) or draw(st.booleans()) else ""
        return Drawn(Asked(member, op, as_json(written), written), f"{member}:{op}{suffix}", written, member)
    text = draw(VALUES)
    return Drawn(Asked(member, op, text, text), f"{member}:{op}", text, member)


class Question(NamedTuple):
    """A question, as it is drawn."""

    conditions: list[Drawn]
    wanted: Wanted

    def parameters(self) -> list[tuple[str, str]]:
        """What a GET has, but for the page."""
        pairs = [(drawn.name, drawn.text) for drawn in self.conditions]
        wanted = self.wanted
        pairs += [(name, ",".join(given)) for name, given in (("sort", wanted.sort), ("fields", wanted.fields)) if given]
        pairs += [("search", wanted.search)] if wanted.search is not None else []
        return pairs + ([("order", "desc")] if wanted.descending else [])

    def parameters_of_a_stream(self) -> list[tuple[str, str]]:
        """The same without what orders documents."""
        wanted = self.wanted._replace(sort=[], descending=False)
        return self._replace(wanted=wanted).parameters() or [("search", "")]

    def body(self, limit: int) -> str:
        """What a QUERY has. Several conditions with one member and operator cannot be in one body."""
        where: dict[str, dict[str, str]] = {}
        for drawn in self.conditions:
            where.setdefault(drawn.member, {})[drawn.asked.op] = drawn.asked.value
        tests = ",".join(
            f"{as_json(member)}:{{{','.join(f'{as_json(op)}:{value}' for op, value in each.items())}}}"
            for member, each in where.items()
        )
        wanted = self.wanted
        rest: dict[str, Any] = {"limit": limit, "sort": list(wanted.sort), "fields": list(wanted.fields)}
        rest |= {} if wanted.search is None else {"search": wanted.search}
        rest |= {"order": "desc"} if wanted.descending else {}
        return f'{{"where":{{{tests}}},{json.dumps(rest)[1:]}'


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """A question; one without anything in it would list containers as well."""
    drawn = draw(st.lists(conditions(), max_size=3, unique_by=lambda each: (each.member, each.asked.op)))
    sort = draw(st.lists(NAMED_PATHS.flatmap(lambda path: st.sampled_from([path, f"-{path}"])), max_size=4))
    fields = draw(st.just([]) | st.lists(NAMED_PATHS, max_size=3))
    search = draw(st.none() | TEXTS)
    if not drawn and not sort and not fields and search is None:
        search = ""
    wanted = Wanted([each.asked for each in drawn], search, sort, fields, descending=draw(st.booleans()))
    return Question(drawn, wanted)
