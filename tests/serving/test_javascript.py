"""The module /_/kvstore.js in Node, against a real server: its verbs, what it sends again, and what it follows."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from tests.support.access import as_toml
from tests.support.browser import Browser, Driver
from tests.support.serving import start_kvstore
from tests.support.stores import Running, die_with_parent, free_ports, wait_until
from tests.support.streams import OwnServer, ask
from tests.support.tokens import SECRET, in_s, signed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("node"), reason="no node on the PATH")]

MODULE = Path(kvstore.__file__).parent / "serving" / "pages" / "kvstore.js"
CLIENT = Path(__file__).parents[2] / "clients" / "js"
MOST_BYTES = 12_000
LIMIT_S = 20
SCRIPT_S = 120  # for a whole script, beside other tests

# What the scripts have: the module, a client, and fetch() as a network that fails.
PRELUDE = """
import {connect, Problem} from "%s"
const [url, token] = process.argv.slice(2)
const store = connect(url, {token})
const sent = []  // requests, as [method, target, header fields, status]
const network = globalThis.fetch
let fails = () => ""  // "before" the request reaches the service, "after" it, "within" the response, or "" for never
globalThis.fetch = async (target, init = {}) => {
  const how = fails(init.method ?? "GET", String(target))
  const entry = [init.method ?? "GET", String(target).slice(url.length), Object.fromEntries(init.headers ?? []), 0]
  sent.push(entry)
  if (how === "before") throw new TypeError("cut before")
  const answer = await network(target, init)
  entry[3] = answer.status
  if (how === "after") {
    await answer.arrayBuffer()
    throw new TypeError("cut after")
  }
  if (how === "within") {
    const begun = new Uint8Array(await answer.arrayBuffer(), 0, 2)
    const cut = new ReadableStream({start: body => (body.enqueue(begun), setTimeout(() => body.error(new TypeError("cut"))))})
    return new Response(cut, {status: answer.status, headers: answer.headers})
  }
  return answer
}
const once = how => () => { fails = () => ""; return how }
const name = async promise => { try { return await promise } catch (problem) { return problem.name } }
const until = async holds => { while (!holds()) await new Promise(resolve => setTimeout(resolve, 5)) }
const hasten = (times = 4) => {
  const wait = globalThis.setTimeout
  globalThis.setTimeout = (call, ms) => wait(call, ms / times)
}
const say = value => console.log(JSON.stringify(value))
"""


@pytest.fixture
def store(started: Callable[[str], Running]) -> Running:
    """A Redis, empty."""
    running = started("redis")
    running.redis.flushall()
    return running


@pytest.fixture
def served(store: Running) -> Iterator[OwnServer]:
    """Our own server on it."""
    running = OwnServer(store)
    yield running
    running.stop()


class Node:
    """A script that runs in Node; `said` are the JSON texts that it has printed."""

    def __init__(self, directory: Path, url: str, script: str, *arguments: str) -> None:
        path = directory / f"script{len(list(directory.glob('script*')))}.mjs"
        path.write_text(PRELUDE % MODULE.as_uri() + script, "utf-8")
        self.process = subprocess.Popen(
            ["node", str(path), url, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
        )
        assert self.process.stdout

    def next(self) -> Any:
        """What it prints next."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else pytest.fail(self.process.communicate()[1])

    def end(self) -> list[Any]:
        """Wait until it ends, by itself and without an error, and return what it has printed."""
        try:
            printed, errors = self.process.communicate(timeout=SCRIPT_S)
        finally:
            self.kill()
        assert self.process.returncode == 0, errors
        return [json.loads(line) for line in printed.splitlines()]

    def kill(self) -> None:
        """End it now."""
        self.process.kill()
        if self.process.stdout and not self.process.stdout.closed:
            self.process.communicate()


@pytest.fixture
def run(directory: Path, served: OwnServer) -> Callable[..., list[Any]]:
    """Runs a script in Node to its end; what it has printed."""
    return lambda script, *arguments: Node(directory, "http://{}:{}".format(*served.at), script, *arguments).end()


def test_it_is_small() -> None:
    """Before compression, as it is written: there is no build step."""
    assert len(MODULE.read_bytes()) <= MOST_BYTES


def test_the_package() -> None:
    """It has the version of the service, what it copies is there, and its types name what a client has, and nothing else."""
    package = json.loads((CLIENT / "package.json").read_text("utf-8"))
    assert package["version"] == kvstore.__version__
    copied = package["scripts"]["prepack"].split()[1:-1]
    assert [(CLIENT / path).resolve().name for path in copied if (CLIENT / path).exists()] == [
        "kvstore.js",
        "tabs.js",
        "LICENSE",
    ]
    assert (CLIENT / copied[0]).resolve() == MODULE
    assert package["files"] == ["kvstore.js", "tabs.js", "kvstore.d.ts"]
    assert set(re.findall(r"import\(\"./([a-z.]+)", MODULE.read_text("utf-8"))) == {"tabs.js"}


def test_the_types(run: Callable[..., list[Any]]) -> None:
    """They name what a client has, and what the module exports, and nothing else."""
    types = (CLIENT / "kvstore.d.ts").read_text("utf-8")
    store = types.partition("export interface Store {")[2].partition("\n}\n")[0]
    [methods, exported] = run(
        "say(Object.keys(store).sort()); say(Object.keys(await import(%s)).sort())" % json.dumps(MODULE.as_uri())
    )
    assert sorted(set(re.findall(r"^  (\w+)[<(]", store, re.MULTILINE))) == methods
    assert sorted(re.findall(r"^export (?:function|class) (\w+)", types, re.MULTILINE)) == exported


VERBS = """
const {etag, ...put} = await store.put("/t/a", {a: 1}, {ttl: "5m"})
say(put)
say((await store.get("/t/a")).etag === etag)
say(await store.get("/t/none"))
const patched = await store.patch("/t/a", {b: {".sv": {increment: 2}}})
say([patched.value, (await store.patch("/t/a", [{op: "remove", path: "/a"}])).value])
say((await store.patch("/t/a", undefined, {ttl: 33})).ttl)
const text = await store.put("/t/text", "x", {ttl: 90})
say([text.value, text.ttl > 60 && text.ttl <= 91])
const posted = await store.post("/t/log", {at: {".sv": "timestamp"}})
say([posted.path.startsWith("/t/log/"), typeof posted.value.at, (await store.get(posted.path)).value.at === posted.value.at])
say([await store.delete(posted.path), await store.delete(posted.path), await store.delete("/t/log/", {recursive: true})])
const problem = await store.put("/t/a", 1, {ifNoneMatch: "*"}).catch(problem => problem)
say([problem instanceof Problem, problem.name, problem.status, problem.current, problem.etag !== etag])
say([await name(store.put("/t/a", 1, {ttl: "x"})), await name(store.get("/t//a"))])
for (const path of ["/t/../a", "/t/%2e", "t"]) say(await name((async () => store.get(path))()))
await store.put("/t/c?d #\\\\e %20", 1)
const names = []
for await (const item of store.list("/t/")) names.push(item.name)
say(names)
await store.batch(Array.from({length: 1000}, (_, n) => ({method: "PUT", path: `/many/${n}`, body: n})))
await store.batch(Array.from({length: 500}, (_, n) => ({method: "PUT", path: `/many/a/${n}`, body: n})))
const count = async listing => { let n = 0; for await (const _ of listing) n++; return n }
for (const [path, options] of [["/many/"], ["/many/", {recursive: true}], ["/many/", {limit: 7}], ["/"]]) {
  const before = sent.length
  say([await count(store.list(path, options)), sent.length - before])
}
const answers = await store.batch([{method: "GET", path: "/t/text"}, {method: "GET", path: "/x"}], {atomic: false})
say(answers.map(each => each.status))
say([(await store.update("/t/n", n => n + 1, {default: 0})).value, (await store.update("/t/n", n => n + 1)).value])
const {path} = await store.post("/jobs/", {task: 1})
const [job, ...others] = await store.take("/jobs/", {limit: 5})
say([job.path === path, job.value, job.attempts, others, await store.take("/jobs/")])
await job.renew("60s")
await job.release()
const [again] = await store.take("/jobs/", {lease: 60})
say([again.attempts, await name(job.done()), await store.done(again), await again.done()])
const waiting = store.take("/jobs/", {wait: 20, as: {name: "ada"}})
let takers
while (!takers) ({takers} = await (await network(url + "/jobs/")).json())
await store.post("/jobs/", 2)
say([takers.map(each => each.as), (await waiting).map(each => each.value)])
"""


def test_the_verbs(run: Callable[..., list[Any]]) -> None:
    """Their results and problems, as docs/javascript.md has them."""
    assert run(VERBS) == [
        {"path": "/t/a", "value": {"a": 1}, "ttl": 300},
        True,
        None,
        [{"a": 1, "b": 2}, {"b": 2}],
        33,
        ["x", True],
        [True, "number", True],
        [True, False, 0],
        [True, "PreconditionFailed", 412, {"b": 2}, True],
        ["InvalidTTL", "InvalidPath"],
        *["TypeError"] * 3,
        ["a", "c%3Fd%20%23%5Ce%20%20", "text"],
        *([1001, 2], [1500, 2], [7, 1], [2, 1]),
        [200, 404],
        [1, 2],
        [True, {"task": 1}, 1, [], []],
        [2, "PreconditionFailed", True, False],
        [[{"name": "ada"}], [2]],
    ]


def test_a_question(run: Callable[..., list[Any]]) -> None:
    """What matches, over several pages, in the order that is asked for; or how many."""
    assert run(
        """
        const all = Array.from({length: 1200}, (_, n) => ({method: "PUT", path: `/q/${n}`, body: {n, odd: n % 2}}))
        await store.batch(all.slice(600))
        await store.batch(all.slice(0, 600))
        await store.put("/q/below/a", {n: 7, odd: 1})
        const found = async question => {
          const numbers = []
          for await (const {value} of store.query("/q/", question)) numbers.push(value.n)
          return numbers
        }
        const odd = {where: {odd: {eq: 1}}}
        const numbers = await found(odd)
        say([numbers.length, numbers.every(n => n % 2), (await found({...odd, recursive: true})).length])
        say(await found({where: {n: {gte: 1196}, odd: {eq: 1}}, sort: ["-n"], fields: ["n"]}))
        const sorted = await found({sort: ["-n"], limit: 1150})
        say([sorted.length, sorted.every((n, i) => n === 1199 - i)])
        say([(await found({...odd, limit: 3})).length, await store.query("/q/", {...odd, count: true})])
        say([await name(found({where: 1})), await store.list("/q/", {count: true})])
        """
    ) == [
        [600, True, 601],
        [1199, 1197],
        [1150, True],
        [3, 600],
        ["InvalidDocument", 1200],
    ]


# What is sent, how the network fails, how often it is sent, whether with an Idempotency-Key, and what comes of it.
AGAIN: list[tuple[str, str, int, bool, Any]] = [
    ("store.get('/a/n')", "before", 2, False, {"n": 1}),
    ("store.get('/a/n')", "within", 2, False, {"n": 1}),
    ("store.query('/a/', {where: {n: {eq: 1}}}).next().then(({value}) => value)", "within", 2, False, {"n": 1}),
    ("store.put('/a/n', {n: 2})", "after", 2, False, {"n": 2}),
    ("store.put('/a/n', {n: {'.sv': {increment: 1}}})", "after", 2, True, {"n": 2}),
    ("store.patch('/a/n', {n: 5})", "after", 2, False, {"n": 5}),
    ("store.patch('/a/n', {n: {'.sv': {increment: 1}}})", "after", 2, True, {"n": 2}),
    ("store.patch('/a/n', [{op: 'add', path: '/m', value: 1}])", "after", 2, True, {"n": 1, "m": 1}),
    ("store.post('/a/', {n: 7})", "after", 2, True, {"n": 7}),
    ("store.post('/b/', {n: 7})", "within", 2, True, {"n": 7}),
    ("store.put('/a/n', {n: 2}, {ifMatch: tag})", "before", 2, False, {"n": 2}),
    ("store.put('/a/n', {n: 2}, {ifMatch: tag})", "after", 2, False, "ResponseLost"),
    ("store.put('/a/n', {n: 2}, {ifMatch: '\"1-0\"'})", "", 1, False, "PreconditionFailed"),
    ("store.put('/a/n', {n: 2}, {ifMatch: tag, idempotencyKey: 'k'})", "after", 2, True, {"n": 2}),
    ("store.update('/a/n', ({n}) => ({n: n + 1}))", "after", 3, False, {"n": 2}),  # it reads first
    ("store.batch([{method: 'PUT', path: '/a/n', body: 3}]).then(all => ({value: all.length}))", "after", 2, False, 1),
    ("store.batch([{method: 'POST', path: '/a/', body: 3}]).then(all => ({value: all.length}))", "after", 2, True, 1),
    ("store.batch([{method: 'POST', path: '/a/', body: 3}], {atomic: false})", "after", 1, False, "ResponseLost"),
]


def test_what_is_sent_again(run: Callable[..., list[Any]]) -> None:
    """A write that a lost response leaves open is applied once. One that is the same twice has no key; one in doubt says so."""
    script = "hasten()" + "".join(
        f"""
        const tag{at} = (await store.put("/a/n", {{n: 1}})).etag
        await (async tag => {{
          sent.length = 0
          fails = once({json.dumps(how)})
          const found = await name({asked})
          say([sent.length, sent.every(([, , fields]) => "idempotency-key" in fields), found.value ?? found])
        }})(tag{at})
        """
        for at, (asked, how, *_) in enumerate(AGAIN)
    )
    script += """
        let count = 0
        for await (const {value} of store.list("/a/")) if (value.n === 7) count++
        say(count)
        """
    *found, appended = run(script)
    assert [(asked, *each) for (asked, *_), each in zip(AGAIN, found, strict=True)] == [
        (asked, count, has_key, value) for asked, _, count, has_key, value in AGAIN
    ]
    assert appended == 1


def test_what_is_refused(run: Callable[..., list[Any]]) -> None:
    """A refusal is thrown at once; one that will pass is waited for, and a network that stays away is a problem."""
    assert run(
        """
        hasten()
        const refusing = globalThis.fetch
        const answers = status => {
          let left = 2
          const refuse = () => new Response('{"type":"urn:kvstore:x","detail":"d"}', {status})
          globalThis.fetch = async (...asked) => (left-- > 0 ? refuse() : refusing(...asked))
        }
        for (const status of [429, 502, 503, 504]) { answers(status); say((await store.put("/a/1", status)).value) }
        for (const status of [400, 403, 404, 409, 500, 507]) { answers(status); say(await name(store.put("/a/1", status))) }
        answers(503); say(await name(store.batch([{method: "POST", path: "/a/", body: 1}], {atomic: false})))
        const abort = new AbortController()
        globalThis.fetch = async () => { abort.abort(); throw new TypeError("no network") }
        say(await name(store.get("/a/1", {signal: abort.signal})))
        say(await name(store.update("/a/1", Number, {signal: abort.signal})))
        for (const text of ["<h1>No</h1>", "null", "[1]", '{"type":3}', '{"type":"about:blank"}']) {
          globalThis.fetch = async () => new Response(text, {status: 403})
          await store.get("/a/1").catch(({name, status, detail}) => say([name, status, detail]))
        }
        """
    ) == [
        *(429, 502, 503, 504),
        *["X"] * 7,
        *["AbortError"] * 2,
        *[[name, 403, "the status is 403"] for name in ("HttpError", "HttpError", "HttpError", "3", "Blank")],
    ]


def test_documents_that_look_like_requests(run: Callable[..., list[Any]]) -> None:
    """The members of a document are its own, whatever their names."""
    assert run(
        """
        for (const value of [{requests: [null], atomic: false}, {requests: 5, map: 1}, {map: {}, length: 1}, "map", [], null]) {
          await store.put("/a/1", value)
          const {value: patched} = await store.patch("/a/1", {map: 2, atomic: false})
          sent.length = 0
          say([(await store.post("/a/", value)).value, patched.map, "idempotency-key" in sent[0][2]])
        }
        """
    ) == [
        [{"requests": [None], "atomic": False}, 2, True],
        [{"requests": 5, "map": 1}, 2, True],
        [{"map": {}, "length": 1}, 2, True],
        ["map", 2, True],
        [[], 2, True],
        [None, 2, True],
    ]


def test_a_stream_that_does_not_come(run: Callable[..., list[Any]]) -> None:
    """One that is refused for a while, ends at once, or stays silent is opened again, and the client says that it is behind."""
    assert run(
        """
        hasten(50)
        const silent = signal => ({start: body => signal.addEventListener("abort", () => body.error(signal.reason))})
        const answers = [
          () => new Response("", {status: 503}),
          () => new Response('{"type":"urn:kvstore:too-many-requests"}', {status: 429}),
          () => new Response(""),
          (_, {signal}) => new Response(new ReadableStream(silent(signal))),
          () => { throw new TypeError("no network") },
        ]
        const real = globalThis.fetch
        globalThis.fetch = async (...asked) => (answers.length ? answers.shift()(...asked) : real(...asked))
        const said = []
        const client = connect(url, {onBehind: isBehind => said.push(isBehind)})
        const following = client.follow("/a/1", {onEvent: ({type}) => said.push(type)})
        await until(() => said.length === 3)
        following.close()
        say(said)
        """
    ) == [[True, "snapshot", False]]


def test_a_callback_that_fails(run: Callable[..., list[Any]]) -> None:
    """It is reported as any error of a page is, and the stream goes on."""
    assert run(
        """
        let errors = 0
        process.on("uncaughtException", () => errors++)
        const client = connect(url, {onBehind() { throw new Error("of the page") }})
        const values = []
        const following = client.follow("/a/1", {onEvent({value}) { values.push(value); throw new Error("of the page") }})
        await until(() => values.length === 1)
        await store.put("/a/1", 1)
        await store.put("/a/1", 2)
        await until(() => values.length === 3)
        following.close()
        say([values, errors, sent.filter(([, target]) => target.startsWith("/_/follow")).length])
        """
    ) == [[[None, 1, 2], 4, 1]]


# Updates by ten clients, so many by each.
COUNT = """
const clients = Array.from({length: 10}, () => connect(url))
await Promise.all(clients.map(async client => {
  for (let n = 0; n < times; n++) await client.update("/counter", value => value + 1, {default: 0})
}))
"""


def test_updates_of_one_document_by_ten_clients(run: Callable[..., list[Any]], served: OwnServer) -> None:
    """1,000 of them: each counts once."""
    run("const times = 100\n" + COUNT)
    assert ask(served, "GET", "/counter") == 1000


def test_an_update_of_another_clients_hash(run: Callable[..., list[Any]], served: OwnServer, store: Running) -> None:
    """It has no entity-tag; who writes meanwhile is not overwritten all the same."""
    store.redis.hset("kv:{t}/foreign", "n", "1")
    run(
        """
        let tries = 0
        await store.update("/t/foreign", async ({n}) => {
          if (!tries++) await connect(url).put("/t/foreign", {n: 10})
          return {n: n + 1}
        })
        """
    )
    assert ask(served, "GET", "/t/foreign")["n"] == 11


FOLLOWING = """
const seen = []
for await (const event of store.follow("/room/")) {
  say([event.type, event.path, event.value])
  if (event.path === "/room/end") break
}
"""


def test_following_through_a_kill(directory: Path, store: Running) -> None:
    """Writes go on and the stream comes back while the server is killed and started: every change once, in order."""
    [port] = free_ports(1)
    serving = start_kvstore(directory, REDIS_URL=store.url, PORT=str(port))
    url = f"http://127.0.0.1:{port}"
    follower = Node(directory, url, FOLLOWING)
    try:
        assert follower.next() == ["snapshot", "/room/", {"items": []}]
        writer = Node(
            directory,
            url,
            """
            for (let n = 0; n < 400; n++) {
              await store.put("/room/n", n)
              if (n === 100 || n === 250) say(n)
              await new Promise(resolve => setTimeout(resolve, 1))
            }
            await store.put("/room/end", true)
            """,
        )
        for at in (100, 250):
            assert writer.next() == at
            serving.kill()
            serving = start_kvstore(directory, REDIS_URL=store.url, PORT=str(port))
        writer.end()
        told = follower.end()
    finally:
        follower.kill()
        serving.kill()
    assert told[-1] == ["put", "/room/end", True]
    numbers = [value for _, path, value in told if path == "/room/n"]
    assert list(dict.fromkeys(numbers)) == list(range(400))
    assert numbers == sorted(numbers)
    assert len(numbers) <= 402, "one that was sent again is told twice"
    assert {kind for kind, *_ in told} == {"put"}, "no snapshot, no reset"


def test_one_stream_for_all(run: Callable[..., list[Any]], served: OwnServer) -> None:
    """What is followed later joins the stream: it begins with a snapshot, and the others go on without one."""
    found = run(
        """
        const events = []
        const take = label => ({onEvent: ({type, path, value}) => events.push([label, type, path, value])})
        await store.put("/b/1", 0)
        const a = store.follow("/a/", take("a"))
        await until(() => events.length === 1)
        await store.put("/a/1", 1)
        const hold = store.hold("/people/ada", {n: 1})
        const b = store.follow("/b/1", take("b"))
        store.follow("/a/", {recursive: true, ...take("again")})
        await until(() => events.length === 4)
        say((await store.get("/people/ada")).value)
        await store.put("/a/2", 2)
        await store.put("/b/1", 3)
        await until(() => events.length === 7)
        hold.close()
        await until(() => sent.filter(([, target]) => target.startsWith("/_/follow")).length === 3)
        await store.put("/b/1", 4)
        await until(() => events.length === 8)
        say(events.filter(([label]) => label === "a"))
        say(events.filter(([label]) => label === "b"))
        say(events.filter(([label]) => label === "again").map(([, type, path]) => [type, path]))
        const gone = async () => (await store.get("/people/ada")) === null
        while (!(await gone()));
        process.exit()
        """
    )
    assert found == [
        {"n": 1},
        [["a", "snapshot", "/a/", {"items": []}], ["a", "put", "/a/1", 1], ["a", "put", "/a/2", 2]],
        [["b", "snapshot", "/b/1", 0], ["b", "put", "/b/1", 3], ["b", "put", "/b/1", 4]],
        [["snapshot", "/a/"], ["put", "/a/2"]],
    ]
    assert served


def test_a_live_map(run: Callable[..., list[Any]]) -> None:
    """The documents directly below a container, by name and in order, as they change; or all below it."""
    assert run(
        """
        await store.put("/room/b", 1)
        await store.put("/room/deep/x", 2)
        const room = store.map("/room/"), all = store.map("/room/", {recursive: true})
        await Promise.all([room.ready, all.ready])
        say([[...room], [...all]])
        await store.put("/room/a%20c", {n: 1})
        await store.patch("/room/a%20c", {m: 2})
        await store.put("/room/deep/y", 3)
        await store.delete("/room/b")
        await until(() => !all.has("b") && !room.has("b"))
        say([[...room], [...all], room.size, room.get("a%20c").m])
        room.close()
        all.close()
        """
    ) == [
        [[["b", 1]], [["b", 1], ["deep/x", 2]]],
        [[["a%20c", {"n": 1, "m": 2}]], [["a%20c", {"n": 1, "m": 2}], ["deep/x", 2], ["deep/y", 3]], 1, 2],
    ]


def test_a_live_map_of_a_query(run: Callable[..., list[Any]]) -> None:
    """The documents that match, as they come and leave; all conditions of a page go over its one stream."""
    assert run(
        """
        await store.put("/people/ada", {born: 1815})
        await store.put("/people/deep/x", {born: 1})
        const events = []
        const old = store.map("/people/", {query: "born:lt=1850&name:ne=a%26b", onChange: ({type}) => events.push(type)})
        const query = new URLSearchParams({"born:gte": 1850, fields: "name"})
        const young = store.map("/people/", {recursive: true, query})
        await Promise.all([old.ready, young.ready])
        say([[...old], [...young]])
        await store.put("/people/grace", {name: "Grace", born: 1906})
        await store.patch("/people/ada", {name: "a&b"})
        await store.patch("/people/deep/x", {born: 1900})
        await until(() => young.size === 2 && !old.size)
        say([[...young], events])
        old.close()
        young.close()
        """
    ) == [
        [[["ada", {"born": 1815}]], []],
        [[["deep/x", {}], ["grace", {"name": "Grace"}]], ["snapshot", "leave", "leave"]],
    ]


def test_lines_of_unicode(run: Callable[..., list[Any]]) -> None:
    """U+2028 and U+2029 end a line of JavaScript, and none of a stream."""
    found = run(
        """
        const text = "one\\u2028two\\u2029three"
        await store.put("/ns/a", text)
        const events = store.follow("/ns/a")[Symbol.asyncIterator]()
        const {value: snapshot} = await events.next()
        await store.put("/ns/a", text + text)
        const {value: put} = await events.next()
        say([snapshot.value === text, put.value === text + text])
        process.exit()
        """
    )
    assert found == [[True, True]]


def test_a_long_snapshot(run: Callable[..., list[Any]]) -> None:
    """It is one event, also if what is followed changes while it comes."""
    assert run(
        """
        for (const part of [0, 1]) {
          await store.batch(Array.from({length: 1000}, (_, n) => ({method: "PUT", path: `/many/${part}${n}`, body: n})))
        }
        const snapshots = []
        const onEvent = event => snapshots.push([event.type, event.value.items.length])
        const first = store.follow("/many/", {onEvent})
        await until(() => sent.some(([, target, , status]) => target.startsWith("/_/follow") && status === 200))
        const second = store.follow("/many/", {onEvent})
        await until(() => snapshots.length === 2)
        say(snapshots)
        first.close()
        second.close()
        """
    ) == [[["snapshot", 2000]] * 2]


def test_a_loss(run: Callable[..., list[Any]]) -> None:
    """It is announced with a reset, and a snapshot follows."""
    assert run(
        """
        const types = []
        const following = store.follow("/room/1", {onEvent: ({type, value}) => types.push([type, value])})
        await until(() => types.length === 1)
        fails = (method, target) => target.includes("/_/follow") ? "before" : ""
        const other = store.follow("/room/2", {onEvent() {}})  // opens the stream anew, which fails
        await until(() => sent.filter(([, target]) => target.startsWith("/_/follow")).length > 1)
        const puts = Array.from({length: 1000}, (_, n) => ({method: "PUT", path: "/room/1", body: n}))
        await store.batch(puts, {atomic: false})
        await store.batch(puts, {atomic: false})
        fails = () => ""
        await until(() => types.length >= 3)
        say(types)
        following.close()
        other.close()
        """
    ) == [[["snapshot", None], ["reset", None], ["snapshot", 999]]]


def test_what_may_not_be_followed(directory: Path, store: Running) -> None:
    """It is refused by itself: the iterator throws, the callback is told, and the rest goes on."""
    rules = directory / "rules.toml"
    rules.write_text(as_toml([["/open/**", "user", "user", "user"], ["/people/{sub}", "user", "user", "user"]]), "utf-8")
    served = OwnServer(store, {"KVSTORE_SECRET": SECRET, "KVSTORE_RULES": str(rules)})
    try:
        [found] = Node(
            directory,
            "http://{}:{}".format(*served.at),
            """
            const events = []
            const open = store.follow("/open/", {onEvent: ({type}) => events.push(type)})
            const told = []
            store.follow("/closed/", {onEvent: ({type, problem}) => told.push([type, problem.name, problem.path])})
            const map = store.map("/closed/x/")
            const hold = store.hold("/people/bob", 1, {onEvent: ({type, problem}) => told.push([type, problem.status])})
            const taken = store.follow("/closed/%41")
            const thrown = await name((async () => { for await (const _ of taken); })())
            await until(() => told.length === 2 && events.length === 1)
            await store.put("/open/1", 1)
            await until(() => events.length === 2)
            say([events, told.sort(), thrown, await name(map.ready)])
            const late = connect(url, {token: "no token"}).follow("/open/")
            await name((async () => { for await (const _ of late); })()) === "Unauthorized" && open.close()
            """,
            signed(sub="ada", exp=in_s(600)),
        ).end()
    finally:
        served.stop()
    told = [["refused", 403], ["refused", "Forbidden", "/closed/"]]
    assert found == [["snapshot", "put"], told, "Forbidden", "Forbidden"]


def test_a_path_that_cannot_be_followed(run: Callable[..., list[Any]]) -> None:
    """One that no URL can have is refused at once, and one too many when it is asked for: the others go on."""
    assert run(
        """
        const events = []
        const told = label => ({onEvent: ({type, problem}) => events.push([label, problem?.name ?? type])})
        store.follow("/room/", told("room"))
        await until(() => events.length === 1)
        for (const path of ["/a/%zz", "/a/%ff", "/a/../b", "a"]) say(await name((async () => store.follow(path))()))
        for (let n = 0; n < 99; n++) store.follow(`/many/${n}`, told("many"))
        await until(() => events.length === 100)
        store.follow("/late", told("late"))
        await until(() => events.length === 101)
        say(events.at(-1))
        await store.put("/room/1", 1)
        await until(() => events.length === 102)
        say(events.at(-1))
        process.exit()
        """
    ) == ["URIError", "URIError", "TypeError", "TypeError", ["late", "InvalidParameter"], ["room", "put"]]


def test_being_behind(directory: Path, store: Running) -> None:
    """A client says when it hears nothing, and when it has caught up."""
    [port] = free_ports(1)
    serving = start_kvstore(directory, REDIS_URL=store.url, PORT=str(port))
    script = """
        const client = connect(url, {onBehind: isBehind => say(isBehind)})
        const room = client.map("/room/")
        await until(() => room.get("end"))
        room.close()
        """
    node = Node(directory, f"http://127.0.0.1:{port}", script)
    try:
        assert node.next() is False
        serving.process.send_signal(signal.SIGTERM)
        assert node.next() is True
        serving.stop()
        serving = start_kvstore(directory, REDIS_URL=store.url, PORT=str(port))
        assert node.next() is False
        serving.request("PUT", "/room/end", body=b"1")
        assert node.end() == []
    finally:
        node.kill()
        serving.kill()


# --- In a browser -------------------------------------------------------------------------------------------------------

# A tab: it follows a room, is present in it, and keeps what it hears.
TAB = """
const [who] = arguments
const {connect} = await import("/_/kvstore.js")
window.store = connect(location.origin)
window.events = []
window.streams = 0
const network = window.fetch
window.fetch = (target, ...more) => {
  if (String(target).includes("/_/follow")) window.streams++
  return network(target, ...more)
}
window.kinds = []
window.room = store.map("/room/", {onChange: ({type, value}) => {
  if (type !== window.kinds.at(-1)) window.kinds.push(type)
  if (type === "put") window.events.push(value)
}})
window.hold = store.hold("/people/" + who, who)
await room.ready
return [...room]
"""
MOVE = """
const [from, to] = arguments
for (let n = from; n < to; n++) await store.put("/room/n", n)
"""


class Tabs:
    """The tabs of one browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url

    def show(self) -> str:
        """A new tab on the origin of the service; its handle."""
        handle: str = self._browser.ask("POST", "/window/new", {"type": "tab"})["handle"]
        self._browser.switch_to(handle)
        self._browser.go(self._url + "/_/kvstore.js")
        return handle

    def open(self, who: str, before: str = "") -> str:
        """A new tab that follows, once a script has run; its handle."""
        handle = self.show()
        self._browser.run(before + TAB, who)
        return handle

    def run(self, handle: str, script: str, *arguments: Any) -> Any:
        """Run a script in a tab."""
        self._browser.switch_to(handle)
        return self._browser.run(script, *arguments)

    def wait(self, handle: str, script: str, *arguments: Any) -> Any:
        """Wait for an expression in a tab."""
        self._browser.switch_to(handle)
        return self._browser.wait(script, *arguments)

    def close(self, handle: str) -> None:
        """Close a tab."""
        self._browser.switch_to(handle)
        self._browser.ask("DELETE", "/window")


def people(served: OwnServer) -> list[str]:
    """Who is present."""
    return [item["name"] for item in ask(served, "GET", "/people/")["items"]]


def test_six_tabs(directory: Path, store: Running) -> None:
    """They have one stream. It goes on when the tab that has it is closed, or shows another page, and nothing is missed."""
    served = OwnServer(store, {"KVSTORE_CLIENT_STREAMS": "2"})  # the second one while paths are added
    driver = Driver(directory)
    try:
        tabs = Tabs(driver.open(), "http://{}:{}".format(*served.at))
        handles = [tabs.open(str(number)) for number in range(6)]
        wait_until(lambda: len(people(served)) == 6, LIMIT_S)
        assert [bool(tabs.run(handle, "return window.streams")) for handle in handles] == [True] + [False] * 5

        tabs.run(handles[3], MOVE, 0, 50)
        for handle in handles:
            tabs.wait(handle, "room.get('n') === 49")
        tabs.close(handles[0])  # which leads
        tabs.run(handles[3], MOVE, 50, 100)
        leaders: list[str] = []

        def is_led() -> bool:
            leaders[:] = [each for each in handles[1:] if tabs.run(each, "return window.streams")]
            return bool(leaders)

        wait_until(is_led, LIMIT_S)
        [leader] = leaders
        tabs.run(leader, "location.href = 'about:blank'")
        left = [handle for handle in handles[1:] if handle != leader]
        tabs.run(left[0], MOVE, 100, 150)
        for handle in left:
            tabs.wait(handle, "room.get('n') === 149")
            assert tabs.run(handle, "return window.events") == list(range(150))
        wait_until(lambda: len(people(served)) == 4, LIMIT_S)
        [key] = store.redis.keys("*streams*")
        wait_until(lambda: store.redis.zcard(key) == 1, LIMIT_S)
    finally:
        driver.close()
        served.stop()


def test_updates_of_one_document_by_a_tab(directory: Path, served: OwnServer) -> None:
    """They count in a browser as in Node."""
    driver = Driver(directory)
    try:
        tabs = Tabs(driver.open(), "http://{}:{}".format(*served.at))
        here = 'const {connect} = await import("/_/kvstore.js"), url = location.origin, times = 100\n'
        tabs.run(tabs.show(), here + COUNT)
    finally:
        driver.close()
    assert ask(served, "GET", "/counter") == 1000


# A tab that goes on writing until it is told to stop.
WRITER = """
const {connect} = await import("/_/kvstore.js")
const store = connect(location.origin)
window.written = 0
window.writing = (async () => {
  while (!window.isDone) await store.put("/room/n", window.written++)
  await store.put("/room/n", "end")
})()
"""


def test_tabs_through_a_kill(directory: Path, store: Running) -> None:
    """Two tabs share a stream, a third one writes, while workers and the server are killed: every change once, in order."""
    [port] = free_ports(1)
    environ = {"REDIS_URL": store.url, "PORT": str(port), "KVSTORE_LOG_LENGTH": "100000"}
    serving = start_kvstore(directory, **environ)
    driver = Driver(directory)
    try:
        tabs = Tabs(driver.open(), f"http://127.0.0.1:{port}")
        followers = [tabs.open(who) for who in ("ada", "bob")]
        begun = [tabs.run(follower, "return streams") for follower in followers]
        writer = tabs.show()
        tabs.run(writer, WRITER)

        def go_on() -> None:
            written = tabs.run(writer, "return written")
            for follower in followers:
                tabs.wait(follower, "events.at(-1) > arguments[0] + 50", written)

        go_on()
        for pid in serving.processes():
            if pid != serving.process.pid:  # gunicorn starts others
                os.kill(pid, signal.SIGKILL)
        go_on()
        serving.kill()
        serving = start_kvstore(directory, **environ)
        go_on()
        written = tabs.run(writer, "window.isDone = true; await writing; return written")
        for follower in followers:
            tabs.wait(follower, "events.at(-1) === 'end'")
            *told, _ = tabs.run(follower, "return events")
            assert list(dict.fromkeys(told)) == list(range(written))
            assert told == sorted(told)
            assert len(told) <= written + 2, "one that was sent again is told twice"
            assert tabs.run(follower, "return kinds") == ["snapshot", "put"], "no other snapshot, no reset"
        leader, other = [tabs.run(follower, "return streams") for follower in followers]
        assert leader >= begun[0] + 2, "it came back twice"
        assert (begun[1], other) == (0, 0)
    finally:
        driver.close()
        serving.kill()


# A tab that follows a path, with a token, or with the session's cookie that it asks for with a token.
FOLLOWER = """
const [path, token, isSession] = arguments
const {connect} = await import("/_/kvstore.js")
if (isSession) await fetch("/_/session", {method: "POST", headers: {authorization: `Bearer ${token}`}})
window.events = []
window.store = connect(location.origin, isSession ? {} : {token})
store.follow(path, {onEvent: ({type, problem}) => events.push(problem?.name ?? type)})
while (!events.length) await new Promise(resolve => setTimeout(resolve, 5))
return events
"""


def test_who_shares_a_stream(directory: Path, store: Running) -> None:
    """Tabs with one token, which no name of a lock tells; and those of a session, until there is another one."""
    rules = directory / "rules.toml"
    rules.write_text(as_toml([["/users/{sub}/**", "user", "user", "user"]]), "utf-8")
    served = OwnServer(store, {"KVSTORE_SECRET": SECRET, "KVSTORE_RULES": str(rules)})
    driver = Driver(directory)
    ada, bob = (signed(sub=name, exp=in_s(600)) for name in ("ada", "bob"))
    try:
        tabs = Tabs(driver.open(), "http://{}:{}".format(*served.at))

        def open_tab(*arguments: Any) -> str:
            handle = tabs.show()
            assert tabs.run(handle, FOLLOWER, *arguments) == ["snapshot"]
            return handle

        first, second, other = open_tab("/users/ada/n", ada), open_tab("/users/ada/n", ada), open_tab("/users/bob/n", bob)
        names = tabs.run(other, "return navigator.locks.query().then(({held}) => held.map(each => each.name))")
        groups = [name.split()[1] for name in names]
        assert sorted(map(groups.count, set(groups))) == [2, 3]  # a lock for each tab, and one for who leads
        assert not [name for name in names if ada[-20:] in name or bob[-20:] in name]
        tabs.run(second, "window.dispatchEvent(new PageTransitionEvent('pageshow'))")  # as when a page has been loaded
        tabs.run(first, "return store.put('/users/ada/n', 1)")
        for handle in (first, second):
            tabs.wait(handle, "events.length > 1")
            assert tabs.run(handle, "return store.get('/users/ada/n').then(() => events)") == ["snapshot", "put"]

        before = open_tab("/users/ada/n", ada, True)
        after = open_tab("/users/bob/n", bob, True)
        tabs.wait(before, "events.at(-1) === 'Forbidden'")
        tabs.run(after, "return store.put('/users/bob/n', 1)")
        tabs.wait(after, "events.at(-1) === 'put'")
        assert tabs.run(before, "return events") == ["snapshot", "Forbidden"]
    finally:
        driver.close()
        served.stop()


def test_a_tab_that_cannot_share(directory: Path, served: OwnServer) -> None:
    """Where a browser has no locks, as in pages without TLS, each tab has a stream; in its cache a page has none."""
    driver = Driver(directory)
    try:
        tabs = Tabs(driver.open(), "http://{}:{}".format(*served.at))
        handle = tabs.open("ada", "Object.defineProperty(navigator, 'locks', {value: undefined});")
        assert served.request("GET", "/people/ada").status == 200
        tabs.run(handle, "window.dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
        wait_until(lambda: served.request("GET", "/people/ada").status == 404, LIMIT_S)
        served.request("PUT", "/room/n", b"1")
        tabs.run(handle, "window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
        wait_until(lambda: served.request("GET", "/people/ada").status == 200, LIMIT_S)
        tabs.wait(handle, "room.get('n') === 1")
    finally:
        driver.close()
