"""What waits at the queues of this gateway's own site, as work that is ahead of others, and how
many requests came there past a nearer site.

Engines know of neither. This gateway counts itself what waits; the site's agent is told a few times
a second, and says it in its digest to all others.
"""

import contextlib
from math import inf
from typing import TYPE_CHECKING, Final

from isochrone.core.errors import BusUnavailable
from isochrone.core.ids import SiteName
from isochrone.core.routing.loads import Dispatch
from isochrone.core.routing.patience import patience_ms
from isochrone.core.world.queued import QueuedWork, QueueReport
from isochrone.ports.bus import Bus
from isochrone.wire import fleet, subjects

if TYPE_CHECKING:
    from isochrone.gateway.context import Context
    from isochrone.gateway.tries import Tries

LAST_TRY: Final = 3  # of those that a request has: who would send it on again takes it
EVERY_NS: Final = 1_000_000_000  # again, while something waits: silence means nothing does


def counted(exchange: "Tries", site: SiteName, now_ns: int) -> Dispatch:
    """Count a request that has to wait at a site; to be finished as any other."""
    choice, request = exchange.choice, exchange.request
    prompt_tokens = request.prompt_tokens
    if choice is not None and choice.belief is not None:
        prompt_tokens -= min(int(choice.belief.tokens), prompt_tokens)
    return exchange.context.loads.dispatched(
        site, request.model, prompt_tokens, request.output_tokens, now_ns
    )


def is_pushed(exchange: "Tries") -> bool:
    """Whether it is sent past its nearest site, by this gateway or by the peer that it came from.
    """
    hop, choice = exchange.reply.hop, exchange.choice
    return hop.pushed if hop is not None else choice is not None and choice.pushed


def may_wait_ms(exchange: "Tries") -> float:
    """How long it may wait where it is sent before another site is better: as its ingress says, or
    this gateway itself. Unbounded in its last try, and for what goes on with a stream. Sites that
    this gateway reaches itself send back what was no attempt yet."""
    hop, choice = exchange.reply.hop, exchange.choice
    if hop is not None:
        return hop.patience_ms
    tries = max(exchange.attempts, exchange.bounces + 1)
    if choice is None or exchange.continuation is not None or tries >= LAST_TRY:
        return inf
    return patience_ms(choice, exchange.class_, tries)


class QueueReports:
    """Call `sweep` a few times a second."""

    def __init__(self, context: "Context", bus: Bus) -> None:
        self._context = context
        self._bus = bus
        self._last = self._of(())
        self._said_ns = 0

    def sweep(self, now_ns: int) -> None:
        """Tell the agent what waits and what came: when that changes, and while any waits."""
        context, lasts = self._context, False
        waiting = []
        for place in context.queues.places.values():
            if place.site == context.site and (place.queue.queued or place.pushed):
                work, lasts = place.queue.waiting(), lasts or place.queue.queued > 0
                waiting.append(QueuedWork(
                    model=place.model, requests=work.requests, prompt_tokens=work.prompt_tokens,
                    output_tokens=work.output_tokens, pushed=place.pushed,
                ))
        report = self._of(tuple(waiting))
        if report != self._last or (lasts and now_ns - self._said_ns >= EVERY_NS):
            self._last, self._said_ns = report, now_ns
            context.spawn(self._say(report))

    def _of(self, queues: tuple[QueuedWork, ...]) -> QueueReport:
        return QueueReport(
            site=self._context.site, worker=self._context.settings.worker, queues=queues
        )

    async def _say(self, report: QueueReport) -> None:
        with contextlib.suppress(BusUnavailable):
            await self._bus.publish(subjects.queued_subject(report.site), fleet.encode(report))
