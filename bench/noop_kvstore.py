"""A task that does nothing, by this service: what bench.jobs has its workers run, and the command that queues so many."""

import json
import os
import sys
import time

from flask import Flask
from redis import Redis

from kvstore import queuefunc
from kvstore.commands.jobs import DEAD
from kvstore.core.paths import own_key, parse_path
from kvstore.tasks.decorators import QUEUE

app = Flask(__name__)


@queuefunc
def noop() -> None:
    """Nothing."""


def run(jobs: int) -> tuple[float, float]:
    """The seconds until all were queued, and until all were done."""
    redis = Redis.from_url(os.environ["REDIS_URL"])
    names = own_key(parse_path(QUEUE.encode()), "names")
    begun = time.perf_counter()
    for _ in range(jobs):
        noop.delay()
    queued_s = time.perf_counter() - begun
    while redis.zlexcount(names, "-", f"[{DEAD}"):  # job ids are digits; what lies below the queue sorts after them
        time.sleep(0.01)
    return queued_s, time.perf_counter() - begun


if __name__ == "__main__":
    with app.app_context():
        noop.delay().wait(30)
        print(json.dumps(run(int(sys.argv[1]))))
