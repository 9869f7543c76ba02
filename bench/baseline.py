"""The baseline: the key-value store of the article, written afresh. One wildcard route, a hash for each thing, a year to live.

Each Redis command is a round trip of its own, as there. Run by gunicorn's sync worker; REDIS_URL says which Redis.
"""

import os
from typing import Any

import redis
from flask import Flask, request

YEAR_S = 31_536_000

app = Flask(__name__)
store = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


@app.put("/<path:path>")
def put(path: str) -> tuple[dict[str, Any], int]:
    """Store the members of a JSON object as a hash."""
    thing: dict[Any, Any] = request.get_json(force=True)
    store.hset(path, mapping=thing)
    store.expire(path, YEAR_S)
    return {**thing, "ttl": YEAR_S}, 201


@app.get("/<path:path>")
def get(path: str) -> tuple[dict[str, Any], int]:
    """Read the hash back, integers as integers, with the seconds that are left."""
    found: dict[Any, Any] = store.hgetall(path)
    thing: dict[str, Any] = {name: _coerced(value) for name, value in found.items()}
    if not thing:
        return {"error": "thing doesn't exist"}, 404
    return {**thing, "ttl": store.ttl(path)}, 200


def _coerced(value: str) -> str | int:
    try:
        return int(value)
    except ValueError:
        return value
