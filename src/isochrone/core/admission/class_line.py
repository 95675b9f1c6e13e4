"""What one class has running and waiting at a site, for one model, and by what rule."""

from isochrone.core.admission.fair_order import FairOrder, Ticket
from isochrone.core.admission.slot_ends import SlotEnds
from isochrone.core.world.site_policy import ClassRule

NEVER_NS = 1 << 63
_VIRTUAL = 1_000_000  # counters of classes are in tokens by share, times this


class ClassLine:
    """One class. `firm`, `stopping`: how many of its `running` requests are; `tokens`: of those
    that run. `virtual`: what it was served for its share while there was a queue, `last_cost` the
    last of it. `short_ns`: since when it runs fewer than its floor while somebody waits, else
    `NEVER_NS`. `latest_ns`: nobody who has come so far waits beyond it. `ends`: of what it runs."""

    __slots__ = (
        "ceiling", "ends", "firm", "floor", "last_cost", "latest_ns", "order", "per_token",
        "promised_ns", "queue_most", "running", "share", "short_ns", "stopping", "tickets",
        "tokens", "virtual", "wait_ns",
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
        self.last_cost = 0
        self.promised_ns = 0
        self.latest_ns = 0
        self.short_ns = NEVER_NS
        self.order = FairOrder()
        self.ends = SlotEnds()
        self.tickets: dict[Ticket, None] = {}  # those that run, in the order of their start

    def adopt(self, rule: ClassRule) -> None:
        """Go by this rule from now on."""
        self.share = rule.share
        self.per_token = round(_VIRTUAL / rule.share)
        self.queue_most = rule.queue_most
        self.wait_ns = int(rule.wait_ms * 1e6)

    def put(self, ticket: Ticket, deadline_ns: int, *, first: bool) -> None:
        """It waits from now on, until then at most."""
        if not self.order.queued:
            self.short_ns = NEVER_NS  # whatever it was when the last one left
        self.order.put(ticket, first=first)
        ticket.deadline_ns = deadline_ns
        if deadline_ns > self.latest_ns:
            self.latest_ns = deadline_ns

    def draw_to(self, virtual: int) -> None:
        """Have no more, and no less, than this for its share, but for as much as it runs and one
        request more: so much may be charged too little, or too much, until that ends."""
        apart = self.last_cost * (self.running + 1)
        self.virtual = min(max(self.virtual, virtual - apart), virtual + apart)

    def ahead_ns(self, pace_ns: float, now_ns: int) -> int:
        """How long what runs and waits is ahead of whoever comes back, at `pace_ns` a token. What
        waits has begun by its deadline or is not ahead any more: of a crowd that came at once, and
        whose time is over at once, nobody is behind all the others."""
        waits_ns = min(int(self.order.tokens * pace_ns), max(self.latest_ns - now_ns, 0))
        return int(self.tokens * pace_ns) + waits_ns


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


def least_served(lines: list[ClassLine], past: int) -> int:
    """The rank of the class that waits below its ceiling and had least for its share, but for those
    whose bit is set in `past`; -1 where there is none."""
    best = -1
    for rank, line in enumerate(lines):
        if (
            line.order.queued
            and line.running < line.ceiling
            and not past >> rank & 1
            and (best < 0 or line.virtual < lines[best].virtual)
        ):
            best = rank
    return best
