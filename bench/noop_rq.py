"""A task that does nothing, by RQ, under the Python of a venv that has it: see bench.jobs."""

import json
import os
import sys
import time

from redis import Redis
from rq import Queue
from rq.registry import FinishedJobRegistry


def noop() -> None:
    """Nothing."""


def run(queue: Queue, jobs: int) -> tuple[float, float]:
    """The seconds until all were queued, and until all were done."""
    finished = FinishedJobRegistry(queue=queue)
    before = finished.count
    begun = time.perf_counter()
    for _ in range(jobs):
        queue.enqueue("noop_rq.noop")
    queued_s = time.perf_counter() - begun
    while finished.count < before + jobs:
        time.sleep(0.01)
    return queued_s, time.perf_counter() - begun


if __name__ == "__main__":
    of_redis = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]))
    run(of_redis, 1)
    print(json.dumps(run(of_redis, int(sys.argv[1]))))
