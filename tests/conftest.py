"""Fixtures: the lanes, which are every adapter over every store, each test on an empty one."""

import gc
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import redis
from hypothesis import HealthCheck, settings

from tests.support import wires
from tests.support.clients import ADAPTERS, Checked
from tests.support.faulty import be_patient
from tests.support.lanes import ALL, LANES, Lane, selected
from tests.support.rounds import SEED
from tests.support.stores import STORES, Running, die_with_parent, make_directory

# What waits most begins first, so that no process is left with it in the end.
ROOMS = ("pages", "project", "tasks", "faults", "stores", "serving", "live", "client", "transfer", "http", "unit")


FEW = 3  # rows of a test that is marked `few`, in `make test`
AXES = ("lane", "adapter", "followed", "loop", "db", "store_name")  # the parameters of which `make test` runs a selection


gc.disable()  # what is loaded and collected stays: it is not looked at again with every collection of garbage


def pytest_collection_finish() -> None:
    """Collect garbage from here on."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests; mark as slow the lanes of a test that `make test` leaves to `make test-all`, or leave them out."""
    items.sort(key=lambda item: ROOMS.index(item.path.parent.name))
    tests: dict[str, list[tuple[pytest.Item, Lane, str]]] = {}
    for item in items:
        params: dict[str, Any] = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        for axis in params.keys() & AXES:
            lane = (params[axis],) if isinstance(params[axis], str) else params[axis]
            row = item.nodeid.replace("-".join(lane), "", 1)
            tests.setdefault(item.nodeid.partition("[")[0], []).append((item, lane, row))
    left_out: list[pytest.Item] = []
    for name, cells in tests.items():
        wanted = selected([(lane, row) for _, lane, row in cells], crc32(name.encode()) + SEED)
        for (item, _, _), is_wanted in zip(cells, wanted, strict=True):
            if not is_wanted:
                item.add_marker(pytest.mark.slow)
                if item.get_closest_marker("turns") and not ALL:
                    left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        left_out_ids = {item.nodeid for item in left_out}
        items[:] = [item for item in items if item.nodeid not in left_out_ids]
    few: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            few.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for rows in few.values():
        for index, item in enumerate(rows):
            if index % -(-len(rows) // FEW):
                item.add_marker(pytest.mark.slow)


settings.register_profile(
    "kvstore",
    max_examples=40,
    derandomize=not SEED,  # a run that failed fails again
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("kvstore")


@pytest.fixture(autouse=True)
def _draw(request: pytest.FixtureRequest) -> None:
    """In a round of `make faults` a test draws what its seed says."""
    if SEED:
        random.seed(f"{SEED} {request.node.nodeid}")


@pytest.hookimpl(tryfirst=True)  # before the servers of fixtures are stopped
def pytest_runtest_teardown() -> None:
    """Connections that a test opens end with it."""
    wires.close_all()


PATIENT = (
    "faults",
    "http",
    "live",
    "serving",
    "stores",
)  # rooms whose tests are about something else than how long Redis may take


@pytest.fixture
def real_limits() -> None:
    """For tests of how long Redis may take, and of what becomes of those who wait for it."""


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In most tests what runs in this process waits for Redis for longer than it should.

    A machine that runs other things too may leave twenty threads waiting for a second, which is a right reason for a 503.
    """
    if request.path.parent.name in PATIENT and "real_limits" not in request.fixturenames:
        be_patient(monkeypatch)


@pytest.fixture(scope="session")
def started() -> Iterator[Callable[[str], Running]]:
    """The server of a store's name, started when first asked for and ended with the session."""
    servers: dict[str, Running] = {}
    with ExitStack() as stack:

        def start(name: str) -> Running:
            if name not in servers:
                directory = make_directory()
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                servers[name] = STORES[name](directory)
                stack.callback(servers[name].stop)
            return servers[name]

        yield start


@pytest.fixture(scope="session")
def opened(started: Callable[[str], Running]) -> Iterator[Callable[..., Checked]]:
    """The client of a lane, with settings of its own where given, made when first asked for."""
    clients: dict[object, Checked] = {}

    def open_client(adapter: str, store: str, **environ: str) -> Checked:
        at = (adapter, store, *environ.items())
        if at not in clients:
            clients[at] = Checked(ADAPTERS[adapter](started(store), environ))
        return clients[at]

    yield open_client
    for client in clients.values():
        client.close()


@pytest.fixture(params=LANES, ids="-".join)
def lane(request: pytest.FixtureRequest) -> tuple[str, str]:
    """An adapter and a store."""
    lane: tuple[str, str] = request.param
    return lane


@pytest.fixture
def store(lane: tuple[str, str], started: Callable[[str], Running]) -> Running:
    """The lane's store, empty."""
    running = started(lane[1])
    running.redis.flushall()
    return running


@pytest.fixture
def raw(store: Running) -> redis.Redis:
    """What somebody with redis-cli sees of the lane's store."""
    client: redis.Redis = store.redis
    return client


@pytest.fixture
def client(lane: tuple[str, str], store: Running, opened: Callable[..., Checked]) -> Checked:
    """A client of the lane, on an empty store."""
    return opened(*lane)


@pytest.fixture
def client_with(lane: tuple[str, str], store: Running, opened: Callable[..., Checked]) -> Callable[..., Checked]:
    """A client of the lane with these settings."""
    return lambda **environ: opened(*lane, **environ)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path."""
    path = make_directory()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def browse(directory: Path) -> Iterator[Callable[..., None]]:
    """Opens a page in a browser without a window, with options of its own; skips the test where there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("no chromium on the PATH")
    browsers: list[subprocess.Popen[bytes]] = []

    def open_page(url: str, *more: str) -> None:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        own = [f"--user-data-dir={directory}/browser{len(browsers)}", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [chromium, *options, *own, *more, url],
            env=os.environ | {"HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
        )
        browsers.append(process)

    yield open_page
    for process in browsers:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
