"""Who sends a request: the address, the principal once it is known, and what is left of the client's quota."""

from dataclasses import dataclass

from kvstore.access.principal import Principal
from kvstore.access.rates import Quota


@dataclass(slots=True)
class Caller:
    """What is known of the sender of one request, filled while the request is decided. `began_s` is of a monotonic clock."""

    address: str = ""  # of the client, behind trusted proxies
    began_s: float = 0.0
    principal: Principal | None = None
    quota: Quota | None = None  # None where requests are not counted, or not yet

    @property
    def subject(self) -> str | None:
        """The claim `sub` of the principal."""
        return self.principal.subject if self.principal else None

    @property
    def client(self) -> str:
        """The client that rates and streams are counted for: the subject, otherwise the address. No subject is an address."""
        subject = self.subject
        return f"address {self.address}" if subject is None else f"sub {subject}"
