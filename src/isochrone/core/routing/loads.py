"""Loads: the last digest of every site, corrected by what this gateway has sent there since.

A digest is about a second old, and a second is long: without the correction every gateway would
send all of it to the site that looked idle. Mutable, owned by one event loop; time is an argument.
"""

from dataclasses import dataclass, field
from typing import Final

from isochrone.core.estimate.learned import LearnedRates
from isochrone.core.estimate.service import Rates, Servers, Work
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

EVERY_SITE: Final = SiteName("")  # no site has this name
NEVER_NS: Final = 1 << 63


@dataclass(slots=True, eq=False)
class ModelLoad:
    """One model at one site: what the last digest said, and all work ahead of a newcomer.

    `ready` is None when the digest does not mention the model. `servers` is ready for the estimate,
    None when nothing is ready or a rate is not measured yet (0).

    For credits (see `credits`): `arrived`, `spare` and `pushed` as the digest says them; how many
    requests this gateway `sent` in an interval lately, and how many it `dispatched` since
    `renewed_ns`; and the part that it is to `keep` of those nearest there. `ready_before`: as the
    digest before the last one said.
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


@dataclass(slots=True, eq=False)
class SiteLoad:
    """What is known of one site. `dispatches` are those that no digest has counted yet."""

    site: SiteName
    heard_ns: int = 0
    epoch: int | None = None
    left_epoch: int | None = None
    sequence: int = -1
    models: dict[ModelName, ModelLoad] = field(default_factory=dict)
    lost_ns: int | None = None
    hold_ns: int = 0
    unreachable: bool = False
    dispatches: set["Dispatch"] = field(default_factory=set)


class Dispatch:
    """One request on its way to a site, or served there: the ticket to say that it ended.

    A digest heard before `arrives_ns` cannot have counted it. No dataclass: one is made for every
    request.
    """

    __slots__ = ("arrives_ns", "at", "load", "output_tokens", "prompt_tokens")

    def __init__(
        self, at: SiteLoad, load: ModelLoad, prompt_tokens: int, output_tokens: int,
        arrives_ns: int,
    ) -> None:
        self.at = at
        self.load = load
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.arrives_ns = arrives_ns


class Loads:
    """One gateway's knowledge of load; `stale_after_ms` is how old a digest may be to count.
    `learned` are rates for sites that do not say their own, `health` is what came of requests."""

    def __init__(self, stale_after_ms: float = 5000.0) -> None:
        self.stale_after_ms = stale_after_ms
        self.learned = LearnedRates()
        self.health = SiteHealth(self._model_changed, self._ready_sites)
        self._stale_after_ns = int(stale_after_ms * 1e6)
        self._sites: dict[SiteName, SiteLoad] = {}
        self._changes: dict[ModelName, set[SiteName]] = {}
        self._deaf_since_ns: int | None = None

    # -- what is known ---------------------------------------------------------------------------

    def of(self, site: SiteName) -> SiteLoad | None:
        """What is known of a site; None before its first digest, loss or dispatch."""
        return self._sites.get(site)

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

    def changes(self, model: ModelName) -> set[SiteName]:
        """The sites at which something changes from now on that may concern the model. The reader
        empties it.

        There is one reader a model: whoever asks takes over. A set with `EVERY_SITE` gets nothing
        more: its reader looks at every site and asks for another.
        """
        former = self._changes.get(model)
        if former is not None:
            former.add(EVERY_SITE)
        changes = self._changes[model] = set()
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
        load = self._load(digest.site)
        if digest.epoch == load.left_epoch:
            return False
        if digest.epoch == load.epoch and digest.sequence <= load.sequence:
            return False
        if digest.epoch != load.epoch:
            load.left_epoch, load.epoch = load.epoch, digest.epoch
        was_away = load.sequence >= 0 and self.is_stale(load, now_ns)
        load.sequence = digest.sequence
        load.heard_ns = now_ns
        _report(load, digest, now_ns)
        for known in load.models.values():
            if known.spare is not None and now_ns - known.renewed_ns > RENEWED_NS:
                _renew(known, now_ns)
        if load.unreachable and load.lost_ns is not None:
            load.unreachable = now_ns < load.lost_ns + load.hold_ns
            was_away = was_away or not load.unreachable
        for known in load.models.values():
            if known.ready and (was_away or known.ready_before == 0):
                self.health.returned(load.site, known.model, "it was away", now_ns)
        self._site_changed(load.site)
        for model in [name for name, known in load.models.items() if _is_empty(known)]:
            del load.models[model]
        return True

    def dispatched(
        self,
        site: SiteName,
        model: ModelName,
        prompt_tokens: int,
        output_tokens: int,
        now_ns: int,
        *,
        rtt_ms: float = 0.0,
    ) -> Dispatch:
        """Count a request sent to `site` now, and return the ticket for `finished`.

        `rtt_ms`: a digest heard within one round trip was sent before the request arrived.
        """
        at = self._load(site)
        load = at.models.get(model)
        if load is None:
            load = at.models[model] = ModelLoad(model)
        arrives_ns = now_ns + int(rtt_ms * 1_000_000)
        dispatch = Dispatch(at, load, prompt_tokens, output_tokens, arrives_ns)
        at.dispatches.add(dispatch)
        load.dispatched += 1
        ahead = load.ahead
        ahead.requests += 1
        ahead.prompt_tokens += prompt_tokens
        ahead.output_tokens += output_tokens
        changes = self._changes.get(model)
        if changes is not None:
            changes.add(site)
        if self.health.ailing:
            self.health.asked(site, model, now_ns)
        return dispatch

    def finished(self, dispatch: Dispatch) -> None:
        """The request of this ticket ended; nothing to do when a digest has counted it."""
        at = dispatch.at
        if dispatch in at.dispatches:
            at.dispatches.remove(dispatch)
            load = dispatch.load
            ahead = load.ahead
            ahead.requests -= 1
            ahead.prompt_tokens -= dispatch.prompt_tokens
            ahead.output_tokens -= dispatch.output_tokens
            changes = self._changes.get(load.model)
            if changes is not None:
                changes.add(at.site)

    def lost(self, site: SiteName, now_ns: int) -> None:
        """A connection to the site failed: unreachable until a digest after 2 s, doubling to 60 s.

        Losses while it is unreachable change nothing: they are the same loss seen again.
        """
        load = self._load(site)
        if not self.may_try(load, now_ns):
            return
        forgotten_ns = (load.lost_ns or 0) + load.hold_ns + LOSSES_FORGOTTEN_NS
        recent = load.lost_ns is not None and now_ns < forgotten_ns
        load.hold_ns = min(2 * load.hold_ns, LONGEST_HOLD_NS) if recent else FIRST_HOLD_NS
        load.lost_ns = now_ns
        load.unreachable = True
        self._site_changed(site)

    def still_lost(self, site: SiteName, now_ns: int) -> None:
        """A site that is unreachable does not answer a probe either: its hold begins again, as
        after another loss. Asked for near its end, so that no request has to find out."""
        load = self._sites.get(site)
        if load is not None and load.unreachable:
            load.hold_ns = min(2 * load.hold_ns, LONGEST_HOLD_NS)
            load.lost_ns = now_ns
            self._site_changed(site)

    # -- inside ----------------------------------------------------------------------------------

    def _ready_sites(self, model: ModelName) -> int:
        """At how many sites the model is ready, as far as their digests say."""
        ready = 0
        for each in self._sites.values():
            load = each.models.get(model)
            if load is not None and load.ready is not None and load.ready > 0:
                ready += 1
        return ready

    def _model_changed(self, site: SiteName, model: ModelName) -> None:
        changes = self._changes.get(model)
        if changes is not None:
            changes.add(site)

    def _load(self, site: SiteName) -> SiteLoad:
        load = self._sites.get(site)
        if load is None:
            load = self._sites[site] = SiteLoad(site)
        return load

    def _listened_until(self, now_ns: int) -> int:
        return now_ns if self._deaf_since_ns is None else min(now_ns, self._deaf_since_ns)

    def _site_changed(self, site: SiteName) -> None:
        """For every model: also those that the site has ceased to mention."""
        for changes in self._changes.values():
            changes.add(site)

    def _everything_changed(self) -> None:
        for changes in self._changes.values():
            changes.add(EVERY_SITE)
        self._changes.clear()


def _report(at: SiteLoad, digest: SiteDigest, now_ns: int) -> None:
    """Replace what was known of the site's work by the digest and what is still on its way."""
    for known in at.models.values():
        known.ready_before, known.ready = known.ready, None
    for said in digest.loads:
        load = at.models.get(said.model)
        if load is None:
            load = at.models[said.model] = ModelLoad(said.model)
        _take(load, said)
    for known in at.models.values():
        if known.ready is None:
            known.servers, known.ahead, known.arrived, known.spare = None, Work(), None, None
    at.dispatches = {each for each in at.dispatches if each.arrives_ns > now_ns}
    for each in at.dispatches:
        ahead = each.load.ahead
        ahead.requests += 1
        ahead.prompt_tokens += each.prompt_tokens
        ahead.output_tokens += each.output_tokens


def _take(load: ModelLoad, said: DeploymentLoad) -> None:
    """What the digest says, with rates that nothing can have (NaN, infinite) as not measured and
    counts >= 0: it is another site's word, and may make that site look slow, never break the
    comparison."""
    load.ready = said.ready
    load.slots = max(said.slots, said.ready)
    load.prefill_tok_s = _rate(said.prefill_tok_s)
    load.decode_tok_s = _rate(said.decode_tok_s)
    load.arrived, load.spare = said_requests(said.arrived), said_requests(said.spare)
    load.pushed = max(said_requests(said.pushed) or 0.0, 0.0)
    if said.ready < 1 or load.prefill_tok_s <= 0 or load.decode_tok_s <= 0:
        load.servers = None
    elif not _are(load.servers, said.ready, load):
        rates = Rates(prefill_tok_s=load.prefill_tok_s, decode_tok_s=load.decode_tok_s)
        load.servers = Servers(ready=said.ready, slots=load.slots, rates=rates)
    ahead = load.ahead
    ahead.requests = max(said.running, 0) + max(said.waiting, 0)
    ahead.prompt_tokens = max(said.pending_prompt_tokens, 0)
    ahead.output_tokens = max(said.pending_output_tokens, 0)


def _are(servers: Servers | None, ready: int, load: ModelLoad) -> bool:
    """Whether nothing of the servers has changed, so that boards need not look again."""
    return (
        servers is not None and servers.ready == ready and servers.slots == load.slots
        and servers.rates.prefill_tok_s == load.prefill_tok_s
        and servers.rates.decode_tok_s == load.decode_tok_s
    )


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
