"""The gate: who sends a request, and whether the client may send so much. Before a request is parsed, and after.

It does no I/O. What needs Redis is a command, a Charge; what needs the network is FetchKeys, for the adapter's thread. In open
mode without limits there is no gate; PyJWT is loaded only if there are tokens to verify.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from secrets import token_hex
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from kvstore.access.caller import Caller
from kvstore.access.principal import IssuedToken, Principal, UnknownKey
from kvstore.access.rates import Quota, Rates
from kvstore.commands.base import Again, Command
from kvstore.commands.batch import Batch
from kvstore.commands.bulk import GetMany, PutMany
from kvstore.commands.charges import Charge, StreamPlace
from kvstore.commands.guarded import unwrapped
from kvstore.commands.metrics import ReadMetrics
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core.errors import Unauthorized, unavailable
from kvstore.core.paths import own_path
from kvstore.core.settings import InvalidSetting, Rate, Settings
from kvstore.http.cors import answer_options, check_origin, check_session_origin
from kvstore.http.credentials import NO_STORE, Credentials, bearer_in, credentials_in, render_issued, session_cookie
from kvstore.http.messages import Request, Response

if TYPE_CHECKING:  # PyJWT is loaded where there are tokens
    from kvstore.access.jwks import KeySource
    from kvstore.access.tokens import TokenVerifier

SESSION_PATH, VISITORS_PATH = "/_/session", "/_/visitors"
BAD_TOKENS = Rate(20, 60)  # of one address
NEW_VISITORS = Rate(60, 60)  # of one address: a class of pupils behind one comes in

Outcome = TypeVar("Outcome")
Asked: TypeAlias = Command[Outcome] | LongPoll[Outcome] | Follow | FollowMany | ReadMetrics


class FetchKeys(NamedTuple):
    """The token may be signed with a key that is not here: call `keys.fetch()` in a thread, then decide the request again."""

    keys: "KeySource"


class Gate:
    """What a process needs to know of its callers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._verifier = None if settings.is_open else _open_verifier(settings)
        self._rates = Rates("default", settings.rate, "you have sent too many requests") if settings.rate else None
        self.counts = bool(settings.rate or settings.client_streams)  # whether charge() does anything
        # Keys of an identity provider may be withdrawn, and a log and rates need to know the caller of each request.
        self.has_secrets_only = bool(settings.secrets and not settings.jwks and not self.counts and settings.log == "none")
        self._bad_tokens = Rates("bad-tokens", BAD_TOKENS, "too many bad tokens came from your address")
        self._visitors = Rates("visitors", NEW_VISITORS, "too many visitors came from your address")

    def is_known(self, principal: Principal, request: Request) -> bool:
        """Whether a request with the same header fields as one of this principal needs no gate: a connection's shortcut."""
        return (
            self.has_secrets_only
            and b"?" not in request.target
            and own_path(request.target) is None
            and (principal.expires_at_s is None or principal.expires_at_s > time())
        )

    def begin(self, request: Request, peer: str) -> Request:
        """Return a request with its caller, who connected from an address."""
        address = peer
        if self._settings.proxies:
            address = forwarded_for(request.headers.get("x-forwarded-for", ""), self._settings.proxies) or peer
        return Request(*request[:-1], Caller(client_address(address), monotonic()))

    def admit(self, request: Request) -> Response | Command[IssuedToken] | FetchKeys | None:
        """Find out who asks; None if the request goes on. Raises Problem."""
        if self._verifier is None:
            return None
        path = own_path(request.target)
        if path == SESSION_PATH:
            return self._session(request)
        if path == VISITORS_PATH and self._settings.visitors_ttl_s:
            return self._visitor(request)
        if request.method == "OPTIONS":  # a preflight carries no token
            return None
        credentials = credentials_in(request)
        if credentials is None:
            return None
        if credentials.is_cookie:
            check_session_origin(request.headers, self._settings)
        return self._identify(request, credentials)

    def charge(self, request: Request, asked: Asked[Outcome]) -> Asked[Outcome]:
        """Return what a request asks for, so that it is counted for its client first; raises TooManyRequests."""
        caller = request.caller
        assert caller
        if isinstance(asked, Follow | FollowMany) and self._settings.client_streams:
            asked = asked._replace(place=StreamPlace(caller.client, self._settings.client_streams))
        if self._rates is None or isinstance(asked, ReadMetrics):
            return asked
        if isinstance(asked, LongPoll | Follow | FollowMany):
            return asked._replace(charge=self._charge_waiting(caller, self._rates))
        client, cost = caller.client, cost_of(asked)
        caller.quota = self._rates.admit(client, cost)
        if caller.quota:
            return asked

        def go_on(quota: Quota) -> Again[Outcome]:
            caller.quota = quota
            return Again(asked, has_written=False)

        return self._rates.charge(client, cost, go_on, asked)

    @staticmethod
    def _charge_waiting(caller: Caller, rates: Rates) -> Charge[None] | None:
        """Return the command that counts a stream or a long poll, None if it is counted; raises TooManyRequests."""
        caller.quota = rates.admit(caller.client, 1)

        def note(quota: Quota) -> None:
            caller.quota = quota

        return None if caller.quota else rates.charge(caller.client, 1, note)

    def _identify(self, request: Request, credentials: Credentials) -> Command[IssuedToken] | FetchKeys | None:
        assert self._verifier
        assert request.caller
        try:
            request.caller.principal = self._verifier.principal(credentials.token)
        except UnknownKey:
            keys = self._verifier.keys
            assert keys
            if keys.may_fetch:
                return FetchKeys(keys)
            if not keys.is_known:
                raise unavailable("the keys that verify tokens cannot be fetched; try again later") from None
            problem = Unauthorized("the token is signed with a key that is not known; get a new one", error="invalid_token")
            return self._refuse(request, problem, credentials)
        except Unauthorized as problem:
            return self._refuse(request, problem, credentials)
        return None

    def _refuse(self, request: Request, problem: Unauthorized, credentials: Credentials) -> Command[IssuedToken]:
        """Refuse a bad token, and count it for its address; raises Unauthorized or TooManyRequests."""
        assert request.caller
        if credentials.is_cookie:  # a browser would send it for ever
            problem.headers.update(session_cookie(request, "", 0))
        if self._bad_tokens.admit(request.caller.address, 1):
            raise problem

        def refuse(_: Quota) -> IssuedToken:
            raise problem

        return self._bad_tokens.charge(request.caller.address, 1, refuse)

    def _session(self, request: Request) -> Response | Command[IssuedToken] | FetchKeys:
        """Answer POST, which keeps the token of Authorization in a cookie, and DELETE, which ends that."""
        if options := answer_options(request, "POST, DELETE"):
            return options
        check_session_origin(request.headers, self._settings)
        if request.method == "DELETE":
            return Response(204, (*session_cookie(request, "", 0), *NO_STORE))
        bearer = bearer_in(request.headers)
        if bearer is None:
            raise Unauthorized("send the token of the session as Authorization: Bearer")
        if (refusal := self._identify(request, bearer)) is not None:
            return refusal
        assert request.caller
        assert request.caller.principal
        return Response(204, (*session_cookie(request, bearer.token, request.caller.principal.expires_at_s), *NO_STORE))

    def _visitor(self, request: Request) -> Response | Command[IssuedToken]:
        """Answer POST with a token that has a new subject."""
        if options := answer_options(request, "POST"):
            return options
        check_origin(request.headers, self._settings)
        assert request.caller
        from kvstore.access.tokens import issue

        def answer(_: Quota) -> IssuedToken:
            return issue(self._settings, ttl_s=self._settings.visitors_ttl_s, sub=f"visitor-{token_hex(10)}")

        if quota := self._visitors.admit(request.caller.address, 1):
            return render_issued(answer(quota))
        return self._visitors.charge(request.caller.address, 1, answer)


def _open_verifier(settings: Settings) -> "TokenVerifier":
    from kvstore.access.jwks import KeySource
    from kvstore.access.tokens import TokenVerifier

    try:
        keys = KeySource(settings.jwks) if settings.jwks else None
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"KVSTORE_JWKS cannot be used: {error}") from None
    return TokenVerifier(settings.secrets, keys, settings.audience)


def cost_of(command: Command[object]) -> int:
    """Return how many requests a command counts as: a batch as many as it has."""
    asked = unwrapped(command)
    if isinstance(asked, Batch):
        return max(1, len(asked.requests))
    return len(asked.names) if isinstance(asked, PutMany | GetMany) else 1


@lru_cache(maxsize=4096)
def client_address(address: str) -> str:
    """Return the address that a client is counted by: of IPv6 the first 64 bits, since one client has all that begin with them.

    An IPv4 address that a socket for both shows as IPv6 is one of IPv4. Source: RFC 4291 sections 2.5.1 and 2.5.5.2.
    """
    try:
        found = ip_address(address)
    except ValueError:  # of a unix socket
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or f"{IPv6Address(int(found) >> 64 << 64)}/64")


def forwarded_for(field: str, proxies: int) -> str | None:
    """Return the address of the client in X-Forwarded-For: what the outermost of the trusted proxies has seen.

    Each proxy appends the address that it was called from; what is before those was sent by the client, and may be anything.
    """
    addresses = field.split(",")
    if len(addresses) < proxies:
        return None
    address = addresses[-proxies].strip()
    try:
        return str(ip_address(address))
    except ValueError:  # some add a port
        host, _, _ = address.strip("[").rpartition("]" if "]" in address else ":")
    try:
        return str(ip_address(host))
    except ValueError:
        return None


def open_gate(settings: Settings) -> Gate | None:
    """Return a gate if the settings need one; raises InvalidSetting."""
    if settings.is_open and not settings.rate and not settings.client_streams and settings.log == "none":
        return None
    return Gate(settings)
