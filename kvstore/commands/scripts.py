"""The Lua scripts, each put together from `lua/*.lua` with what it calls of the prelude. A command names one of them.

Source: EVALSHA, EVAL.
"""

import hashlib
import re
from importlib.resources import files
from typing import NamedTuple

from kvstore.core.paths import OWN_KEYS


class Script(NamedTuple):
    """A Lua script and the SHA-1 that Redis knows it by (EVALSHA)."""

    name: str
    text: str
    sha: str


_OWN_KEY = re.compile(r"\b(?:" + "|".join(OWN_KEYS).upper() + r")\b")


def _script(name: str, *parts: str, main: str) -> Script:
    """A script of some of the files, without the locals that it does not use: Lua makes each anew for every call."""
    text = main
    for local in reversed(re.split(r"(?m)^(?=local )", "\n".join(_text(part) for part in parts))):
        defined = re.match(r"local (?:function )?(\w+)", local)
        if not defined or re.search(rf"\b{defined[1]}\b", text):
            text = local + text
    text = _OWN_KEY.sub(lambda key: f"(SPACE .. '{key[0].lower()}')", text)
    if "SPACE" in text:
        text = "local SPACE = string.sub(KEYS[1], 1, -4) -- all that the keys of a namespace have in common\n" + text
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _text(part: str) -> str:
    """A file without its comments, in which what is named is not used."""
    return re.sub(r"(?m)(?:^|[ \t]+)--.*$", "", (files("kvstore.commands") / "lua" / f"{part}.lua").read_text("utf-8"))


def _act(name: str, *called: str) -> Script:
    """A script that carries out one request on a document."""
    return _script(name, "prelude", *called, name, main=f"return {name}(KEYS[2], 1, #ARGV)")


def _once(name: str, *called: str) -> Script:
    """The same for a request with an Idempotency-Key."""
    return _script(f"{name} once", "prelude", *called, name, "once", main=f"return once({name}, KEYS[2])")


READ = _script("read", main=_text("read"))
PUT = _act("put")
PATCH = _act("patch")
TOUCH = _act("touch")
DELETE = _act("delete")
POST = _act("post")
BEGIN = _act("begin")
CONCLUDE = _act("conclude")
DELETE_BELOW = _act("delete_below")
TAKE = _act("take")
LEASE = _act("lease")
BURY = _act("bury", "put")
BURY_ALL = _act("bury_all", "put", "bury")
FINISH = _act("finish", "put", "bury", "take")
_WRITES = (PUT, PATCH, TOUCH, DELETE, POST, BEGIN, CONCLUDE, DELETE_BELOW, TAKE, LEASE)
ONCE = {script.name: _once(script.name) for script in _WRITES} | {"bury_all": _once("bury_all", "put", "bury")}
IN_A_BATCH = ("get", "put", "patch", "touch", "delete", "post", "begin")
BATCH = _script("batch", "prelude", *IN_A_BATCH, "batch", main="return batch(nil, 1, #ARGV)")
ONCE["batch"] = _script("batch once", "prelude", *IN_A_BATCH, "batch", "once", main="return once(batch)")
PUT_ALL = _act("put_all")
GET_ALL = _act("get_all")
LIST = _act("list")
REGISTER = _act("register")
CENSUS = _act("census")
PLACE = _act("place")
CHANGES = _act("changes")
KEEP = _act("keep", "put")
RELEASE = _act("release", "delete")
