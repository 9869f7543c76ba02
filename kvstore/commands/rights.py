"""What a command touches: the paths, and the rights that whoever asks for it must have there. Access rules judge this.

A command that a request can ask for has `touches`, what it does, and some have `shows`, what its outcome tells besides. Who may
not read what it shows gets the outcome without it (`guarded.Blind`).
"""

from enum import IntEnum
from typing import NamedTuple

from kvstore.core.paths import Path
from kvstore.core.preconditions import Preconditions


class Right(IntEnum):
    """A right that a rule gives."""

    READ = 0
    APPEND = 1
    WRITE = 2


class Scope(IntEnum):
    """Which documents a command touches: the one at its path, one that it adds below a container, or all below it."""

    ITSELF = 0
    ADDED = 1
    BELOW = 2


class Touch(NamedTuple):
    """One right that a command needs. The path of a scope other than ITSELF is a container, or the root."""

    path: Path
    right: Right
    scope: Scope = Scope.ITSELF


Touches = tuple[Touch, ...]


def reads(path: Path) -> Touches:
    """Return what reading a document touches."""
    return (Touch(path, Right.READ),)


def changes(path: Path) -> Touches:
    """Return what changing a document touches, where the outcome depends on the document that is stored."""
    return (Touch(path, Right.WRITE), Touch(path, Right.READ))


def writes(path: Path, preconditions: Preconditions) -> Touches:
    """Return what replacing or deleting a document touches. A precondition on what is stored tells what it is."""
    match, none_match, unmodified_since_s, _ = preconditions
    if match or none_match or unmodified_since_s is not None:
        return changes(path)
    return (Touch(path, Right.WRITE),)


def creates(path: Path) -> Touches:
    """Return what writing a document touches that must not exist."""
    return (Touch(path, Right.APPEND),)


def is_creation(preconditions: Preconditions) -> bool:
    """Return whether a write is one that only creates: `If-None-Match: *`, and no other precondition."""
    match, none_match, unmodified_since_s, _ = preconditions
    return none_match == "*" and not match and unmodified_since_s is None


def everything_below(container: Path, *rights: Right) -> Touches:
    """Return what a command touches that deals with everything below a container."""
    return tuple(Touch(container, right, Scope.BELOW) for right in rights)
