"""Every limit that a client can meet, as `/_/limits` and docs/http.md show it. Its number is the one that the code goes by."""

import json
from functools import lru_cache
from typing import NamedTuple

from kvstore.access.principal import MAX_TOKEN_BYTES
from kvstore.access.rules import MAX_OWN_ROWS
from kvstore.commands.base import DAY_MS, MAX_PAGE_BYTES
from kvstore.commands.batch import MAX_ATOMIC_WORK, MAX_READ_BYTES
from kvstore.commands.jobs import DEFAULT_ATTEMPTS, MAX_ATTEMPTS, MAX_LEASE_S, MAX_REASON_BYTES
from kvstore.commands.metrics import MAX_QUEUES
from kvstore.commands.presence import HOLD_S
from kvstore.commands.queries import MAX_SORTED_BYTES
from kvstore.commands.scripts import number_in
from kvstore.commands.takers import MAX_NAME_BYTES, MAX_TAKERS
from kvstore.commands.transforms import COPIED_BYTES, COPIED_FACTOR
from kvstore.core import json_text, paths
from kvstore.core.patch import MAX_OPERATIONS, MAX_SHIFTED
from kvstore.core.settings import MIN_SECRET_BYTES, Rate, Settings
from kvstore.http import containers, queries, queues
from kvstore.http.batch import MAX_REQUESTS
from kvstore.http.gate import BAD_TOKENS, NEW_VISITORS
from kvstore.http.messages import MAX_BODY_BYTES, MAX_TARGET_BYTES
from kvstore.http.operations import JSON
from kvstore.http.protocol import MAX_KEY_CHARACTERS
from kvstore.http.static import Static, make_static
from kvstore.http.streams import MAX_HOLDS, MAX_ID_BYTES, MAX_PATHS
from kvstore.live.evaluator import MAX_UNSEEN_WEIGHT
from kvstore.live.hub import MAX_BUFFERED_BYTES, MAX_PARTS
from kvstore.live.metrics import MAX_NAMESPACES
from kvstore.live.readiness import READY_S
from kvstore.live.stream_session import HEARTBEAT_S, PAGE
from kvstore.serving.bounds import (
    BODY_S,
    HEAD_S,
    IDLE_S,
    MAX_FLASK_STREAMS,
    MAX_HEAD_BYTES,
    MAX_LINE_BYTES,
    MAX_UNREAD_BYTES,
    WRITE_S,
)
from kvstore.serving.buffered_stream import PIECE_S
from kvstore.stores.edit_queue import MAX_QUEUED
from kvstore.stores.query_queue import MAX_QUEUED as MAX_QUEUED_QUERIES
from kvstore.stores.query_queue import MAX_RUNNING
from kvstore.stores.redis_clients import MAX_WAITING, MAX_WAITING_BYTES


class Limit(NamedTuple):
    """A row of the table: what it is called, its number (None: any), the unit, and what it limits."""

    name: str
    value: int | None
    unit: str
    meaning: str


def limits(settings: Settings) -> tuple[Limit, ...]:
    """Return all limits of a service with these settings."""
    return (
        Limit("path", paths.MAX_BYTES, "bytes", "a path, decoded, slashes included"),
        Limit("segments", paths.MAX_SEGMENTS, "segments", "a path"),
        Limit("body", MAX_BODY_BYTES, "bytes", "the body of a request"),
        Limit("document", json_text.MAX_BYTES, "bytes", "a document, also one that a patch makes"),
        Limit("depth", json_text.MAX_DEPTH, "levels", "a document"),
        Limit("members", json_text.MAX_MEMBERS, "members", "one object"),
        Limit("digits", json_text.MAX_DIGITS, "digits", "an integer"),
        Limit("ttl", settings.max_ttl_s, "s", "the TTL that a request asks for: `KVSTORE_MAX_TTL`"),
        Limit("default_ttl", settings.default_ttl_s, "s", "the TTL of a document that asks for none"),
        Limit("request_line", MAX_LINE_BYTES, "bytes", "the request line"),
        Limit("header_fields", MAX_HEAD_BYTES, "bytes", "the head of a request"),
        Limit("head_time", int(HEAD_S), "s", "time for the head of a request to arrive"),
        Limit("body_time", int(BODY_S), "s", "time for its body to arrive"),
        Limit("response_time", int(WRITE_S), "s", "time for the client to read a response"),
        Limit("idle_time", int(IDLE_S), "s", "time for which an idle connection stays open"),
        Limit("connections", settings.max_connections, "connections", "each process: `KVSTORE_MAX_CONNECTIONS`"),
        Limit("unread_responses", MAX_UNREAD_BYTES, "bytes", "responses that the clients of a process have not read"),
        Limit("patch_operations", MAX_OPERATIONS, "operations", "a JSON Patch"),
        Limit("patch_copies", COPIED_BYTES, "bytes", "what its `copy` operations copy in all, besides `patch_factor`"),
        Limit("patch_factor", COPIED_FACTOR, "times", "its own bytes that a JSON Patch may copy as well"),
        Limit("patch_shifts", MAX_SHIFTED, "items", "items of arrays that its inserting and removing moves in all"),
        Limit("idempotency_key", MAX_KEY_CHARACTERS, "characters", "an `Idempotency-Key`"),
        Limit("idempotency_time", DAY_MS // 1000, "s", "time for which a key is kept"),
        Limit(
            "replayed_document",
            number_in("idempotent", "MOST_REPLAYED"),
            "bytes",
            "a document that a replay shows although it has changed",
        ),
        Limit("list_items", containers.MAX_LIMIT, "items", "a page of a listing: `?limit=`"),
        Limit("list_default", containers.DEFAULT_LIMIT, "items", "a page of a listing without `?limit=`"),
        Limit("list_bytes", MAX_PAGE_BYTES, "bytes", "the values in a page of a listing, about"),
        Limit(
            "list_members", number_in("_documents", "MOST_MEMBERS"), "members", "the documents in a page of a listing, about"
        ),
        Limit("query_conditions", queries.MAX_CONDITIONS, "conditions", "a query"),
        Limit("query_values", queries.MAX_VALUES, "values", "all conditions `in` of a query together"),
        Limit("query_sort", queries.MAX_SORT, "members", "`?sort=`"),
        Limit("query_fields", queries.MAX_FIELDS, "members", "`?fields=`"),
        Limit("query_sorted_bytes", MAX_SORTED_BYTES, "bytes", "the documents in a sorted page, about"),
        Limit("queries", MAX_RUNNING, "queries", "those of a process that read more than two pieces, at a time"),
        Limit("waiting_queries", MAX_QUEUED_QUERIES, "queries", "what waits in a process for its turn"),
        Limit("batch_requests", MAX_REQUESTS, "requests", "a batch"),
        Limit("batch_target", MAX_TARGET_BYTES, "bytes", "a path with its query in a batch"),
        Limit("batch_responses", MAX_READ_BYTES, "bytes", "the responses of a batch, about"),
        Limit(
            "batch_members", MAX_ATOMIC_WORK, "members", "what an atomic batch reads, about; a member that it writes counts 3"
        ),
        Limit("wait", queues.MAX_WAIT_S, "s", "a long poll, and a take that waits"),
        Limit("takers", MAX_TAKERS, "takers", "those who wait at one container that its listing shows"),
        Limit("taker", MAX_NAME_BYTES, "bytes", "`?as=` of a take"),
        Limit("streams", settings.max_streams, "streams", "each process: `KVSTORE_MAX_STREAMS`"),
        Limit("client_streams", settings.client_streams or None, "streams", "each client: `KVSTORE_CLIENT_STREAMS`"),
        Limit("flask_streams", MAX_FLASK_STREAMS, "streams", "each process of Flask, long polls included"),
        Limit("stream_paths", MAX_PATHS, "paths", "a stream of `/_/follow`: `?path=`"),
        Limit("stream_holds", MAX_HOLDS, "documents", "such a stream: `?hold=`; any other holds one"),
        Limit("stream_id", MAX_ID_BYTES, "bytes", "the id of an event of such a stream"),
        Limit("further_paths", MAX_PARTS, "paths", "each process: what its streams follow besides the first path of each"),
        Limit("stream_unread", MAX_BUFFERED_BYTES, "bytes", "what the reader of a stream may leave unread"),
        Limit(
            "stream_unseen",
            MAX_UNSEEN_WEIGHT,
            "bytes",
            "changes of a namespace that wait to be compared with the conditions of streams, about",
        ),
        Limit("stream_silence", int(HEARTBEAT_S), "s", "time without a word on a stream"),
        Limit("snapshot_items", PAGE, "items", "one event of a snapshot"),
        Limit("snapshot_time", int(PIECE_S), "s", "time to read a part of a snapshot"),
        Limit("hold_time", int(HOLD_S), "s", "time that a held document outlives its process, and up to 2 more"),
        Limit("log_changes", settings.log_length, "changes", "the change log of a namespace: `KVSTORE_LOG_LENGTH`"),
        Limit("log_bytes", number_in("_log", "LOG_BYTES"), "bytes", "the change log of a namespace, about"),
        Limit("waiting_commands", MAX_WAITING, "commands", "what waits for Redis in a process"),
        Limit("waiting_bytes", MAX_WAITING_BYTES, "bytes", "the same"),
        Limit("waiting_edits", MAX_QUEUED, "edits", "what waits in a process to edit one document"),
        Limit("lease", MAX_LEASE_S, "s", "a lease, and the delay of a job that is given back"),
        Limit("take", queues.MAX_LIMIT, "jobs", "one take: `?limit=`"),
        Limit("attempts", MAX_ATTEMPTS, "takes", "`?max_attempts=`"),
        Limit("default_attempts", DEFAULT_ATTEMPTS, "takes", "a job for which no take has named `?max_attempts=`"),
        Limit("reason", MAX_REASON_BYTES, "bytes", "the reason that is kept of a job's failure"),
        _rate("rate", settings.rate, "requests", "each client: `KVSTORE_RATE`"),
        _rate("bad_tokens", BAD_TOKENS, "tokens", "bad tokens of one address"),
        _rate("visitors", NEW_VISITORS, "visitors", "new visitors of one address"),
        Limit("token", MAX_TOKEN_BYTES, "bytes", "a token"),
        Limit("token_rows", MAX_OWN_ROWS, "rows", "the claim `allow` of a token"),
        Limit("secret", MIN_SECRET_BYTES, "bytes", "a secret of `KVSTORE_SECRET`, at least"),
        Limit("metrics_namespaces", MAX_NAMESPACES, "namespaces", "those whose jobs `/_/metrics` counts"),
        Limit("metrics_queues", MAX_QUEUES, "queues", "those of each namespace that it counts"),
        Limit("ready_time", int(READY_S), "s", "time for Redis to answer `/_/ready`"),
    )


def _rate(name: str, rate: Rate | None, what: str, meaning: str) -> Limit:
    if rate is None:
        return Limit(name, None, what, meaning)
    return Limit(name, rate.quota, f"{what} in {rate.window_s} s", meaning)


@lru_cache(maxsize=4)
def limits_text(settings: Settings) -> Static:
    """Return all limits as JSON text."""
    shown = {name: {"value": value, "unit": unit, "meaning": meaning} for name, value, unit, meaning in limits(settings)}
    return make_static(json.dumps(shown, separators=(",", ":")).encode() + b"\n", JSON)
