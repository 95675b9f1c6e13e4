"""Loads: the last digest of every site, corrected by what this gateway has sent there since.

A digest is about a second old, and a second is long: without the correction every gateway would
send all of it to the site that looked idle. Mutable, owned by one event loop; time is an argument.
"""

from dataclasses import dataclass, field
from typing import Final

from isochrone.core.estimate.learned import LearnedRates
from isochrone.core.estimate.service import Rates, Servers, Work, opening_ms, queue_ms
from isochrone.core.estimate.usual_wait import UNKNOWN_MS, lean_ms, usual_ms
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.credits import AWAY_NS, BACK_KEPT, KEPT, kept, said_requests
from isochrone.core.routing.site_health import SiteHealth
from isochrone.core.world.digest import DeploymentLoad, SiteDigest

FIRST_HOLD_NS = 2_000_000_000
LONGEST_HOLD_NS = 60_000_000_000
LOSSES_FORGOTTEN_NS = 60_000_000_000  # this long after a hold without another loss: start at 2 s

# Rates outside cannot have been measured.
SLOWEST_TOK_S = 1e-3
FASTEST_TOK_S = 1e9

RENEWED_NS: Final = 500_000_000  # digests nearer than this end no interval

MOST_LEFT: Final = 4  # epochs of a site that are remembered as left

EVERY_SITE: Final = -1  # no site has this number
NEVER_NS: Final = 1 << 63


@dataclass(slots=True, eq=False)
class ModelLoad:
    """One model at one site: what the last digest said, and all work ahead of a newcomer.

    `ready` is None when the digest does not mention the model. `servers` is ready for the estimate,
    None when nothing is ready or a rate is not measured yet (0).

    For credits (see `credits`): `arrived`, `spare` and `pushed` as the digest says them; how many
    requests this gateway `sent` in an interval lately, and how many it `dispatched` since
    `renewed_ns`; and the part that it is to `keep` of those nearest there. `ready_before`: as the
    digest before the last one said. `openings`, `soonest_ms`: `free`, `due_ms` of the digest; of
    what is `ahead`, `said_requests` and `said_tokens` of prompts are the digest's, the rest was
    sent since. `usual_ms`: the wait that digests said lately; by `lean_ms` a newcomer will wait
    longer than the last one said, see `usual_wait`. `is_listed`: False once it is empty and
    forgotten.
    """

    model: ModelName
    ready: int | None = None
    slots: int = 0
    prefill_tok_s: float = 0.0
    decode_tok_s: float = 0.0
    servers: Servers | None = None
    ahead: Work = field(default_factory=Work)
    arrived: float | None = None
    spare: float | None = None
    pushed: float = 0.0
    sent: float = 0.0
    dispatched: int = 0
    keep: float = 1.0
    renewed_ns: int = 0
    ready_before: int | None = None
    openings: int | None = None
    soonest_ms: int = 0
    said_requests: int = 0
    said_tokens: int = 0
    usual_ms: float = UNKNOWN_MS
    lean_ms: float = 0.0
    is_listed: bool = True


NO_DISPATCHES: Final[set["Dispatch"]] = set()  # shared by all who have none: never changed


@dataclass(slots=True, eq=False)
class SiteLoad:
    """What is known of one site. `number`: in the order in which sites were met. `listed` are its
    `models`, as a list. `dispatches` are those that no digest has counted yet. `left_epochs`: of
    agents that others have followed, the latest last; their late words are not the site's."""

    site: SiteName
    number: int = 0
    heard_ns: int = 0  # when its last digest came, and later by the time in which none could come
    said_ns: int = 0   # when it came
    epoch: int | None = None
    left_epochs: tuple[int | None, ...] = ()
    sequence: int = -1
    models: dict[ModelName, ModelLoad] = field(default_factory=dict)
    listed: list[ModelLoad] = field(default_factory=list)
    lost_ns: int | None = None
    hold_ns: int = 0
    unreachable: bool = False
    dispatches: set["Dispatch"] = field(default_factory=lambda: NO_DISPATCHES)


class Said:
    """What a digest says of one model, checked: as `ModelLoad` keeps it. `requests` and the tokens
    are all that is queued or running there; `wait_ms` is how long that keeps a newcomer, where
    there are `servers`."""

    __slots__ = (
        "arrived", "decode_tok_s", "model", "openings", "output_tokens", "prefill_tok_s",
        "prompt_tokens", "pushed", "ready", "requests", "servers", "slots", "soonest_ms",
        "spare", "wait_ms",
    )

    def __init__(self, said: DeploymentLoad) -> None:
        """Rates that nothing can have (NaN, infinite) are not measured, and counts are >= 0: it is
        another site's word, and may make that site look slow, never break the comparison."""
        self.model = said.model
        self.ready: int = said.ready
        self.slots: int = max(said.slots, said.ready)
        self.prefill_tok_s: float = _rate(said.prefill_tok_s)
        self.decode_tok_s: float = _rate(said.decode_tok_s)
        self.arrived = said_requests(said.arrived)
        self.spare = said_requests(said.spare)
        self.pushed: float = max(said_requests(said.pushed) or 0.0, 0.0)
        self.requests: int = max(said.running, 0) + max(said.waiting, 0)
        self.prompt_tokens: int = max(said.pending_prompt_tokens, 0)
        self.output_tokens: int = max(said.pending_output_tokens, 0)
        self.openings = None if said.free is None else max(said.free, 0)
        self.soonest_ms: int = max(said.due_ms, 0)
        self.servers: Servers | None = None
        self.wait_ms = 0.0
        if self.ready >= 1 and self.prefill_tok_s > 0.0 and self.decode_tok_s > 0.0:
            rates = Rates(prefill_tok_s=self.prefill_tok_s, decode_tok_s=self.decode_tok_s)
            servers = self.servers = Servers(ready=self.ready, slots=self.slots, rates=rates)
            self.wait_ms = self._wait_ms(servers)

    def _wait_ms(self, servers: Servers) -> float:
        ahead = Work(
            requests=self.requests, prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
        )
        if self.openings is None:
            return queue_ms(servers, ahead)
        return opening_ms(servers, ahead, self.openings, self.soonest_ms, 0, 0)


class Report:
    """A digest as loads take it in, worked out once however many gateways hear it."""

    __slots__ = ("epoch", "said", "sequence", "site")

    def __init__(self, digest: SiteDigest) -> None:
        self.site = digest.site
        self.epoch: int | None = digest.epoch
        self.sequence: int = digest.sequence
        self.said = [Said(each) for each in digest.loads]


class Dispatch:
    """One request on its way to a site, or served there: the ticket to say that it ended.

    A digest heard before `arrives_ns` cannot have counted it. `is_over`: one has, or it ended. No
    dataclass: one is made for every request.
    """

    __slots__ = ("arrives_ns", "at", "is_over", "load", "output_tokens", "prompt_tokens")

    def __init__(
        self, at: SiteLoad, load: ModelLoad, prompt_tokens: int, output_tokens: int,
        arrives_ns: int,
    ) -> None:
        self.at = at
        self.load = load
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.arrives_ns = arrives_ns
        self.is_over = False


class Loads:
    """One gateway's knowledge of load; `stale_after_ms` is how old a digest may be to count.
    `learned` are rates for sites that do not say their own, `health` is what came of requests."""

    def __init__(self, stale_after_ms: float = 5000.0) -> None:
        self.stale_after_ms = stale_after_ms
        self.learned = LearnedRates()
        self.health = SiteHealth(self._model_changed, self._serving)
        self._stale_after_ns = int(stale_after_ms * 1e6)
        self._sites: dict[SiteName, SiteLoad] = {}
        self._by_number: list[SiteLoad] = []
        self._changes: dict[ModelName, set[int]] = {}
        self._deaf_since_ns: int | None = None

    # -- what is known ---------------------------------------------------------------------------

    def of(self, site: SiteName) -> SiteLoad | None:
        """What is known of a site; None before its first digest, loss or dispatch."""
        return self._sites.get(site)

    def numbered(self, number: int) -> SiteLoad:
        """What is known of the site of this number."""
        return self._by_number[number]

    def stale_ms(self, load: SiteLoad, now_ns: int) -> float:
        """How long a digest could have arrived and did not."""
        return (self._listened_until(now_ns) - load.heard_ns) / 1e6

    def is_stale(self, load: SiteLoad, now_ns: int) -> bool:
        """Whether the last digest is too old to count."""
        return self._listened_until(now_ns) - load.heard_ns > self._stale_after_ns

    def may_try(self, load: SiteLoad, now_ns: int) -> bool:
        """Whether a site is worth a connection; one that was lost waits for its next digest."""
        if not load.unreachable:
            return True
        held = load.lost_ns is not None and now_ns < load.lost_ns + load.hold_ns
        return self._deaf_since_ns is not None and not held

    def next_change_ns(self, load: SiteLoad, now_ns: int) -> int:
        """When the answers above change by time alone; `NEVER_NS` if only news can change them."""
        stale_ns = load.heard_ns + self._stale_after_ns + 1
        deaf_ns = self._deaf_since_ns
        if stale_ns <= now_ns or (deaf_ns is not None and stale_ns > deaf_ns):
            stale_ns = NEVER_NS
        if load.unreachable and load.lost_ns is not None and deaf_ns is not None:
            tried_ns = load.lost_ns + load.hold_ns
            if now_ns < tried_ns < stale_ns:
                return tried_ns
        return stale_ns

    def changes(self, model: ModelName) -> set[int]:
        """The numbers of the sites at which something changes from now on that may concern the
        model. The reader empties it.

        There is one reader a model: whoever asks takes over. A set with `EVERY_SITE` gets nothing
        more: its reader looks at every site and asks for another.
        """
        former = self._changes.get(model)
        if former is not None:
            former.add(EVERY_SITE)
        changes: set[int] = set()
        self._changes[model] = changes
        return changes

    # -- news ------------------------------------------------------------------------------------

    def deaf(self, since_ns: int) -> None:
        """No digest can have arrived since then: the bus is away, which says nothing about sites.

        Until `hearing`, no digest grows stale, a site whose connection was lost may be tried again
        after its hold, and no credits count: nobody renews them.
        """
        if self._deaf_since_ns is None:
            self._deaf_since_ns = since_ns
            for site in self._sites.values():
                for load in site.models.values():
                    load.arrived = load.spare = None
            self._everything_changed()

    def hearing(self, now_ns: int) -> None:
        """Digests arrive again: the time without them does not count against any site."""
        if self._deaf_since_ns is None:
            return
        gap_ns = max(now_ns - self._deaf_since_ns, 0)
        self._deaf_since_ns = None
        for load in self._sites.values():
            load.heard_ns = min(load.heard_ns + gap_ns, now_ns)
        self._everything_changed()

    def heard(self, digest: SiteDigest, now_ns: int) -> bool:
        """Take a digest that arrived now; False when it is older than what is known.

        It counts everything that had reached the site, so own dispatches are dropped, except those
        still on their way. It ends `unreachable` once the hold after the loss has passed.
        """
        return self.take(Report(digest), now_ns)

    def take(self, report: Report, now_ns: int) -> bool:
        """As `heard`."""
        load = self._load(report.site)
        if report.epoch == load.epoch:
            if report.sequence <= load.sequence:
                return False
        elif report.epoch in load.left_epochs and not self.is_stale(load, now_ns):
            return False  # once who followed is silent, who was left lives after all
        else:
            load.left_epochs = (*load.left_epochs, load.epoch)[-MOST_LEFT:]
            load.epoch = report.epoch
        was_away = load.sequence >= 0 and self.is_stale(load, now_ns)
        load.sequence, load.heard_ns, load.said_ns = report.sequence, now_ns, now_ns
        _take_in(load, report.said, now_ns)
        if load.unreachable and load.lost_ns is not None:
            load.unreachable = now_ns < load.lost_ns + load.hold_ns
            was_away = was_away or not load.unreachable
        has_empty = False
        for known in load.listed:
            if known.spare is not None and now_ns - known.renewed_ns > RENEWED_NS:
                _renew(known, now_ns)
            if known.ready is None:
                has_empty = has_empty or _is_empty(known)
            elif known.ready and (was_away or known.ready_before == 0):
                self.health.returned(load.site, known.model, "it was away", now_ns)
        self._site_changed(load)
        if has_empty:
            for known in load.listed:
                known.is_listed = not _is_empty(known)
            load.listed = [known for known in load.listed if known.is_listed]
            load.models = {known.model: known for known in load.listed}
        return True

    def dispatched(
        self, site: SiteName, model: ModelName, prompt_tokens: int, output_tokens: int,
        now_ns: int, *, rtt_ms: float = 0.0,
    ) -> Dispatch:
        """Count a request sent to `site` now, and return the ticket for `finished`.

        `rtt_ms`: a digest heard within one round trip was sent before the request arrived.
        """
        at = self._load(site)
        load = at.models.get(model)
        if load is None:
            load = at.models[model] = ModelLoad(model)
            at.listed.append(load)
        arrives_ns = now_ns + int(rtt_ms * 1_000_000)
        dispatch = Dispatch(at, load, prompt_tokens, output_tokens, arrives_ns)
        if at.dispatches:
            at.dispatches.add(dispatch)
        else:
            at.dispatches = {dispatch}
        load.dispatched += 1
        ahead = load.ahead
        ahead.requests += 1
        ahead.prompt_tokens += prompt_tokens
        ahead.output_tokens += output_tokens
        changes = self._changes.get(model)
        if changes is not None:
            changes.add(at.number)
        if self.health.ailing:
            self.health.asked(site, model, now_ns)
        return dispatch

    def finished(self, dispatch: Dispatch) -> None:
        """The request of this ticket ended; nothing to do when a digest has counted it."""
        if dispatch.is_over:
            return
        dispatch.is_over = True
        at, load = dispatch.at, dispatch.load
        at.dispatches.discard(dispatch)
        ahead = load.ahead
        ahead.requests -= 1
        ahead.prompt_tokens -= dispatch.prompt_tokens
        ahead.output_tokens -= dispatch.output_tokens
        changes = self._changes.get(load.model)
        if changes is not None:
            changes.add(at.number)

    def lost(self, site: SiteName, now_ns: int) -> None:
        """A connection to the site failed: unreachable until a digest after 2 s, doubling to 60 s.

        Losses while it is unreachable change nothing: they are the same loss seen again.
        """
        load = self._load(site)
        if self.may_try(load, now_ns):
            self._lose(load, now_ns)

    def still_lost(self, site: SiteName, now_ns: int) -> None:
        """A site that was unreachable when a probe of it began has not answered: its hold begins
        again, as after another loss. Asked for near its end, so that no request has to find out."""
        self._lose(self._load(site), now_ns)

    def found(self, site: SiteName, now_ns: int) -> None:
        """A probe of the site was answered. While the bus is away that ends `unreachable` once the
        hold has passed, as a digest does otherwise."""
        load = self._load(site)
        if not load.unreachable or not self.may_try(load, now_ns):
            return
        load.unreachable = False
        for known in load.listed:
            if known.ready:
                self.health.returned(site, known.model, "it was away", now_ns)
        self._site_changed(load)

    # -- inside ----------------------------------------------------------------------------------

    def _serving(self, model: ModelName, now_ns: int) -> list[SiteName]:
        """The sites that say they have the model ready, of those that may be asked at all."""
        serving = []
        for each in self._sites.values():
            load = each.models.get(model)
            if load is None or not load.ready or self.is_stale(each, now_ns):
                continue
            if self.may_try(each, now_ns):
                serving.append(each.site)
        return serving

    def _lose(self, load: SiteLoad, now_ns: int) -> None:
        forgotten_ns = (load.lost_ns or 0) + load.hold_ns + LOSSES_FORGOTTEN_NS
        recent = load.lost_ns is not None and now_ns < forgotten_ns
        load.hold_ns = min(2 * load.hold_ns, LONGEST_HOLD_NS) if recent else FIRST_HOLD_NS
        load.lost_ns = now_ns
        load.unreachable = True
        self._site_changed(load)

    def _model_changed(self, site: SiteName, model: ModelName) -> None:
        changes, load = self._changes.get(model), self._sites.get(site)
        if changes is not None and load is not None:
            changes.add(load.number)

    def _load(self, site: SiteName) -> SiteLoad:
        load = self._sites.get(site)
        if load is None:
            load = self._sites[site] = SiteLoad(site, len(self._by_number))
            self._by_number.append(load)
        return load

    def _listened_until(self, now_ns: int) -> int:
        return now_ns if self._deaf_since_ns is None else min(now_ns, self._deaf_since_ns)

    def _site_changed(self, load: SiteLoad) -> None:
        """For every model: also those that the site has ceased to mention."""
        for changes in self._changes.values():
            changes.add(load.number)

    def _everything_changed(self) -> None:
        for changes in self._changes.values():
            changes.add(EVERY_SITE)
        self._changes.clear()


def _take_in(at: SiteLoad, said: list[Said], now_ns: int) -> None:
    """Replace what was known of the site's work by the digest and what is still on its way."""
    listed = at.listed
    if len(said) == 1 and len(listed) == 1 and said[0].model == listed[0].model:
        load = listed[0]
        load.ready_before = load.ready
        _take(load, said[0])
    else:
        for known in listed:
            known.ready_before, known.ready = known.ready, None
        for each in said:
            found = at.models.get(each.model)
            if found is None:
                found = at.models[each.model] = ModelLoad(each.model)
                listed.append(found)
            _take(found, each)
        for known in listed:
            if known.ready is None:
                known.servers, known.ahead, known.arrived, known.spare = None, Work(), None, None
                known.usual_ms = UNKNOWN_MS
    if at.dispatches:
        on_way: set[Dispatch] = set()
        for one in at.dispatches:
            if one.arrives_ns <= now_ns:
                one.is_over = True
                continue
            on_way.add(one)
            ahead = one.load.ahead
            ahead.requests += 1
            ahead.prompt_tokens += one.prompt_tokens
            ahead.output_tokens += one.output_tokens
        at.dispatches = on_way if on_way else NO_DISPATCHES


def _take(load: ModelLoad, said: Said) -> None:
    load.ready = said.ready
    load.slots = said.slots
    load.prefill_tok_s = said.prefill_tok_s
    load.decode_tok_s = said.decode_tok_s
    load.servers = said.servers
    load.arrived = said.arrived
    load.spare = said.spare
    load.pushed = said.pushed
    ahead = load.ahead
    ahead.requests = said.requests
    ahead.prompt_tokens = said.prompt_tokens
    ahead.output_tokens = said.output_tokens
    load.openings = said.openings
    load.soonest_ms = said.soonest_ms
    load.said_requests, load.said_tokens = said.requests, said.prompt_tokens
    if said.servers is None:
        load.usual_ms, load.lean_ms = UNKNOWN_MS, 0.0
    else:
        load.usual_ms = usual_ms(load.usual_ms, said.wait_ms)
        load.lean_ms = lean_ms(load.usual_ms, said.wait_ms)


def _renew(load: ModelLoad, now_ns: int) -> None:
    """A digest ends an interval: what was sent since the last one becomes what is sent lately."""
    load.sent += (1.0 - KEPT) * (load.dispatched - load.sent)
    load.dispatched = 0
    if load.renewed_ns and now_ns - load.renewed_ns > AWAY_NS:
        load.keep = BACK_KEPT
    elif load.spare is not None:
        load.keep = kept(load.keep, load.arrived or 0.0, load.spare)
    load.renewed_ns = now_ns


def _rate(tok_s: float) -> float:
    return tok_s if SLOWEST_TOK_S <= tok_s <= FASTEST_TOK_S else 0.0


def _is_empty(load: ModelLoad) -> bool:
    """Neither mentioned by the digest nor sent anything that is still on its way."""
    return load.ready is None and load.ahead.requests == 0
