"""Metrics in Prometheus' text format. Functions of values.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvstore.commands.metrics import JobCounts, MetricsRead, ReadMetrics
from kvstore.core.metrics import BUCKETS, SHOWN_BUCKETS, SUM, UNIT_S, UNTIMED, Numbers
from kvstore.http.cors import answer_options
from kvstore.http.credentials import NO_STORE
from kvstore.http.hosts import is_loopback
from kvstore.http.messages import Request, Response

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Name, type and meaning of what is shown for all workers together; docs/operations.md has the same table.
FAMILIES = {
    "kvstore_requests_total": ("counter", "requests that were answered, by method and class of status"),
    "kvstore_request_seconds": (
        "histogram",
        "time from a request to its response, of one request at a time; none that waited for a change",
    ),
    "kvstore_redis_commands_total": ("counter", "commands that were sent to Redis; several requests may share one"),
    "kvstore_redis_seconds": ("histogram", "time from a command to its reply, of one command at a time"),
    "kvstore_redis_up": ("gauge", "1 if Redis has answered while the metrics were read, otherwise 0"),
    "kvstore_connections": ("gauge", "open connections of clients"),
    "kvstore_streams": ("gauge", "open streams"),
    "kvstore_waits": ("gauge", "requests that wait for a change, or for a job"),
    "kvstore_queries": ("gauge", "queries that are being answered, or wait for that"),
    "kvstore_memory_bytes": ("gauge", "memory of the worker processes, what they share included"),
    "kvstore_workers": ("gauge", "worker processes"),
    "kvstore_jobs": ("gauge", "jobs of each queue, by state"),
}
GAUGES = ("connections", "streams", "waits", "queries", "memory_bytes", "workers")
_LABEL = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


# How the header fields begin that proxies add. One that adds none, and asks for this machine, is not seen (docs/operations.md).
_OF_PROXIES = ("forwarded", "via", "x-real-ip", "x-forwarded-")


def parse_metrics(request: Request) -> ReadMetrics | Response:
    """Return what a request for the metrics asks for; raises MethodNotAllowed."""
    return answer_options(request, "GET, HEAD") or ReadMetrics(_is_local(request))


def _is_local(request: Request) -> bool:
    """Whether a request came from this machine, for this machine, and from no proxy."""
    headers, caller = request.headers, request.caller
    host = re.sub(r":[0-9]*\Z", "", headers.get("host", "localhost")).strip("[]").lower()
    is_direct = is_loopback(host) and not any(name.startswith(_OF_PROXIES) for name in headers)
    return is_direct and caller is not None and is_loopback(caller.address)


def render_metrics(counted: Mapping[str, Any], gauges: Mapping[str, float], *, is_up: bool) -> bytes:
    """Return the text without jobs. `counted` is a snapshot of core/metrics.py; `is_up` says whether Redis has answered."""
    requests = {tuple(name.split(" ")): numbers for name, numbers in sorted(counted["requests"].items())}
    labels = {name: f'method="{name[0]}",status="{name[1]}"' for name in requests}
    lines = {
        "kvstore_requests_total": [(f"{{{labels[name]}}}", _count(numbers)) for name, numbers in requests.items()],
        "kvstore_request_seconds": [line for name, numbers in requests.items() for line in _histogram(labels[name], numbers)],
        "kvstore_redis_commands_total": [("", counted["commands"])],
        "kvstore_redis_seconds": list(_histogram("", counted["redis"])),
        "kvstore_redis_up": [("", int(is_up))],
        **{f"kvstore_{name}": [("", gauges[name])] for name in GAUGES},
    }
    return b"".join(_family(name, values) for name, values in lines.items())


def render_jobs(jobs: Sequence[JobCounts]) -> bytes:
    """Return the text of the jobs."""
    return _family("kvstore_jobs", [line for queue in jobs for line in _jobs(queue)])


def _family(name: str, lines: Sequence[tuple[str, float]]) -> bytes:
    kind, meaning = FAMILIES[name]
    head = f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n"
    return (head + "".join([f"{name}{rest} {_number(value)}\n" for rest, value in lines])).encode()


def _count(numbers: Numbers) -> float:
    return sum(numbers[:BUCKETS]) + numbers[UNTIMED]


def _histogram(labels: str, numbers: Numbers) -> Iterator[tuple[str, float]]:
    """Yield the rest of each line, and its number: buckets count what took less than `le`, which doubles."""
    before = f"{labels}," if labels else ""
    total = 0.0
    for bucket in range(SHOWN_BUCKETS):
        total += numbers[bucket]
        yield f'_bucket{{{before}le="{UNIT_S * 2**bucket:.4f}"}}', total
    timed = sum(numbers[:BUCKETS])
    yield f'_bucket{{{before}le="+Inf"}}', timed
    own = f"{{{labels}}}" if labels else ""
    yield f"_sum{own}", numbers[SUM]
    yield f"_count{own}", timed


def _jobs(counts: JobCounts) -> Iterator[tuple[str, float]]:
    queue, *numbers = counts
    for state, number in zip(JobCounts._fields[1:], numbers, strict=True):
        yield f'{{queue="{queue.translate(_LABEL)}",state="{state}"}}', number


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def render_metrics_read(read: MetricsRead) -> Response:
    """Return the response with the metrics."""
    return Response(200, (("Content-Type", CONTENT_TYPE), *NO_STORE), read.text + read.jobs)
