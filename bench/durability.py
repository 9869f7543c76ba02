"""Measure what durability costs: a write that replicas have, or that is on disk, before it is acknowledged.

Writes results/durability.json. `python -m bench.durability --help` names the options.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import measure
from bench.access import DOCUMENTS, Variant, print_results, run
from bench.inside import WORKERS


def variants(_: Path) -> list[Variant]:
    """What is measured; the first is what the others are compared with. Only the Redis of the first has no replica."""
    return [
        Variant("a Redis alone", {}),
        Variant("a replica", {"KVSTORE_REPLICAS": "0"}),
        Variant("KVSTORE_REPLICAS=1", {"KVSTORE_REPLICAS": "1"}),
        Variant("embedded, KVSTORE_FSYNC=everysec", {"KVSTORE_FSYNC": "everysec"}),
        Variant("embedded, KVSTORE_FSYNC=always", {"KVSTORE_FSYNC": "always"}),
    ]


@contextmanager
def service(directory: Path, variant: Variant) -> Iterator[int]:
    """The service of a variant: the port."""
    directory.mkdir()
    if "KVSTORE_FSYNC" in variant.environment:
        with started(directory, variant, KVSTORE_DATA=str(directory / "data")) as port:
            yield port
        return
    (directory / "replica").mkdir()
    at = measure.free_port()
    with measure.redis_server(directory, "--port", str(at), "--repl-diskless-sync-delay", "0") as (client, socket):
        if not variant.environment:
            with started(directory, variant, REDIS_URL=f"unix://{socket}") as port:
                yield port
            return
        with measure.redis_server(directory / "replica", "--replicaof", f"127.0.0.1 {at}"):
            client.set("begun", 1)
            client.wait(1, 30_000)
            with started(directory, variant, REDIS_URL=f"unix://{socket}") as port:
                yield port


@contextmanager
def started(directory: Path, variant: Variant, **environment: str) -> Iterator[int]:
    """The service with documents 1 to DOCUMENTS: the port."""
    log = directory / "kvstore.log"
    with measure.kvstore(log, WORKERS, **variant.environment, **environment) as (process, port):
        measure.wait_for(lambda: measure.answers(port), process, log)
        for number in range(0, DOCUMENTS, 1000):
            items = (f'{{"method":"PUT","path":"/bench/{number + i + 1}","body":{measure.BODY}}}' for i in range(1000))
            status, answer = measure.ask(port, "POST", "/_/batch", b'{"requests":[%b]}' % ",".join(items).encode())
            assert status == 200, answer
        yield port


def main() -> None:
    measure.main(
        "Measure what durability costs.",
        partial(run, variants, service),
        partial(print_results, "durability"),
        "durability.json",
        needs=["wrk", "redis-server"],
        rounds=measure.Option(7, 1, "turns of every variant"),
        seconds=measure.Option(2, 1, "of every load"),
    )


if __name__ == "__main__":
    main()
