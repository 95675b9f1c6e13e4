"""Letters between the gateways of sites, by which they lend one another what was sold, and grant
one another what limits allow.

Keeps this site's part of every entitlement (`core/admission/commitments.py`): tells it the view and
the time, sends its letters to the gateways of other sites over the peer hop, and tells it what they
wrote. A letter that does not arrive is nothing to worry about: core asks again. What requests have
to do with it is sent at once, everything else with what is due twice a second.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from isochrone.core.admission.cashier import Paid
from isochrone.core.admission.commitments import Commitments, Letter, Message, Standing
from isochrone.core.admission.stewards import TERM_NS
from isochrone.core.errors import Untrusted
from isochrone.core.ids import EntitlementId, RequestId, SiteName
from isochrone.core.limits.messages import LimitLetter
from isochrone.gateway.entitled import Served, Sold
from isochrone.gateway.incoming import Incoming
from isochrone.gateway.peer_hop import claimed_ingress
from isochrone.gateway.replies import Refusal
from isochrone.gateway.target import Target, Targets
from isochrone.gateway.upstream import UpstreamConnection
from isochrone.wire import peer
from isochrone.wire.commitments import (
    LIMIT_MESSAGES,
    AnyMessage,
    decode_messages,
    encode_messages,
)
from isochrone.wire.peer_codes import proof

if TYPE_CHECKING:
    from isochrone.gateway.context import Context

PATH = "/v1/commitments"
TICK_S = 0.5
POST_S = 3.0  # how long a letter may be on its way
MOST_DUE = 20_000  # messages that requests have to do with, and that wait to be sent to a site
MOST_POSTS = 8  # to one site at a time; further ones are not sent
MOST_AT_ONCE = 6  # of them, of what is sent at once: the rest of it waits, and goes together
_CONTENT_TYPE = b"content-type: application/msgpack\r\n"
_HOP = peer.HOP.encode()

log = structlog.get_logger()


class Letters:
    """Of one gateway. `sent`, `lost` and `heard` count payloads, of one letter or more each."""

    def __init__(self, context: "Context") -> None:
        clock = context.clock
        now_ns, self._life = clock.monotonic_ns(), clock.wall_ns() ^ context.rng.getrandbits(60)
        # Alone, nobody can have the votes of a former life: no other site is told of what is sold.
        began_ns = now_ns - TERM_NS if context.settings.alone else now_ns
        self.sent = self.lost = self.heard = 0
        self._context = context
        self._commitments = Commitments(context.site, self._life, began_ns)
        self._targets = Targets(lambda _: None)
        self._posts: dict[_Post, None] = {}
        self._version = 0
        self._stopped = False
        self._due: dict[SiteName, list[AnyMessage]] = {}  # to be sent at once
        self._is_flushing = False
        self._arrived = asyncio.Event()  # all that was on its way
        context.shared_limits.send = self.send_of_limits
        context.paying.commitments, context.paying.send = self._commitments, self._send_due

    async def run(self) -> None:
        """Keep the books for ever."""
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """Follow the view and the time."""
        context = self._context
        now_ns, now = context.clock.monotonic_ns(), context.clock.wall_ns()
        for post in [each for each in self._posts if now_ns - each.began_ns > POST_S * 1e9]:
            post.cancel()
        if self._stopped:
            backs = self._commitments.payments.tick(now_ns)
            self._send([Letter(cashier, back) for cashier, back in backs])
            context.paying.sweep(now_ns)
            return
        if context.view.sold_version != self._version:
            self._take_view(now_ns)
        if context.entitled.sold() or context.view.voters is not None:
            self._send(self._commitments.tick(now_ns, now, context.rng))
            context.paying.sweep(now_ns)

    def stop(self) -> None:
        """Another process takes over the site: this one lends, votes and asks no more. What comes
        back of payments only it knows: see `leave`."""
        self._stopped = self._context.paying.stopped = True

    async def leave(self, timeout_s: float) -> None:
        """The last request is over: tell cashiers what comes back, before nobody can. A `Back` that
        overtook its `Pay` would be of no use, so that is over first."""
        payments = self._commitments.payments
        if payments.has_to_tell:
            await self._all_arrived(timeout_s / 2)
            self._send([Letter(cashier, back) for cashier, back in payments.leave()])
            await self._all_arrived(timeout_s / 2)

    async def _all_arrived(self, timeout_s: float) -> None:
        self._arrived.clear()
        if self._posts:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()

    def hear(self, incoming: Incoming) -> Refusal | None:
        """What the gateway of another site wrote; why it is not taken, or None."""
        context = self._context
        try:
            hop = context.peers.verify(
                incoming, context.view.site(claimed_ingress(incoming)), incoming.body
            )
            messages = decode_messages(incoming.body)
        except Untrusted as error:
            return Refusal(status=401, reason="peer_untrusted", message=error.message)
        sender = hop.entrant.ingress.name
        now_ns, now = context.clock.monotonic_ns(), context.clock.wall_ns()
        if self._stopped:  # only what it has asked for before
            for message in messages:
                if isinstance(message, Paid):
                    self._commitments.hear(sender, message, now_ns, now)
            context.paying.decide(now_ns)
            return Refusal(status=503, reason="gateway_stopping", message="This gateway stops.")
        rtt_ms = context.view.rtt_ms(sender)
        context.skew.heard(sender, hop.sent_at, rtt_ms, incoming.began_ns)
        self.heard += 1
        answers: list[Letter] = []
        for message in messages:
            if isinstance(message, LIMIT_MESSAGES):
                self.send_of_limits(context.shared_limits.hear(sender, message))
            else:
                answers.extend(self._commitments.hear(sender, message, now_ns, now))
        self._send([each for each in answers if not isinstance(each.message, Paid)])
        self._send_at_once([each for each in answers if isinstance(each.message, Paid)])
        context.paying.decide(now_ns)
        return None

    def standing(self, entitlement_id: EntitlementId) -> Standing:
        """How an entitlement stands at this site now."""
        clock = self._context.clock
        return self._commitments.standing(entitlement_id, clock.monotonic_ns(), clock.wall_ns())

    @property
    def payment_outcomes(self) -> Mapping[str, int]:
        """How many payments cashiers were asked for, and what became of them."""
        return self._context.paying.outcomes

    def send_of_limits(self, letters: Sequence[LimitLetter]) -> None:
        """Those to the own site are heard at once, others go out together."""
        if self._stopped:
            return
        site, shared = self._context.site, self._context.shared_limits
        waiting = deque(letters)
        while waiting:
            letter = waiting.popleft()
            if letter.to == site:
                waiting.extend(shared.hear(site, letter.message))
            else:
                self._put(letter.to, letter.message)
        self._flush_soon()

    def _send_due(self) -> None:
        """What requests here ask of cashiers."""
        self._send_at_once(self._commitments.take_due())

    def _send_at_once(self, letters: Sequence[Letter]) -> None:
        if not self._stopped:
            for letter in letters:
                self._put(letter.to, letter.message)
            self._flush_soon()

    def _put(self, to: SiteName, message: AnyMessage) -> None:
        due = self._due.setdefault(to, [])
        if len(due) < MOST_DUE:
            due.append(message)

    def _flush_soon(self) -> None:
        if self._due and not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        for to in list(self._due):
            if sum(post.site == to for post in self._posts) < MOST_AT_ONCE:
                self._post(to, self._due.pop(to))

    # -- the view --------------------------------------------------------------------------------

    def _take_view(self, now_ns: int) -> None:
        context, commitments = self._context, self._commitments
        view = context.view
        self._version = view.sold_version
        if view.voters is not None:
            commitments.set_voters(view.voters)
        known = {each.entitlement.id: each for each in context.entitled.sold()}
        served: dict[tuple[str, ...], Served] = {}
        found: list[Sold] = []
        for noun in view.entitlements.values():
            sold = known.pop(noun.id, None)
            if sold is None or sold.entitlement != noun:
                commitments.take(noun, now_ns)
                purse = commitments.purse(noun.id)
                assert purse is not None, "it was just taken"
                axis = noun.residency
                if axis not in served:
                    served[axis] = Served(axis, view)
                sold = Sold(noun, purse.allowance, served[axis], purse)
            found.append(sold)
        for id_ in known:
            commitments.drop(id_, now_ns)
        context.entitled.set_sold(found)
        log.info("entitlements_known", site=context.site, entitlements=len(found))

    # -- sending ---------------------------------------------------------------------------------

    def _send(self, letters: Sequence[Letter]) -> None:
        """All for one site go together; those to the own site are heard at once."""
        clock, site = self._context.clock, self._context.site
        by_site: dict[SiteName, list[Message]] = {}
        waiting = deque(letters)
        while waiting:
            letter = waiting.popleft()
            if letter.to == site:
                waiting.extend(self._commitments.hear(
                    site, letter.message, clock.monotonic_ns(), clock.wall_ns()
                ))
            else:
                by_site.setdefault(letter.to, []).append(letter.message)
        for to, messages in by_site.items():
            self._post(to, messages)

    def _post(self, to: SiteName, messages: Sequence[AnyMessage]) -> None:
        context = self._context
        noun = context.view.site(to)
        key = None if noun is None else context.peers.key_for(noun)
        under_way = sum(post.site == to for post in self._posts)
        if noun is None or key is None or under_way >= MOST_POSTS:
            self.lost += 1
            return
        target = self._targets.peer(
            noun, key, context.view.emulated_rtt_ms(to), context.view.rtt_ms(to)
        )
        body, now = encode_messages(messages), context.clock.wall_ns()
        start, requests = target.hop_start(
            context.site, (PATH, peer.NOTHING, "reserved", "", _CONTENT_TYPE)
        )
        self.sent += 1
        code = proof(requests, RequestId(f"{self._life:x}-{self.sent}"), now, body)
        data = b"%b%b: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            start, _HOP, code.encode("latin-1"), len(body), body,
        )
        post = _Post(self, target, data, context.clock.monotonic_ns())
        self._posts[post] = None
        connection = context.pool.idle(target.address)
        if connection is not None:
            post.send(connection)
        else:
            context.spawn(self._dial(post))

    async def _dial(self, post: "_Post") -> None:
        try:
            connection = await self._context.pool.connect(post.target.address, timeout_s=POST_S)
        except (TimeoutError, OSError):
            self.over(post, arrived=False)
        else:
            if post in self._posts:
                post.send(connection)
            else:
                connection.abort()

    def over(self, post: "_Post", *, arrived: bool) -> None:
        """A payload was taken, or it will not be."""
        if post in self._posts:
            del self._posts[post]
            self.lost += not arrived
            if not self._posts:
                self._arrived.set()
            if post.site in self._due and not self._stopped:
                self._flush()


class _Post:
    """One payload on its way; what the other side answers besides its status is nothing to us."""

    __slots__ = ("_connection", "_data", "_letters", "_status", "began_ns", "site", "target")

    def __init__(self, letters: Letters, target: Target, data: bytes, began_ns: int) -> None:
        self.site = target.site
        self.target = target
        self.began_ns = began_ns
        self._letters = letters
        self._data = data
        self._status = 0
        self._connection: UpstreamConnection | None = None

    def send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        connection.send(self._data, self)

    def cancel(self) -> None:
        if self._connection is not None:
            self._connection.abort()
        self._letters.over(self, arrived=False)

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self._status = status

    def received(self, data: bytes) -> None:
        pass

    def ended(self) -> None:
        self._connection = None
        self._letters.over(self, arrived=self._status == 200)

    def lost(self, why: str) -> None:
        self._connection = None
        self._letters.over(self, arrived=False)
