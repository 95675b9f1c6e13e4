"""Loads: the last digest of every site, corrected by what this gateway has sent there since.

A digest is about a second old, and a second is long: without the correction every gateway would
send all of it to the site that looked idle. Mutable, owned by one event loop; time is an argument.
"""

from dataclasses import dataclass, field, replace

from isochrone.core.estimate.service import NO_WORK, Rates, Servers, Work
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.digest import DeploymentLoad, SiteDigest

FIRST_HOLD_NS = 2_000_000_000
LONGEST_HOLD_NS = 60_000_000_000
LOSSES_FORGOTTEN_NS = 60_000_000_000  # this long after a hold without another loss: start at 2 s

# Rates outside cannot have been measured.
SLOWEST_TOK_S = 1e-3
FASTEST_TOK_S = 1e9


@dataclass(slots=True, kw_only=True)
class _Dispatch:
    model: ModelName
    work: Work
    arrives_ns: int  # a digest heard before this cannot have counted it


@dataclass(slots=True, kw_only=True)
class ModelLoad:
    """One model at one site: its last digest's figures, and all work ahead of a newcomer.

    `servers` is ready for the estimate, None when nothing is ready or a rate is not measured yet.
    """

    load: DeploymentLoad
    servers: Servers | None
    ahead: Work


@dataclass(slots=True, kw_only=True)
class SiteLoad:
    """What is known of one site. `own` sums the dispatches that no digest has counted yet."""

    heard_ns: int = 0
    epoch: int | None = None
    left_epoch: int | None = None
    sequence: int = -1
    models: dict[ModelName, ModelLoad] = field(default_factory=dict)
    own: dict[ModelName, Work] = field(default_factory=dict)
    lost_ns: int | None = None
    hold_ns: int = 0
    unreachable: bool = False
    dispatches: dict[int, _Dispatch] = field(default_factory=dict)


class Loads:
    """One gateway's knowledge of load; `stale_after_ms` is how old a digest may be to count."""

    def __init__(self, stale_after_ms: float = 5000.0) -> None:
        self.stale_after_ms = stale_after_ms
        self._sites: dict[SiteName, SiteLoad] = {}
        self._site_of: dict[int, SiteLoad] = {}
        self._next_ticket = 0
        self._deaf_since_ns: int | None = None

    def deaf(self, since_ns: int) -> None:
        """No digest can have arrived since then: the bus is away, which says nothing about sites.

        Until `hearing`, no digest grows stale, and a site whose connection was lost may be tried
        again after its hold.
        """
        if self._deaf_since_ns is None:
            self._deaf_since_ns = since_ns

    def hearing(self, now_ns: int) -> None:
        """Digests arrive again: the time without them does not count against any site."""
        if self._deaf_since_ns is None:
            return
        gap_ns = max(now_ns - self._deaf_since_ns, 0)
        self._deaf_since_ns = None
        for load in self._sites.values():
            load.heard_ns = min(load.heard_ns + gap_ns, now_ns)

    def stale_ms(self, load: SiteLoad, now_ns: int) -> float:
        """How long a digest could have arrived and did not."""
        until_ns = now_ns if self._deaf_since_ns is None else min(now_ns, self._deaf_since_ns)
        return (until_ns - load.heard_ns) / 1e6

    def may_try(self, load: SiteLoad, now_ns: int) -> bool:
        """Whether a site is worth a connection; one that was lost waits for its next digest."""
        if not load.unreachable:
            return True
        held = load.lost_ns is not None and now_ns < load.lost_ns + load.hold_ns
        return self._deaf_since_ns is not None and not held

    def of(self, site: SiteName) -> SiteLoad | None:
        """What is known of a site; None before its first digest, loss or dispatch."""
        return self._sites.get(site)

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
        load.sequence = digest.sequence
        load.heard_ns = now_ns
        for ticket in [t for t, each in load.dispatches.items() if each.arrives_ns <= now_ns]:
            self._forget(ticket)
        load.models = {
            each.model: ModelLoad(load=each, servers=_servers(each), ahead=_reported(each))
            for each in map(_plausible, digest.loads)
        }
        for model in load.models:
            _recount(load, model)
        if load.unreachable and load.lost_ns is not None:
            load.unreachable = now_ns < load.lost_ns + load.hold_ns
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
    ) -> int:
        """Count a request sent to `site` now, and return the ticket for `finished`.

        `rtt_ms`: a digest heard within one round trip was sent before the request arrived.
        """
        load = self._load(site)
        work = Work(requests=1, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        ticket = self._next_ticket
        self._next_ticket += 1
        arrives_ns = now_ns + int(rtt_ms * 1_000_000)
        load.dispatches[ticket] = _Dispatch(model=model, work=work, arrives_ns=arrives_ns)
        self._site_of[ticket] = load
        load.own[model] = load.own.get(model, NO_WORK) + work
        _recount(load, model)
        return ticket

    def finished(self, ticket: int) -> None:
        """The request of this ticket ended; nothing to do when a digest has counted it."""
        if ticket in self._site_of:
            self._forget(ticket)

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

    def _load(self, site: SiteName) -> SiteLoad:
        load = self._sites.get(site)
        if load is None:
            load = self._sites[site] = SiteLoad()
        return load

    def _forget(self, ticket: int) -> None:
        load = self._site_of.pop(ticket)
        dispatch = load.dispatches.pop(ticket)
        load.own[dispatch.model] -= dispatch.work
        _recount(load, dispatch.model)


def _plausible(load: DeploymentLoad) -> DeploymentLoad:
    """The load with rates that nothing can have (NaN, infinite) as not measured, counts >= 0.

    A digest is another site's word: it may make that site look slow, never break the comparison.
    """

    def rate(tok_s: float) -> float:
        return tok_s if SLOWEST_TOK_S <= tok_s <= FASTEST_TOK_S else 0.0

    return replace(
        load,
        running=max(load.running, 0),
        waiting=max(load.waiting, 0),
        pending_prompt_tokens=max(load.pending_prompt_tokens, 0),
        pending_output_tokens=max(load.pending_output_tokens, 0),
        prefill_tok_s=rate(load.prefill_tok_s),
        decode_tok_s=rate(load.decode_tok_s),
    )


def _servers(load: DeploymentLoad) -> Servers | None:
    if load.ready < 1 or load.prefill_tok_s <= 0 or load.decode_tok_s <= 0:
        return None
    rates = Rates(prefill_tok_s=load.prefill_tok_s, decode_tok_s=load.decode_tok_s)
    return Servers(ready=load.ready, slots=max(load.slots, load.ready), rates=rates)


def _reported(load: DeploymentLoad) -> Work:
    return Work(
        requests=load.running + load.waiting,
        prompt_tokens=load.pending_prompt_tokens,
        output_tokens=load.pending_output_tokens,
    )


def _recount(load: SiteLoad, model: ModelName) -> None:
    """Work ahead = what the digest reported + what this gateway has sent since."""
    known = load.models.get(model)
    if known is not None:
        known.ahead = _reported(known.load) + load.own.get(model, NO_WORK)
