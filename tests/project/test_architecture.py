"""docs/architecture.md names files and functions that exist, and all packages in the order of their layers."""

import ast
import re
from pathlib import Path

import pytest

from tests.project.test_house import PACKAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")

# `kvstore/http/protocol.py: parse`, `kvstore/commands/lua/put.lua`, `kvstore/core/`
REFERENCES = re.findall(r"`(kvstore/[\w/]*(?:\.\w+)?)(?::\s+([\w.]+))?`", PAGE)


def defines(path: Path, name: str) -> bool:
    """Whether a Python file defines a class, a function or `Class.method`, or a Lua file a function."""
    text = path.read_text("utf-8")
    if path.suffix == ".lua":
        return f"local function {name}(" in text
    found: list[ast.AST] = [ast.parse(text)]
    for part in name.split("."):
        found = [
            node
            for parent in found
            for node in ast.iter_child_nodes(parent)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == part
        ]
    return bool(found)


def test_every_reference_is_checked() -> None:
    """The pattern reads every reference of the page."""
    assert len(REFERENCES) == PAGE.count("`kvstore/")


@pytest.mark.parametrize(("file", "name"), sorted(set(REFERENCES)))
def test_what_the_page_names_exists(file: str, name: str) -> None:
    """A file or a package, and a function, class or method in it."""
    assert (ROOT / file).exists()
    assert not name or defines(ROOT / file, name)


def test_the_table_shows_the_layers() -> None:
    """Every package has a row, from top to bottom; `asgi` and `cli` have their sentence."""
    rows = re.findall(r"^\| `kvstore/(\w+)(?:/|\.py)` \|", PAGE, re.MULTILINE)
    assert rows == [name for name in PACKAGES if name not in ("asgi", "cli")]
