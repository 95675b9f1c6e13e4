"""The hop between two gateways: proves who asks and who answers, and refuses with a typed reason.

The ingress signs what it sends; the serving gateway checks the code, the age, that the same code
was not used before, and then key, class and residency in its own view. Headers of a hop that come
without a valid code are never looked at.
"""

from math import inf
from typing import Final

from isochrone.core.errors import Untrusted
from isochrone.core.ids import RequestId, SiteName
from isochrone.core.metering.event import Tokens, TokenSource
from isochrone.core.metering.tokens import tokens_of
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Class
from isochrone.gateway.incoming import Incoming
from isochrone.ports.clock import Clock
from isochrone.wire import peer
from isochrone.wire.identity import SiteIdentity
from isochrone.wire.peer import HopHead
from isochrone.wire.peer_codes import (
    PATIENCE,
    PUSHED,
    UNPAID,
    request_code,
    same_code,
    started,
)

MAX_AGE_NS: Final = int(peer.MAX_AGE_S * 1e9)
KEEP_ALIVE_S: Final = 60
MOST_DIGITS: Final = 12  # of a count of tokens; one beyond 64 bits could not be written down
CLASSES: Final[dict[str, Class]] = {c: c for c in ("reserved", "on_demand", "batch")}


class HopEntrant:
    """What the head of a hop says, as long as `ingress` is what the view says of its sender. Many
    requests come with one head, so it is worked out once; each is proved by itself. `requests` and
    `answers`: with what the codes of both begin."""

    __slots__ = ("answers", "class_", "head", "ingress", "requests", "serving")

    def __init__(self, ingress: Site, key: bytes, head: HopHead, class_: Class) -> None:
        self.ingress = ingress
        self.head = head
        self.serving = head.serving
        self.requests = started(key, head.covered())
        self.answers = started(key)
        self.class_ = class_


class Hop:
    """A peer request whose code is right: who sent it, its id and instant of sending, and whether
    it was `pushed` past a nearer site. Where it would wait for longer than `patience_ms`, it wants
    to be refused at once. `unpaid`: its ingress could not pay for its class."""

    __slots__ = ("entrant", "patience_ms", "pushed", "request_id", "sent_at", "unpaid")

    def __init__(
        self, entrant: HopEntrant, request_id: RequestId, sent_at: int, pushed: bool,
        patience_ms: float, unpaid: bool,
    ) -> None:
        self.entrant = entrant
        self.request_id = request_id
        self.sent_at = sent_at
        self.pushed = pushed
        self.patience_ms = patience_ms
        self.unpaid = unpaid


def claims_hop(incoming: Incoming) -> bool:
    """Whether a request says that a peer sent it; peers never send the client's own key."""
    headers = incoming.head.headers
    return incoming.hop != b"" and b"authorization" not in headers and b"x-api-key" not in headers


class PeerHops:
    """Keys shared with other sites, and codes seen lately."""

    def __init__(self, identity: SiteIdentity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._keys: dict[SiteName, tuple[str, bytes]] = {}
        self._seen: set[str] = set()
        self._seen_before: set[str] = set()
        self._turned_ns = 0

    def key_for(self, site: Site) -> bytes | None:
        """The key shared with `site`; None while it has not joined."""
        if site.peer_key is None:
            return None
        known = self._keys.get(site.name)
        if known is None or known[0] != site.peer_key:
            own = self._identity
            shared = peer.shared_key(own.peer_secret, site.peer_key, own.site, site.name)
            known = self._keys[site.name] = (site.peer_key, shared)
        return known[1]

    def entrant(self, incoming: Incoming, ingress: Site | None) -> HopEntrant:
        """What the head claims; raises Untrusted where that can be from nobody.

        `ingress` is the site that it names, as the own view knows it.
        """
        claimed = incoming.head
        known = claimed.known
        if isinstance(known, HopEntrant) and known.ingress is ingress:
            return known
        if ingress is None:
            raise Untrusted("the sending site is unknown here")
        key = self.key_for(ingress)
        if key is None:
            raise Untrusted(f"{ingress.name} has not joined")
        class_ = CLASSES.get(claimed.header(peer.CLASS) or "")
        if class_ is None:
            raise Untrusted("an unknown class")
        head = HopHead(
            claimed.method.decode("latin-1"), claimed.path, ingress.name, self._identity.site,
            claimed.header(peer.KEY_ID) or "", class_, claimed.header(peer.RESIDENCY) or "",
        )
        found = claimed.known = HopEntrant(ingress, key, head, class_)
        return found

    def verify(self, incoming: Incoming, ingress: Site | None, body: bytes) -> Hop:
        """The hop that the headers claim; raises Untrusted when anything is wrong with them."""
        entrant = self.entrant(incoming, ingress)
        said, _, code = incoming.hop.decode("latin-1").rpartition(" ")
        request_id, _, sent = said.partition(" ")
        sent, bounded, patience = sent.partition(PATIENCE)
        if bounded and not (patience.isdigit() and len(patience) < 10):
            raise Untrusted("no time that it may wait")
        pushed = sent.endswith(PUSHED)
        if pushed:
            sent = sent[:-1]
        unpaid = sent.endswith(UNPAID)
        if unpaid:
            sent = sent[:-1]
        if not sent.isdigit() or len(sent) > 20:
            raise Untrusted("no id, instant of sending and code")
        if not same_code(code, request_code(entrant.requests, said, body)):
            raise Untrusted("the message code is wrong")
        sent_at = int(sent)
        age_ns = self._clock.wall_ns() - sent_at
        if abs(age_ns) > MAX_AGE_NS:
            age_s = age_ns / 1e9
            raise Untrusted(f"sent {age_s:.1f} s ago by the clocks, at most {peer.MAX_AGE_S:g} s")
        self._once(code)
        patience_ms = float(patience) if bounded else inf
        return Hop(entrant, RequestId(request_id), sent_at, pushed, patience_ms, unpaid)

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


_SOURCES: Final[dict[str, TokenSource]] = {
    source: source for source in ("engine", "running", "counted", "none")
}


def render_tokens(tokens: Tokens) -> str:
    """Token counts of an answer without stream, as an answer's hop has them."""
    return f"{tokens.input_uncached},{tokens.input_cached},{tokens.output},{tokens.source}"


def parse_tokens(text: str) -> Tokens | None:
    """The inverse of `render_tokens`; None for anything else."""
    parts = text.split(",")
    if len(parts) != 4:
        return None
    uncached, cached, output = parts[0], parts[1], parts[2]
    source = _SOURCES.get(parts[3])
    if source is None or not (_is_count(uncached) and _is_count(cached) and _is_count(output)):
        return None
    return tokens_of(int(uncached), int(cached), int(output), source)


def _is_count(text: str) -> bool:
    return 0 < len(text) <= MOST_DIGITS and text.isascii() and text.isdigit()
