"""Rates: how many requests a client may send in a window of time, over all processes.

Redis counts (`charge.lua`), so the quota holds whichever process a connection falls to. A process takes some requests more
than it was asked for, as many as it has served the client in this window and at most a sixteenth of what is left, and admits
those by itself. So a client that sends much costs few calls of Redis, and what a process leaves unused is little. A window
begins with a client's first request. Source: draft-ietf-httpapi-ratelimit-headers-10 (RateLimit, RateLimit-Policy).
"""

from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import NamedTuple

from kvstore.commands.base import Again, Command, Outcome
from kvstore.commands.charges import Charge, Charged
from kvstore.core.errors import TooManyRequests
from kvstore.core.settings import Rate

MAX_CLIENTS = 16_384  # whose windows a process remembers: some 4 MiB. Who is forgotten is counted in Redis all the same

MIN_QUOTA = 100  # of which a process takes some requests ahead; smaller ones are counted to the last


class Quota(NamedTuple):
    """What a client has left: of which policy, how many of how many requests, and until when, in s from now."""

    policy: str
    rate: Rate
    remaining: int
    left_s: int

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The header fields of a response."""
        return (
            ("RateLimit-Policy", f'"{self.policy}";q={self.rate.quota};w={self.rate.window_s}'),
            ("RateLimit", f'"{self.policy}";r={self.remaining};t={self.left_s}'),
        )


class _Window:
    """What a process knows of a client's window. Times are of the monotonic clock, in s."""

    __slots__ = ("ends", "remaining", "served", "spare")

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.spare = 0  # requests that are counted already, and that this process may still admit
        self.served = 0  # requests that this process has admitted
        self.remaining = 1  # requests that nobody has taken, as far as is known


class Rates:
    """The rate of one policy. `detail` is what a client is told whose quota is used up."""

    def __init__(self, policy: str, rate: Rate, detail: str) -> None:
        self._policy = policy
        self._rate = rate
        self._detail = detail
        self._windows: dict[str, _Window] = {}
        self._lock = Lock()

    def admit(self, client: str, cost: int) -> Quota | None:
        """Return a client's quota if this process may admit so many requests itself; None if Redis is to be asked.

        Raises TooManyRequests.
        """
        window = self._windows.get(client)
        if window is None or (now := monotonic()) >= window.ends:
            return None
        if window.spare >= cost:
            window.spare -= cost
            window.served += cost
            return self._quota(window, now)
        if window.remaining == 0 and window.spare == 0:
            raise self._refusal(window, now)
        return None

    def charge(
        self, client: str, cost: int, then: Callable[[Quota], Outcome | Again[Outcome]], command: Command[Outcome] | None = None
    ) -> Charge[Outcome]:
        """Return the command that asks Redis, and goes on with `then(quota)`; its outcome may be TooManyRequests.

        `command` is the one that `then` goes on with.
        """
        window = self._windows.get(client)
        may_take = self._rate.quota >= MIN_QUOTA and window is not None and monotonic() < window.ends
        spare = window.served if window and may_take else 0
        window_ms = 1000 * self._rate.window_s

        def settle(charged: Charged) -> Outcome | Again[Outcome]:
            return then(self._settled(client, cost, charged))

        return Charge(f"{self._policy} {client}", cost, self._rate.quota, window_ms, spare, settle, command)

    def _settled(self, client: str, cost: int, charged: Charged) -> Quota:
        now = monotonic()
        window = self._windows.get(client)
        if window is None or now >= window.ends:
            window = _Window(0.0)
            with self._lock:  # Flask's threads share this
                self._windows.pop(client, None)  # so that it becomes the newest
                if len(self._windows) >= MAX_CLIENTS:
                    del self._windows[next(iter(self._windows))]
                self._windows[client] = window
        window.ends = now + charged.left_ms / 1000
        window.remaining = charged.remaining
        if not charged.is_admitted:
            raise self._refusal(window, now)
        window.spare += charged.spare
        window.served += cost
        return self._quota(window, now)

    def _quota(self, window: _Window, now: float) -> Quota:
        left_ms = round(1000 * (window.ends - now))  # of floating-point times, whose difference may be more than a window
        return Quota(self._policy, self._rate, window.remaining + window.spare, max(1, -(-left_ms // 1000)))

    def _refusal(self, window: _Window, now: float) -> TooManyRequests:
        quota = self._quota(window, now)
        headers = {"Retry-After": str(quota.left_s), **dict(quota.fields)}
        return TooManyRequests(f"{self._detail}; try again in {quota.left_s} s", headers=headers)
