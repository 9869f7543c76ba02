"""Random documents and questions, drawn by `random`: a hundred thousand of them take a minute, and no seed is forgotten.

questions.py draws such as well, by hypothesis: fewer, and it finds the smallest that fails.
"""

from random import Random

from tests.support.naive_query import Asked, Wanted
from tests.support.questions import IN_TEXTS, NUMBERS, STRINGS, Drawn, Question, as_json, is_json

MEMBERS = ["a", "a", "a", "b", "b", "c", "0", "1", "", "é", "$kv", "$value", "a.b", "a:eq", "-a"]
ASKED = ["a", "a", "a", "b", "b", "c", "a.a", "a.b", "b.0", "0", "1.a", "é", "$kv", "a.0.b", "ttl", "$value"]
LETTERS = "aAbzß\u0130é\u0301\U0001f600\uffff\\\"\n\x00 '"
OPS = ["eq", "ne", "lt", "lte", "gt", "gte", "in", *IN_TEXTS, "exists"]


def number(rng: Random) -> str:
    """A number, which may be next to another one, or spelled in another way."""
    match rng.randrange(8):
        case 0 | 1:
            return str(rng.randrange(-3, 4))
        case 2:
            return repr(round(rng.uniform(-2, 2), rng.randrange(1, 4)))
        case 3:
            return repr(rng.uniform(-2, 2))
        case 4:
            return str(2**53 + rng.randrange(-2, 3)) + rng.choice(["", ".0", "e0"])
        case _:
            return rng.choice(NUMBERS)


def string(rng: Random) -> str:
    """A string."""
    return rng.choice(STRINGS) if rng.random() < 0.7 else "".join(rng.choices(LETTERS, k=rng.randrange(4)))


def scalar(rng: Random) -> str:
    """A value that has no parts, as JSON text."""
    pick = rng.random()
    if pick < 0.5:
        return number(rng)
    if pick < 0.85:
        text = as_json(string(rng))
        return text.replace("a", "\\u0061") if rng.random() < 0.1 else text
    return rng.choice(["null", "true", "false"])


def value(rng: Random, depth: int = 3) -> str:
    """Any value, as JSON text."""
    if depth == 0 or rng.random() < 0.75:
        return scalar(rng)
    if rng.random() < 0.5:
        return f"[{','.join(value(rng, depth - 1) for _ in range(rng.randrange(4)))}]"
    return members(rng, depth - 1)


def members(rng: Random, depth: int) -> str:
    """An object, as JSON text."""
    names = dict.fromkeys(rng.choices(MEMBERS, k=rng.randrange(5)))
    return "{%s}" % ",".join(f"{as_json(name)}:{value(rng, depth)}" for name in names)


def document(rng: Random) -> str:
    """A document: most are objects."""
    return members(rng, 2) if rng.random() < 0.9 else value(rng)


def condition(rng: Random) -> Drawn:
    """A condition, spelled in one of the ways that there are."""
    member, op = rng.choice(ASKED), rng.choice(OPS)
    if op == "exists":
        text = rng.choice(["true", "false"])
        return Drawn(Asked(member, op, text, text), f"{member}:exists", text, member)
    if op == "in":
        text = f"[{','.join(value(rng, 1) for _ in range(rng.randrange(4)))}]"
        return Drawn(Asked(member, op, text, text), f"{member}:in", text, member)
    if op in IN_TEXTS or rng.random() < 0.3:
        written = string(rng)
        suffix = ":string" if is_json(written) or rng.random() < 0.5 else ""
        return Drawn(Asked(member, op, as_json(written), written), f"{member}:{op}{suffix}", written, member)
    text = value(rng, 1)
    return Drawn(Asked(member, op, text, text), f"{member}:{op}", text, member)


def question(rng: Random) -> Question:
    """A question with something in it."""
    drawn = {(each.member, each.asked.op): each for each in (condition(rng) for _ in range(rng.choice([0, 1, 1, 1, 2, 3])))}
    sort = [rng.choice(["", "-"]) + rng.choice(ASKED) for _ in range(rng.choice([0, 0, 1, 1, 2, 4]))]
    fields = rng.choices(ASKED, k=rng.choice([0, 0, 0, 1, 3]))
    search = string(rng) if rng.random() < 0.1 else None
    if not drawn and not sort and not fields and search is None:
        search = ""
    wanted = Wanted([each.asked for each in drawn.values()], search, sort, fields, descending=rng.random() < 0.3)
    return Question(list(drawn.values()), wanted)
