"""The names under which the service answers, so that no web page reaches it by a name that it points at this machine.

A page on `http://evil.example` can have its name resolve to 127.0.0.1 (DNS rebinding). For the browser the service is then of
the page's own origin, and neither CORS nor Sec-Fetch-Site stops it. Only `Host` still says which name the browser asked.
Sources: RFC 9110 sections 7.2 (Host) and 15.5.20 (421).
"""

from collections.abc import Mapping
from ipaddress import ip_address

from kvstore.core.errors import MisdirectedRequest
from kvstore.core.settings import MAX_HOST_BYTES, Settings


def check_host(headers: Mapping[str, str], settings: Settings) -> None:
    """Check that a request names a host of this service; raises MisdirectedRequest. No browser leaves Host out."""
    host = headers.get("host")
    if host is not None and not settings.hosts.allow(host):
        named = host[:MAX_HOST_BYTES]
        raise MisdirectedRequest(f"this service does not answer for the host {named}; to allow it, add it to KVSTORE_HOSTS")


def is_loopback(address: object) -> bool:
    """Whether an address that a server listens on is reached from this machine only."""
    try:
        return isinstance(address, str) and (address == "localhost" or ip_address(address).is_loopback)
    except ValueError:
        return False
