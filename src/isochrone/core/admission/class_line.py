"""What one class has running and waiting at a site, for one model, and by what rule."""

from isochrone.core.admission.fair_order import FairOrder, Ticket
from isochrone.core.world.site_policy import ClassRule

NEVER_NS = 1 << 63
_VIRTUAL = 1_000_000  # counters of classes are in tokens by share, times this


class ClassLine:
    """One class. `firm`, `stopping`: how many of its `running` requests are; `tokens`: of those
    that run. `virtual`: what it was served for its share while there was a queue. `short_ns`: since
    when it runs fewer than its floor while somebody waits, else `NEVER_NS`."""

    __slots__ = (
        "ceiling", "firm", "floor", "order", "per_token", "promised_ns", "queue_most", "running",
        "share", "short_ns", "stopping", "tickets", "tokens", "virtual", "wait_ns",
    )

    def __init__(self, rule: ClassRule) -> None:
        self.adopt(rule)
        self.floor = 0
        self.ceiling = 0
        self.running = 0
        self.firm = 0
        self.stopping = 0
        self.tokens = 0
        self.virtual = 0
        self.promised_ns = 0
        self.short_ns = NEVER_NS
        self.order = FairOrder()
        self.tickets: dict[Ticket, None] = {}  # those that run, in the order of their start

    def adopt(self, rule: ClassRule) -> None:
        """Go by this rule from now on."""
        self.share = rule.share
        self.per_token = round(_VIRTUAL / rule.share)
        self.queue_most = rule.queue_most
        self.wait_ns = int(rule.wait_ms * 1e6)


def victim_of(lines: list[ClassLine], above: int) -> Ticket | None:
    """Of the classes behind `above`, the running request that loses least: of `batch` first; one
    that is resumable, or whose answer has not begun and that was never stopped; the latest that
    began."""
    for line in reversed(lines[above + 1 :]):
        if line.running - line.stopping <= line.floor:
            continue
        best: Ticket | None = None
        for ticket in reversed(line.tickets):
            if ticket.state != "running":
                continue
            if not ticket.resumable and (ticket.begun or ticket.stops):
                continue
            if best is None or ticket.stops < best.stops:
                best = ticket
                if best.stops == 0:
                    break
        if best is not None:
            return best
    return None
