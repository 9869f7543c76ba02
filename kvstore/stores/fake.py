"""The memory that `fake://` means: one for each process, whichever stores of it use it."""

from functools import cache
from typing import Any


@cache
def fake_server() -> Any:
    """The fakeredis server of this process."""
    import fakeredis

    return fakeredis.FakeServer()
