"""Slots of a cluster, and what its nodes say of them."""

from typing import Any

import pytest

from kvstore.commands.bulk import CoalescedGets
from kvstore.commands.documents import ConditionalGet, Get
from kvstore.core.paths import parse_path
from kvstore.core.preconditions import NONE
from kvstore.stores.slots import guarded_words, parse_redirection, parse_slots, slot_of

HERE = ("10.0.0.1", 7000)
PATH = parse_path(b"/people/ada")

# The tag of a key, and its slot: the first is the specification's own example, the others are those of CLUSTER KEYSLOT.
SLOTS = [("123456789", 12739), ("people", 6247), ("/", 5517), ("%7Ba%7D", 13157)]


@pytest.mark.parametrize(("tag", "slot"), SLOTS)
def test_the_slot_of_a_key(tag: str, slot: int) -> None:
    """It is that of the hash tag alone."""
    assert slot_of("kv:{" + tag + "}!log") == slot
    assert slot_of("kv:{" + tag + "}/a{b}") == slot


REDIRECTIONS = [
    ("MOVED 3999 127.0.0.1:6381", ("MOVED", 3999, ("127.0.0.1", 6381))),
    ("ASK 3999 127.0.0.1:6381", ("ASK", 3999, ("127.0.0.1", 6381))),
    ("MOVED 0 ::1:6381", ("MOVED", 0, ("::1", 6381))),
    ("MOVED 16383 node-1.example:6381", ("MOVED", 16383, ("node-1.example", 6381))),
    ("MOVED 3999 :6381", ("MOVED", 3999, ("10.0.0.1", 6381))),  # where this node is
    ("ASK 3999 ?:6381", ("ASK", 3999, ("10.0.0.1", 6381))),  # cluster-preferred-endpoint-type hostname, and it has none
    ("TRYAGAIN Multiple keys request during rehashing of slot", None),
    ("CLUSTERDOWN Hash slot not served", None),
    ("MOVED", None),
]


@pytest.mark.parametrize(("error", "redirection"), REDIRECTIONS)
def test_redirections(error: str, redirection: Any) -> None:
    assert parse_redirection(error, HERE) == redirection


# What a node replies to CLUSTER SLOTS, and the ranges.
MAPS = [
    ([], ()),
    ([[0, 5460, [b"10.0.0.2", 7001, b"id", []], [b"10.0.0.9", 7001, b"replica", []]]], ((0, 5460, ("10.0.0.2", 7001)),)),
    ([[0, 0, [b"10.0.0.2", 7001]]], ((0, 0, ("10.0.0.2", 7001)),)),
    ([[1, 2, [None, 7001, b"id", []]]], ((1, 2, ("10.0.0.1", 7001)),)),
    ([[1, 2, [b"", 7001, b"id", []]]], ((1, 2, ("10.0.0.1", 7001)),)),
    ([[1, 2, [b"?", 7001, b"id", []]]], ((1, 2, ("10.0.0.1", 7001)),)),
]


@pytest.mark.parametrize(("reply", "ranges"), MAPS)
def test_maps(reply: Any, ranges: Any) -> None:
    assert parse_slots(reply, HERE) == ranges


# A command, and the keys that a cluster is told.
GUARDED = [
    (Get(PATH), ["kv:{people}/ada"]),  # its script uses no other key
    (ConditionalGet(PATH, NONE), ["kv:{people}!log", "kv:{people}/ada", "kv:{people}!absent"]),
    (CoalescedGets([Get(PATH)]), ["kv:{people}!log", "kv:{people}!absent"]),
]


@pytest.mark.parametrize(("command", "keys"), GUARDED)
def test_the_keys_that_a_cluster_is_told(command: Any, keys: list[str]) -> None:
    words = guarded_words(command)
    assert list(words[3 : 3 + words[2]]) == keys
    assert words[3 + words[2] :] == command.arguments
