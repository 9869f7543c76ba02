"""The lock files fit pyproject.toml. `make lock` writes them; nothing here needs a network."""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PIN = re.compile(r"([a-z0-9-]+)==([^ ]+)(?: ; [^\\]+)? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")


class Pin(NamedTuple):
    """A package in a lock file. `is_direct` says that pyproject.toml itself names it."""

    version: str
    hashes: int
    is_direct: bool


def lock(name: str) -> dict[str, Pin]:
    """The packages of a lock file; fails on a line that is neither a pin, a hash nor a comment."""
    pins: dict[str, Pin] = {}
    package = ""
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if found := PIN.fullmatch(line):
            package = found[1]
            pins[package] = Pin(found[2], 0, is_direct=False)
        elif HASH.fullmatch(line):
            pins[package] = pins[package]._replace(hashes=pins[package].hashes + 1)
        else:
            assert line.lstrip().startswith("#"), line
            if "kvstore (pyproject.toml" in line:
                pins[package] = pins[package]._replace(is_direct=True)
    return pins


def group(name: str) -> list[str]:
    """The requirements of a dependency group, those of the groups it includes among them (PEP 735)."""
    found: list[str] = []
    for entry in PYPROJECT["dependency-groups"][name]:
        found += [entry] if isinstance(entry, str) else group(entry["include-group"])
    return found


EXTRAS = PYPROJECT["project"]["optional-dependencies"]
RUN = [*PYPROJECT["project"]["dependencies"], *EXTRAS["server"], *EXTRAS["embedded"], *EXTRAS["jwks"]]
LOCKS = {"requirements.txt": RUN, "requirements-dev.txt": RUN + group("dev")}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_what_pyproject_asks_for(name: str) -> None:
    """Every requirement is pinned to a version in its range, and nothing is left that was taken out of pyproject.toml."""
    pins = lock(name)
    asked = {canonicalize_name(each.name): each for each in map(Requirement, LOCKS[name])}
    assert {package for package, pin in pins.items() if pin.is_direct} == set(asked), "run `make lock`"
    for package, requirement in asked.items():
        assert requirement.specifier.contains(pins[package].version), f"{requirement}: run `make lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_its_hashes(name: str) -> None:
    """So pip installs only what was locked."""
    assert not [package for package, pin in lock(name).items() if not pin.hashes]


def test_tests_run_with_the_versions_that_serve() -> None:
    """What both files name has one version."""
    serving, developing = lock("requirements.txt"), lock("requirements-dev.txt")
    assert {package: developing[package].version for package in serving} == {
        package: pin.version for package, pin in serving.items()
    }
