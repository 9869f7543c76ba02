"""Clients of others: a Python client from PyPI, and a browser's own EventSource. They follow, come back, and hold."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from ld_eventsource import SSEClient
from ld_eventsource.config import ConnectStrategy, ErrorStrategy

from tests.support.loops import Loop
from tests.support.serving import start_kvstore
from tests.support.stores import Running, free_ports, wait_until
from tests.support.streams import OwnServer, ask

START_S = 60  # a browser on a busy machine
BACK_S = 60  # it waits up to 5 s before it comes back, as our `retry:` says
GONE_S = 20  # sooner than it would expire
HOLD = "hold=/people/ada&as=%7B%22name%22%3A%22Ada%22%7D"


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


@pytest.mark.slow
def test_a_python_client(served: OwnServer) -> None:
    """launchdarkly-eventsource: it comes back by itself, with the last id that it has."""
    url = "http://{}:{}/room/?{}".format(*served.at, HOLD)
    connect = ConnectStrategy.http(url, urllib3_request_options={"timeout": urllib3.Timeout(30)})
    with SSEClient(connect, error_strategy=ErrorStrategy.always_continue()) as client:
        events = iter(client.events)
        assert next(events).event == "snapshot"
        assert ask(served, "GET", "/people/ada")["name"] == "Ada"
        ask(served, "PUT", "/room/1", [1.0])
        put = next(events)
        assert (put.event, put.last_event_id) == ("put", served.request("GET", "/room/1").tag.strip('"'))
        assert '"path":"/room/1"' in put.data
        assert '"value":[1.0]' in put.data
        client.interrupt()
        wait_until(lambda: served.request("GET", "/people/ada").status == 404, GONE_S)
        ask(served, "PATCH", "/room/1", {"back": True})
        assert next(events).event == "patch", "no snapshot, and nothing missed"
        assert ask(served, "GET", "/people/ada")["name"] == "Ada"
    wait_until(lambda: served.request("GET", "/people/ada").status == 404, GONE_S)


# --- A browser ----------------------------------------------------------------------------------------------------------

PAGE = b"""<!doctype html><title>following</title><script>
const source = new EventSource("/room/?%b")
let told = Promise.resolve()
for (const name of ["snapshot", "put", "patch", "delete", "expire", "reset"])
  source.addEventListener(name, event => {
    const {path, value} = JSON.parse(event.data)
    told = told.then(() => fetch("/seen/", {method: "POST", body: JSON.stringify([name, path, event.lastEventId, value])}))
    if (path == "/room/leave") told.then(() => location.replace("about:blank"))
  })
</script>""" % HOLD.encode()


class Front:
    """What a browser sees as one origin: our page at /page, and the service at everything else."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._loop = Loop()
        self._server = self._loop.run(asyncio.start_server(self._pass, "127.0.0.1", 0))
        self.page = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/page"

    def stop(self) -> None:
        async def close() -> None:
            self._server.close()
            passing = asyncio.all_tasks() - {asyncio.current_task()}
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
            await asyncio.sleep(0.1)  # uvloop closes what they held a turn later

        self._loop.run(close())
        self._loop.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /page "):
                fields = b"Content-Type: text/html\r\nContent-Length: %d\r\nConnection: close" % len(PAGE)
                writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (fields, PAGE))
                return
            reader_on, writer_on = await asyncio.open_connection(*self._to)
            writer_on.write(head)
            await asyncio.gather(_copy(reader, writer_on), _copy(reader_on, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
    writer.close()


@pytest.mark.slow
def test_a_browser(directory: Path, store: Running, served: OwnServer, browse: Callable[[str], None]) -> None:
    """EventSource follows, comes back after a restart of the server with what it has missed, and its page is present."""

    def seen() -> list[list[Any]]:
        return [item["value"] for item in ask(served, "GET", "/seen/")["items"]]

    def is_present() -> bool:
        return served.request("GET", "/people/ada").status == 200

    [port] = free_ports(1)
    serving = start_kvstore(directory, REDIS_URL=store.url, PORT=str(port))
    front = Front(serving.at)
    try:
        ask(served, "PUT", "/room/1", 1)
        browse(front.page)
        wait_until(lambda: len(seen()) == 1, START_S)
        assert [item["value"] for item in seen()[0][3]["items"]] == [1]
        assert is_present()
        tag = served.request("PUT", "/room/1", b"2").tag
        wait_until(lambda: len(seen()) == 2, START_S)
        assert seen()[1] == ["put", "/room/1", tag.strip('"'), 2]

        serving.stop()
        assert not is_present()
        ask(served, "DELETE", "/room/1")
        serving = start_kvstore(directory, REDIS_URL=store.url, PORT=str(port))
        wait_until(lambda: len(seen()) == 3, BACK_S)
        assert seen()[2][:2] == ["delete", "/room/1"]
        wait_until(is_present, BACK_S)

        ask(served, "PUT", "/room/leave", True)
        wait_until(lambda: len(seen()) == 4, START_S)
        wait_until(lambda: not is_present(), GONE_S)
    finally:
        serving.kill()
        front.stop()
