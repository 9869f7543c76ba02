"""Fixtures: a service, and two browsers that look at it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser, Driver
from tests.support.serving import Served, start_kvstore
from tests.support.stores import make_directory


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory with a short path."""
    path = make_directory()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    """The command `kvstore` with its default settings."""
    service = start_kvstore(place)
    yield service
    service.kill()


@pytest.fixture(scope="module")
def driver(place: Path) -> Iterator[Driver]:
    """What starts browsers."""
    running = Driver(place)
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser(driver: Driver) -> Browser:
    """A browser."""
    return driver.open()


@pytest.fixture(scope="module")
def other(driver: Driver) -> Browser:
    """Somebody else's browser."""
    return driver.open()
