"""The hop between two gateways: proves who asks and who answers, and refuses with a typed reason.

The ingress signs what it sends; the serving gateway checks the code, the age, that the same code
was not used before, and then key, class and residency in its own view. Headers of a hop that come
without a valid code are never looked at.
"""

from dataclasses import dataclass

from isochrone.core.errors import Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.metering.event import Tokens, TokenSource
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Class
from isochrone.gateway.incoming import Incoming
from isochrone.ports.clock import Clock
from isochrone.wire import peer
from isochrone.wire.identity import SiteIdentity
from isochrone.wire.peer import PeerRequest

MAX_AGE_NS = int(peer.MAX_AGE_S * 1e9)
KEEP_ALIVE_S = 60
_CODE = peer.CODE.encode()
_CLASSES: dict[str, Class] = {c: c for c in ("reserved", "on_demand", "batch")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A peer request whose code is right. `key` is shared with the ingress; `class_` is what the
    ingress admitted it as."""

    request: PeerRequest
    key: bytes
    class_: Class


def claims_hop(incoming: Incoming) -> bool:
    """Whether a request says that a peer sent it; peers never send the client's own key."""
    headers = incoming.head.headers
    return _CODE in headers and b"authorization" not in headers


class PeerHops:
    """Keys shared with other sites, and codes seen lately."""

    def __init__(self, identity: SiteIdentity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._keys: dict[str, bytes] = {}
        self._seen: set[str] = set()
        self._seen_before: set[str] = set()
        self._turned_ns = 0

    def key_for(self, site: Site) -> bytes | None:
        """The key shared with `site`; None while it has not joined."""
        if site.peer_key is None:
            return None
        known = self._keys.get(site.peer_key)
        if known is None:
            own = self._identity
            known = peer.shared_key(own.peer_secret, site.peer_key, own.site, site.name)
            self._keys[site.peer_key] = known
        return known

    def request_lines(self, key: bytes, head: PeerRequest, body: bytes) -> str:
        """Lines of a head that prove a request of this gateway to a peer."""
        return (
            f"{peer.REQUEST}: {head.request_id}\r\n{peer.PEER}: {head.ingress}\r\n"
            f"{peer.KEY_ID}: {head.key_id}\r\n{peer.CLASS}: {head.class_}\r\n"
            f"{peer.SENT_AT}: {head.sent_at}\r\n"
            f"{peer.CODE}: {peer.request_code(key, head, body)}\r\n"
        ) + (f"{peer.RESIDENCY}: {head.residency}\r\n" if head.residency else "")

    def verify(self, incoming: Incoming, ingress: Site | None, body: bytes) -> Hop:
        """The hop that the headers claim; raises Untrusted when anything is wrong with them.

        `ingress` is the site that they name, as the own view knows it.
        """
        if ingress is None:
            raise Untrusted("the sending site is unknown here")
        key = self.key_for(ingress)
        if key is None:
            raise Untrusted(f"{ingress.name} has not joined")
        sent_at = incoming.head.header(peer.SENT_AT) or ""
        if not sent_at.isdigit() or len(sent_at) > 20:
            raise Untrusted("no instant of sending")
        head = PeerRequest(
            request_id=incoming.head.header(peer.REQUEST) or "",
            method=incoming.head.method.decode("latin-1"),
            path=incoming.head.path,
            ingress=ingress.name,
            serving=self._identity.site,
            key_id=incoming.head.header(peer.KEY_ID) or "",
            class_=incoming.head.header(peer.CLASS) or "",
            sent_at=int(sent_at),
            residency=incoming.head.header(peer.RESIDENCY) or "",
        )
        code = incoming.head.header(peer.CODE) or ""
        if not peer.same_code(code, peer.request_code(key, head, body)):
            raise Untrusted("the message code is wrong")
        age_ns = self._clock.wall_ns() - head.sent_at
        if abs(age_ns) > MAX_AGE_NS:
            age_s = age_ns / 1e9
            raise Untrusted(f"sent {age_s:.1f} s ago by the clocks, at most {peer.MAX_AGE_S:g} s")
        class_ = _CLASSES.get(head.class_)
        if class_ is None:
            raise Untrusted("an unknown class")
        self._once(code)
        return Hop(request=head, key=key, class_=class_)

    def _once(self, code: str) -> None:
        """Raise Untrusted for a code used before; codes are kept for as long as they are valid."""
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._turned_ns > 2 * MAX_AGE_NS:
            self._seen_before, self._seen, self._turned_ns = self._seen, set(), now_ns
        if code in self._seen or code in self._seen_before:
            raise Untrusted("this message was received before")
        self._seen.add(code)


def claimed_ingress(incoming: Incoming) -> SiteName:
    """The site that the headers of a hop name; nothing is proven yet."""
    return SiteName(incoming.head.header(peer.PEER) or "")


_SOURCES: dict[str, TokenSource] = {
    source: source for source in ("engine", "running", "counted", "none")
}


def render_tokens(tokens: Tokens) -> str:
    """Token counts of an answer without stream, as the header of a hop."""
    return f"{tokens.input_uncached},{tokens.input_cached},{tokens.output},{tokens.source}"


def parse_tokens(header: bytes | None) -> Tokens | None:
    """The inverse of `render_tokens`; None for anything else."""
    parts = (header or b"").decode("latin-1").split(",")
    if len(parts) != 4 or parts[3] not in _SOURCES:
        return None
    if not all(part.isascii() and part.isdigit() and len(part) < 12 for part in parts[:3]):
        return None
    uncached, cached, output = (int(part) for part in parts[:3])
    return Tokens(
        input_uncached=uncached, input_cached=cached, output=output, source=_SOURCES[parts[3]]
    )
