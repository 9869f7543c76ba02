"""The names under which the service answers, so that no web page reaches it by a name that it points at this machine.

A page on `http://evil.example` can have its name resolve to 127.0.0.1 (DNS rebinding). For the browser the service is then of
the page's own origin, and neither CORS nor Sec-Fetch-Site stops it. Only `Host` still says which name the browser asked.
Sources: RFC 9110 sections 7.2 (Host) and 15.5.20 (421).
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

from kvstore.core.errors import MisdirectedRequest
from kvstore.core.settings import Settings

MAX_SHOWN = 255  # of a host in a problem: the longest name there is


def check_host(headers: Mapping[str, str], settings: Settings) -> None:
    """Check that a request names a host of this service; raises MisdirectedRequest. No browser leaves Host out."""
    host = headers.get("host")
    if host is not None and not _is_named(host, settings.hosts):
        named = host[:MAX_SHOWN]
        raise MisdirectedRequest(f"this service does not answer for the host {named}; to allow it, add it to KVSTORE_HOSTS")


@lru_cache(maxsize=16)  # clients send the same few again and again; a foreign one may have 32 KiB
def _is_named(host: str, names: frozenset[str]) -> bool:
    return _PORT.sub("", host).lower() in names


_PORT = re.compile(r":[0-9]{1,5}\Z")


def is_loopback(address: object) -> bool:
    """Whether an address that a server listens on is reached from this machine only."""
    try:
        return isinstance(address, str) and (address == "localhost" or ip_address(address).is_loopback)
    except ValueError:
        return False
