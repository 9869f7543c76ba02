"""Measure what access control, rate limits and the log cost: the service with each of them beside the service without.

Writes results/access.json. `python -m bench.access --help` names the options.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import inside, measure
from bench.measure import METHODS
from kvstore.access.tokens import issue
from kvstore.core.settings import read_settings

CONNECTIONS = (32, 128)
DOCUMENTS = 10_000
ROWS = 20
SECRET = {"KVSTORE_SECRET": "a secret of the benchmark, 32 bytes and more".replace(" ", "-")}


Serving = AbstractContextManager[int]  # of the port


class Variant(NamedTuple):
    """The service with some settings, and what each request carries."""

    name: str
    environment: dict[str, str]
    fields: tuple[str, ...] = ()


def variants(directory: Path) -> list[Variant]:
    """What is measured; the first is what the others are compared with."""
    rows: list[list[str]] = [[f"/space{number}/**", "anyone", "user", "role:editor"] for number in range(ROWS - 2)]
    rows += [["/users/{sub}/**", "user", "user", "user"], ["/bench/**", "user", "user", "user"]]  # the last one decides
    rules = directory / "rules.toml"
    rules.write_text(f"rules = {json.dumps(rows)}\n")
    token = issue(read_settings(SECRET), ttl_s=86_400, sub="ada").token
    return [
        Variant("open", {}),
        Variant(f"a token and {ROWS} rules", SECRET | {"KVSTORE_RULES": str(rules)}, (f"Authorization: Bearer {token}",)),
        Variant("a rate limit", {"KVSTORE_RATE": "1000000/s"}),
        Variant("a log, as JSON", {"KVSTORE_LOG": "json"}),
    ]


@contextmanager
def service(directory: Path, variant: Variant) -> Iterator[int]:
    """The service of a variant with documents 1 to DOCUMENTS: the port."""
    with inside.service(directory, **variant.environment) as (client, port, _):
        measure.fill(client, "/bench/@", range(1, DOCUMENTS + 1), measure.BODY.encode())
        yield port


def load(port: int, variant: Variant, method: str, connections: int, seconds: int) -> measure.Load:
    """PUT or GET random documents."""
    arguments = ["/bench/@", str(DOCUMENTS), *([measure.BODY] if method == "PUT" else [])]
    return measure.wrk(port, f"{method.lower()}.lua", connections, seconds, arguments, *variant.fields)


def run(
    variants: Callable[[Path], list[Variant]], serve: Callable[[Path, Variant], Serving], rounds: int, seconds: int
) -> dict[str, Any]:
    """Measure all variants in turns, and return what is saved as JSON."""
    seen: dict[tuple[str, int, str], list[measure.Load]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
        with measure.redis_server(directory) as (client, _):
            facts = measure.machine(client)
        asked = variants(directory)
        ports = [stack.enter_context(serve(directory / str(number), each)) for number, each in enumerate(asked)]
        for number in range(rounds):
            print(f"\r  round {number + 1} of {rounds} ", end="", file=sys.stderr)
            for method in METHODS:
                for connections in CONNECTIONS:
                    for port, variant in zip(ports, asked, strict=True):
                        at = method, connections, variant.name
                        seen.setdefault(at, []).append(load(port, variant, method, connections, seconds))
    print(file=sys.stderr)
    first = asked[0].name
    results = [
        {
            "method": method,
            "connections": connections,
            "with": name,
            "requests_s": round(median(each.requests_s for each in loads)),
            "p99_ms": round(median(each.p99_ms for each in loads), 2),
            "ratio": round(
                median(a.requests_s / b.requests_s for a, b in zip(loads, seen[method, connections, first], strict=True)), 3
            ),
        }
        for (method, connections, name), loads in seen.items()
    ]
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": facts,
        "workers": inside.WORKERS,
        "rounds": rounds,
        "seconds": seconds,
        "variants": results,
    }


def print_results(what: str, results: dict[str, Any]) -> None:
    """Print the table and the machine."""
    print(f"\nWhat {what} costs, medians of {results['rounds']} rounds of {results['seconds']} s")
    print("ratio: to the requests/s of the first in the same round")
    lines = [
        [
            row["with"],
            row["method"],
            str(row["connections"]),
            f"{row['requests_s']:,}",
            f"{row['p99_ms']:.2f}",
            f"{row['ratio']:.2f}",
        ]
        for row in results["variants"]
    ]
    measure.print_table(("with", "method", "connections", "requests/s", "p99 ms", "ratio"), lines, left=2)
    print(f"\n  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Measure what access control costs.",
        partial(run, variants, service),
        partial(print_results, "access"),
        "access.json",
        needs=["wrk"],
        rounds=measure.Option(7, 1, "turns of every variant"),
        seconds=measure.Option(2, 1, "of every load"),
    )


if __name__ == "__main__":
    main()
