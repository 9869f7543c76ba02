"""Slots of a Redis Cluster: which one a key is in, which node has it, and what a node says of one that has moved, or is moving.

Nothing here does I/O. Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ (hash tags,
redirection, resharding), CLUSTER SLOTS.
"""

import re
from binascii import crc_hqx
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from kvstore.commands.base import Command, RedisReply
from kvstore.core.paths import absent_key
from kvstore.stores.execution import Words, evalsha_words

SLOTS = 16_384

Place: TypeAlias = tuple[str, int]  # host and port of a node


class SlotRange(NamedTuple):
    """Slots from `first` to `last`, and the node that has them."""

    first: int
    last: int
    place: Place


class Redirection(NamedTuple):
    """What a node says of a command that it has not run: `kind` is MOVED or ASK, `place` the node to send it to."""

    kind: str
    slot: int
    place: Place


def slot_of(key: str) -> int:
    """Return the slot of a key of ours, which has a hash tag."""
    return _slot_of_tag(key[: key.index("}")])


@lru_cache(maxsize=4096)
def _slot_of_tag(start: str) -> int:
    return crc_hqx(start.partition("{")[2].encode(), 0) % SLOTS  # CRC16 with the polynomial of XMODEM


def guarded_words(command: Command[object]) -> Words:
    """Return the Redis command for a command of ours, with one more key of its slot, which never exists.

    A node that gives a slot away, or takes it over, refuses a command with several keys if it has some of them and not all
    (TRYAGAIN). A script of ours uses keys that it does not name, and must not run while a part of them is on another node: it
    would see no document where there is one. The absent key has each such command refused, before it runs. A script that names
    all of its keys needs no guard.
    """
    if command.script.names_all_keys:
        return evalsha_words(command)
    keys = command.keys
    return ("EVALSHA", command.script.sha, len(keys) + 1, *keys, absent_key(keys[0]), *command.arguments)


_redirection = re.compile(r"(MOVED|ASK) (\d+) (.*):(\d+)").match


def parse_redirection(error: str, answering: Place) -> Redirection | None:
    """Return the redirection that an error of a node is, None for any other error. One without a host is to the same host."""
    if not (found := _redirection(error)):
        return None
    kind, slot, host, port = found.groups()
    return Redirection(kind, int(slot) % SLOTS, (host.replace("?", "") or answering[0], int(port)))


def parse_slots(reply: RedisReply, answering: Place) -> tuple[SlotRange, ...]:
    """Return the ranges in the reply to CLUSTER SLOTS. A node without a name of its own is where the answering one is."""
    return tuple(
        SlotRange(first, last, ((host or b"").decode().replace("?", "") or answering[0], port))
        for first, last, (host, port, *_), *_ in reply
    )
