"""The board: memory that the worker processes of one machine share, in which each shows its numbers every second.

The parent makes it before the workers, and gives each worker a slot. A worker that follows another in a slot goes on counting
from the numbers there, so that no sum goes down when a worker is restarted. A slot has two halves, which are written in turns:
who reads one has a second for it. Source: mmap(2).
"""

import json
import mmap
from typing import Any

from kvstore.core.metrics import add_snapshot

SLOTS = 160  # at most 64 workers, and as many that end while a new configuration is loaded
HALF = 32 * 1024  # of a slot: about 10 KiB are written
_NONE = 255  # in place of the half that holds the numbers
_HEAD = 8  # bytes of a slot before its halves: which half holds the numbers, and whether a worker has the slot


class Board:
    """All slots, and the one of this process."""

    def __init__(self, slots: int = SLOTS) -> None:
        self._size = _HEAD + 2 * HALF
        self._memory = mmap.mmap(-1, slots * self._size)
        self._slots = slots
        self._own: int | None = None
        self._base: dict[str, Any] | None = None  # what those before this process have counted
        for slot in range(slots):
            self._memory[slot * self._size] = _NONE

    def claim(self) -> int | None:
        """Give away a slot, None if there is none. Only the parent calls this."""
        free = (slot for slot in range(self._slots) if not self._memory[slot * self._size + 1])
        slot = next(free, None)
        if slot is not None:
            self._memory[slot * self._size + 1] = 1
        return slot

    def free(self, slot: int) -> None:
        """Take a slot back whose process has ended. What it has counted stays."""
        self._memory[slot * self._size + 1] = 0

    def use(self, slot: int) -> None:
        """Show the numbers of this process in a slot from now on."""
        self._own, self._base = slot, self._read(slot)

    def show(self, numbers: dict[str, Any]) -> None:
        """Show the numbers of this process, to which those of the processes before it are added."""
        if self._own is None:
            return
        if self._base:
            add_snapshot(numbers, self._base)
        text = json.dumps(numbers, separators=(",", ":")).encode()
        if len(text) > HALF - 4:
            return
        at = self._own * self._size
        half = 0 if self._memory[at] else 1
        begin = at + _HEAD + half * HALF
        self._memory[begin : begin + 4 + len(text)] = len(text).to_bytes(4, "little") + text
        self._memory[at] = half

    def others(self) -> list[dict[str, Any]]:
        """Return what the other processes show; those that have ended have no `gauges`."""
        found = []
        for slot in range(self._slots):
            if slot != self._own and (numbers := self._read(slot)):
                if not self._memory[slot * self._size + 1]:
                    numbers["gauges"] = {}
                found.append(numbers)
        return found

    def _read(self, slot: int) -> dict[str, Any] | None:
        at = slot * self._size
        half = self._memory[at]
        if half == _NONE:
            return None
        begin = at + _HEAD + half * HALF
        size = int.from_bytes(self._memory[begin : begin + 4], "little")
        numbers: dict[str, Any] = json.loads(self._memory[begin + 4 : begin + 4 + size])
        return numbers
