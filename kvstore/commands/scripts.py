"""The Lua scripts. Each is made of its file in `lua/` and of what it uses of the shared files. A command names one.

Source: EVALSHA, EVAL.
"""

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

from kvstore.core.paths import OWN_KEYS

Outcome_co = TypeVar("Outcome_co", covariant=True)


class Script(NamedTuple, Generic[Outcome_co]):
    """A Lua script and the SHA-1 that Redis knows it by (EVALSHA).

    The type parameter is the outcome of the command that names the script: a type checker reads the outcome there, since it
    would join the parts of a union that it finds in the command's `outcome()`.

    `names_all_keys`: the script reads and writes the keys that it is given, and no others of the namespace.
    """

    name: str
    text: str
    sha: str
    names_all_keys: bool = False


_WORD = re.compile(r"\w+")
_DEFINED = re.compile(r"local (?:function )?(\w+)")
_OWN_KEY = re.compile(r"\b(?:" + "|".join(OWN_KEYS).upper() + r")\b")


def _script(name: str, *parts: str, call: str) -> Script[Any]:
    """Return a script that returns what a call returns. If that erases changes, the script does so when the call is done."""
    text = _assembled(f"return {call}", parts)
    if "collected" in text:
        text = _assembled(f"local reply = {call}\nif collected then\n  erasing().finish()\nend\nreturn reply", parts)
    return _named(name, text)


def _assembled(main: str, parts: tuple[str, ...]) -> str:
    """Return some files and `main`, without the locals that are not used: Lua creates each local in every call."""
    used, texts = set(_WORD.findall(main)), [main]
    for local in reversed([local for part in parts for local in _locals(part)]):
        if local.name in used:
            used |= local.words
            texts.append(local.text)
    text = "".join(reversed(texts))
    if "SPACE" in text:
        text = "local SPACE = string.sub(KEYS[1], 1, -4) -- all that the keys of a namespace have in common\n" + text
    return text


def _named(name: str, text: str, *, names_all_keys: bool = False) -> Script[Any]:
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), names_all_keys)


class _Local(NamedTuple):
    """A local of a file: its name, its definition, and the words in that."""

    name: str
    text: str
    words: frozenset[str]


@cache
def _locals(part: str) -> list[_Local]:
    """Return the locals of a file, in their order: there is nothing else in it."""
    first, *texts = re.split(r"(?m)^(?=local )", _text(part).strip() + "\n")
    assert not first, part
    return [_Local(_DEFINED.findall(text)[0], _with_keys(text), frozenset(_WORD.findall(text))) for text in texts]


def _with_keys(text: str) -> str:
    """Put the namespace's own keys in the place of their names."""
    return _OWN_KEY.sub(lambda key: f"(SPACE .. '{key[0].lower()}')", text)


def _text(part: str) -> str:
    """Return a file without comments: a name in a comment is not a use of it."""
    return re.sub(r"(?m)(?:^|[ \t]+)--.*$", "", (files("kvstore.commands") / "lua" / f"{part}.lua").read_text("utf-8"))


def number_in(part: str, name: str) -> int:
    """Return a number that a file of `lua/` gives a name to."""
    found = re.search(rf"(?m)^local {name} = (\d+)$", _text(part))
    assert found, name
    return int(found[1])


def _small(name: str) -> Script[Any]:
    """Return a script that uses none of the shared files, and so none of the namespace's own keys."""
    return _named(name, _text(name), names_all_keys=True)


def _act(name: str, *called: str) -> Script[Any]:
    """Return a script that calls one function, `name`."""
    return _script(name, *_SHARED, *called, name, call=f"{name}(KEYS[2], 1, #ARGV)")


def _idempotent(name: str, *called: str) -> Script[Any]:
    """Return a script that calls one function, once for an Idempotency-Key."""
    return _script(f"{name} idempotent", *_SHARED, *called, name, "idempotent", call=f"idempotent({name}, KEYS[3])")


_SHARED = ("_log", "_jobs", "_index", "_gone", "_documents", "_order", "_server_values")  # each uses only those before it

READ = _small("read")
EXISTS = _small("exists")
GET = _act("get")
PUT = _act("put")
PATCH = _act("patch")
SET_TTL = _act("set_ttl")
DELETE = _act("delete")
POST = _act("post")
READ_FOR_UPDATE = _act("read_for_update")
RECORD_REPLY = _act("record_reply")
DELETE_RECURSIVE = _act("delete_recursive")
TAKE = _act("take")
CHANGE_LEASE = _act("change_lease")
MOVE_JOB = _act("move_job", "put")
MOVE_DEAD_JOBS = _act("move_dead_jobs", "put", "move_job")
FINISH_AND_TAKE = _act("finish_and_take", "put", "move_job", "take")
IN_A_BATCH = ("get", "put", "patch", "set_ttl", "delete", "post", "read_for_update")
BATCH = _act("batch", *IN_A_BATCH, "_undo")
PUT_MANY = _act("put_many")
GET_MANY = _act("get_many")
LIST = _act("list", "_names")
FIND = _act("find", "_names", "_conditions")
READ_FOUND = _act("read_found", "_names")
COUNT_JOBS = _act("count_jobs")
CHARGE = _small("charge")
CLAIM_STREAMS = _small("claim_streams")
RELEASE_STREAM = _small("release_stream")
REGISTER_TAKER = _small("register_taker")
REMOVE_TAKER = _small("remove_taker")
REGISTER_NAMESPACE = _act("register_namespace")
INSPECT_NAMESPACES = _act("inspect_namespaces")
LOG_POSITION = _act("log_position")
READ_CHANGES = _act("read_changes")
READ_HISTORY = _act("read_history")
READ_CONTAINER_CHANGES = _act("read_container_changes")
HOLD = _act("hold", "put")
RELEASE_HOLD = _act("release_hold", "delete")

_WRITES = (PUT, PATCH, SET_TTL, DELETE, POST, READ_FOR_UPDATE, RECORD_REPLY, DELETE_RECURSIVE, TAKE, CHANGE_LEASE)
IDEMPOTENT = {
    **{script.name: _idempotent(script.name) for script in _WRITES},
    "move_dead_jobs": _idempotent("move_dead_jobs", "put", "move_job"),
    "batch": _idempotent("batch", *IN_A_BATCH, "_undo"),
}
