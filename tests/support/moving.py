"""Moves slots of a Redis Cluster from node to node, key by key, as redis-cli does. Source: CLUSTER SETSLOT, MIGRATE."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.support.stores import Cluster, connect

KEYS_AT_ONCE = 2  # so that a namespace is in two places for a while
PAUSE_S = 0.002  # after them
REST_S = 0.01  # between two moves


class Mover:
    """The nodes of a cluster that have slots, and what moves a slot from one to the other."""

    def __init__(self, cluster: Cluster) -> None:
        self._ports = [node.port for node in cluster.redis.get_primaries()]
        self._nodes = {port: connect(f"redis://127.0.0.1:{port}") for port in self._ports}
        self._ids = {port: node.execute_command("CLUSTER MYID").decode() for port, node in self._nodes.items()}
        self._owner: Callable[[int], int] = lambda slot: cluster.redis.nodes_manager.get_node_from_slot(slot).port
        self._moved: dict[int, int] = {}
        self.moves = 0

    def owner(self, slot: int) -> int:
        """The port of the node that has a slot."""
        return self._moved.get(slot) or self._owner(slot)

    def move(self, slot: int, target: int) -> None:
        """Give a slot with all its keys to the node on a port."""
        source = self.owner(slot)
        if source == target:
            return
        giving, taking = self._nodes[source], self._nodes[target]
        taking.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self._ids[source])
        giving.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self._ids[target])
        while keys := giving.execute_command("CLUSTER GETKEYSINSLOT", slot, KEYS_AT_ONCE):
            time.sleep(PAUSE_S)
            giving.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
        for node in (taking, giving, *self._nodes.values()):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", self._ids[target])
        self._moved[slot] = target
        self.moves += 1

    @contextmanager
    def moving(self, slots: Sequence[int]) -> Iterator[None]:
        """Move these slots from node to node, one after the other, and back in the end."""
        homes, stopped = {slot: self.owner(slot) for slot in slots}, threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                while not stopped.is_set():
                    for slot in homes:
                        self.move(slot, self._ports[(self._ports.index(self.owner(slot)) + 1) % len(self._ports)])
                        stopped.wait(REST_S)
                for slot, home in homes.items():
                    self.move(slot, home)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
        assert not failed, failed

    def close(self) -> None:
        """Close the connections."""
        for node in self._nodes.values():
            node.close()


def slot_of(cluster: Cluster, namespace: str) -> int:
    """The slot of a namespace, as redis-py reckons it."""
    slot: int = cluster.redis.keyslot("kv:{" + namespace + "}!log")
    return slot
