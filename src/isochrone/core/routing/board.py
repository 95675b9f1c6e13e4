"""The board: what a model would cost at each site now, as arrays that follow the loads.

A choice is then a few operations on arrays. A cell is weighed again when something happened at its
site; what time alone changes is watched by one instant, `next_change_ns`.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from isochrone.core.estimate.service import (
    Rates,
    Servers,
    decode_ms,
    opening_ms,
    prefill_ms,
    queue_ms,
)
from isochrone.core.estimate.transfer import byte_ms
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.lifecycle.health import HELD_BACK_MS, Health
from isochrone.core.rng import Random
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.credits import credit, stays, wanting
from isochrone.core.routing.loads import EVERY_SITE, NEVER_NS, Loads, ModelLoad, SiteLoad
from isochrone.core.routing.per_site import Milliseconds
from isochrone.core.world.site import RttSource

# Two costs this near are the same as far as the estimates can tell.
TIE_MS: Final = 3.0
TIE_SHARE: Final = 0.05

USUAL_PROMPT_TOKENS: Final = 256  # for which it is worked out which sites are nearest
RESIZED: Final = 0.1              # a size that changed by more counts for that

AGES_HOLD_NS = 1_000_000_000  # a refusal that names an age is written anew after this


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSite:
    """A site that every lasting rule allows, with what a choice needs of it."""

    name: SiteName
    rtt_ms: float
    rtt_source: RttSource
    seed: Rates
    kind: str = ""  # of hardware, which the seed is of


class Cell:
    """One site of a board: what is known there (`known`, and `load` of the model, if it was found
    lately), and what its cost was worked out from. `seeded`: the last servers with a rate of the
    seed. `size`: output tokens/s of all slots; `pace_ms`: to read a token; both as they were ranked
    by. `given`: its credits; `wanting`: see `credits.wanting`."""

    __slots__ = (
        "given", "is_credited", "known", "load", "name", "pace_ms", "seeded", "servers", "site",
        "size", "wanting",
    )

    def __init__(self, site: OpenSite) -> None:
        self.site = site
        self.name = site.name
        self.known: SiteLoad | None = None
        self.load: ModelLoad | None = None
        self.servers: Servers | None = None
        self.seeded: Servers | None = None
        self.size = 0.0
        self.pace_ms = 0.0
        self.given = 0.0
        self.wanting = 0.0
        self.is_credited = False


class Board:
    """Costs of one model at `sites`, in their order; `catch_up` before reading.

    cost = `fixed_ms` + prompt tokens * `prompt_ms` + output tokens * `output_ms` + bytes of the
    body * `byte_ms`, in milliseconds. A site that cannot take a request now has an infinite
    `fixed_ms`, and is in `refusals`. `queues_ms` is the part of `fixed_ms` that is queue. All
    float32, as decisions keep them.

    `credits` are the requests that all gateways together may push to a site in an interval, where
    digests tell, which `credited` of them do; `wanting` is about how many want to leave the site
    that is nearest to them. `version` counts the changes of refusals and of what it takes to read a
    prompt, `resized` those of sizes.
    `recovering` are those that get only a part of their usual work yet, see `held_back_ms`.
    """

    def __init__(self, model: ModelName, sites: tuple[OpenSite, ...], loads: Loads) -> None:
        count = len(sites)
        self.loads = loads
        self.index_of = {site.name: index for index, site in enumerate(sites)}
        self.fixed_ms = np.full(count, np.inf, dtype="<f4")
        self.prompt_ms = np.zeros(count, dtype="<f4")
        self.output_ms = np.zeros(count, dtype="<f4")
        self.queues_ms = np.zeros(count, dtype="<f4")
        self.byte_ms = np.array([byte_ms(site.rtt_ms) for site in sites], dtype="<f4")
        self.credits = np.zeros(count, dtype="<f4")
        self._factor = np.zeros((), dtype="<f4")
        self.wanting = 0.0
        self.credited = 0
        self.spilled = False  # the own site did not answer within the target lately
        self.cells = [Cell(site) for site in sites]
        self.refusals: dict[SiteName, Refused] = {}
        self.recovering: dict[int, Health] = {}
        self.version = 0
        self.resized = 0
        self.changes: set[int] = {EVERY_SITE}
        self.next_change_ns = NEVER_NS
        self.model = model
        self._index_at: list[int] = []  # by the number of a site in `loads`, -1 for others

    def catch_up(self, now_ns: int) -> None:
        """Weigh what changed. Due when `changes` has something, or at `next_change_ns`."""
        changes, is_due = self.changes, now_ns >= self.next_change_ns
        if EVERY_SITE in changes or (is_due and not self._is_all_fresh(now_ns)):
            self.changes = self.loads.changes(self.model) if self.cells else set()
            self.next_change_ns = NEVER_NS
            for index in range(len(self.cells)):
                self._weigh(index, now_ns)
            self._sum_up()
            return
        # In an order of its own: who recovers first draws first, and sums of floats depend on it.
        places: list[int] = []
        for number in changes:
            at = self._place_of(number)
            if at >= 0:
                places.append(at)
        if len(places) > 1:
            places.sort()
        for at in places:
            cell = self.cells[at]
            known = cell.known
            if known is None or known.unreachable or (
                self.refusals and cell.name in self.refusals
            ):
                self._weigh(at, now_ns)
            else:  # it was open, and before `next_change_ns` it cannot have grown stale
                self._price(at, cell, known, now_ns)
        changes.clear()
        if is_due:
            self._sum_up()

    def _place_of(self, number: int) -> int:
        """The index of a site that `loads` know by this number, -1 for one of no cell."""
        index_at = self._index_at
        while len(index_at) <= number:
            site = self.loads.numbered(len(index_at)).site
            index_at.append(self.index_of.get(site, -1))
        return index_at[number]

    def _sum_up(self) -> None:
        """Without what rounding left."""
        wanting = 0.0
        for cell in self.cells:
            wanting += cell.wanting
        self.wanting = wanting

    def _is_all_fresh(self, now_ns: int) -> bool:
        """Whether every site is open, says its own rates and was heard of since `next_change_ns`
        was set, so that time alone has changed nothing; that is then set anew."""
        loads = self.loads
        if self.refusals or self.recovering or loads.health.ailing:
            return False
        next_ns = NEVER_NS
        for cell in self.cells:
            known = cell.known
            if known is None or known.unreachable or cell.seeded is not None:
                return False
            change_ns = loads.next_change_ns(known, now_ns)
            if change_ns <= now_ns or change_ns == NEVER_NS:
                return False
            next_ns = min(next_ns, change_ns)
        self.next_change_ns = next_ns
        return True

    def times(self, token_ms: Milliseconds, tokens: int) -> Milliseconds:
        """One of the board's arrays, multiplied: numpy takes an array of its own kind twice as
        quickly as a number of Python."""
        self._factor[()] = tokens
        return np.multiply(token_ms, self._factor)

    def held_back_ms(self, now_ns: int, rng: Random) -> Milliseconds:
        """What each site costs one request more because it recovers: so much that another is taken,
        for all but its share of the requests; nothing where all recover. Each ingress does so with
        its own requests, so that the sum over any number of them grows alike."""
        held = np.zeros(len(self.cells), dtype="<f4")
        if len(self.cells) - len(self.refusals) <= len(self.recovering):
            return held
        rules = self.loads.health.rules
        for index, health in self.recovering.items():
            if rng.random() >= health.weight(now_ns, rules):
                held[index] = HELD_BACK_MS
        return held

    def _weigh(self, index: int, now_ns: int) -> None:
        """Whether the site can take a request now, and for how long that is certain."""
        loads, cell = self.loads, self.cells[index]
        site = cell.name
        known = cell.known = loads.of(site)
        if known is None or known.epoch is None:
            detail = f"nothing heard from {site} yet"
            self._refuse(index, Refused(site=site, rule="digest_stale", detail=detail))
            return
        self.next_change_ns = min(self.next_change_ns, loads.next_change_ns(known, now_ns))
        if not loads.may_try(known, now_ns):
            self._refuse(index, _unreachable(known, now_ns))
        elif loads.is_stale(known, now_ns):
            stale_ms = loads.stale_ms(known, now_ns)
            self._refuse(index, _stale(site, stale_ms, loads.stale_after_ms))
        else:
            self._price(index, cell, known, now_ns)
            return
        self.next_change_ns = min(self.next_change_ns, now_ns + AGES_HOLD_NS)

    def _price(self, index: int, cell: Cell, known: SiteLoad, now_ns: int) -> None:
        """The cost at a site that may be tried."""
        load, site = cell.load, cell.site
        if load is None or not load.is_listed:
            load = cell.load = known.models.get(self.model)
        if (self.loads.health.ailing or self.recovering) and not self._is_trusted(index, now_ns):
            return
        if load is None or load.ready is None or load.ready < 1:
            self._refuse(index, _none_ready(site.name, self.model, load))
            return
        servers = load.servers
        if servers is None:
            seed = self.loads.learned.rates(self.model, site.kind, site.seed)
            servers = cell.seeded = _seeded(load, load.ready, seed, cell.seeded)
        if servers is not cell.servers:
            cell.servers = servers
            pace_ms = prefill_ms(1, servers.rates)
            self.prompt_ms[index] = pace_ms
            self.output_ms[index] = decode_ms(1, servers.rates)
            if abs(pace_ms - cell.pace_ms) > RESIZED * cell.pace_ms:
                cell.pace_ms = pace_ms
                self.version += 1
            size = servers.slots * servers.rates.decode_tok_s
            if abs(size - cell.size) > RESIZED * cell.size:
                cell.size = size
                self.resized += 1
        ahead = load.ahead
        if load.openings is None:
            wait_ms = queue_ms(servers, ahead)
        else:
            wait_ms = opening_ms(
                servers, ahead, load.openings, load.soonest_ms,
                ahead.requests - load.said_requests, ahead.prompt_tokens - load.said_tokens,
            )
        wait_ms += load.lean_ms
        if wait_ms < 0.0:
            wait_ms = 0.0
        self.queues_ms[index] = wait_ms
        self.fixed_ms[index] = site.rtt_ms + wait_ms
        if load.spare is not None or cell.is_credited:
            self._give(index, cell, load)
        if self.refusals and site.name in self.refusals:
            del self.refusals[site.name]
            self.version += 1

    def _is_trusted(self, index: int, now_ns: int) -> bool:
        """Whether a request may be sent to a site, by what came of those before it."""
        site = self.cells[index].name
        self.recovering.pop(index, None)
        health = self.loads.health.of(site, self.model)
        if health is None or not health.ailing:
            return True
        if health.state == "recovering":
            self.recovering[index] = health
        elif health.is_out and not health.may_ask(now_ns):
            self.next_change_ns = min(self.next_change_ns, health.until_ns)
            self._refuse(index, _ejected(site, self.model, health))
            return False
        return True

    def _give(self, index: int, cell: Cell, load: ModelLoad) -> None:
        """What may be pushed to a site, and what wants to leave it."""
        spare, is_credited = load.spare, cell.is_credited
        if (spare is not None) != is_credited:
            cell.is_credited = not is_credited
            self.credited += -1 if is_credited else 1
        given = wants = 0.0
        if spare is not None:
            arrived = load.arrived or 0.0
            given = credit(load.pushed, arrived, spare)
            wants = wanting(load.pushed, arrived, spare)
        self.credits[index] = cell.given = given
        self.wanting += wants - cell.wanting
        cell.wanting = wants

    def _refuse(self, index: int, refused: Refused) -> None:
        self.refusals[refused.site] = refused
        self.version += 1
        cell = self.cells[index]
        cell.servers, cell.size, cell.pace_ms = None, 0.0, 0.0
        self.fixed_ms[index] = np.inf
        self.prompt_ms[index] = self.output_ms[index] = self.queues_ms[index] = 0.0


class Part:
    """The sites of a board that one policy axis opens. `places` are their indices there, None when
    it is all of them; `refused` and `eligible` are about these sites. `own` is the index of the
    gateway's own site, -1 where it is none of them."""

    def __init__(
        self, board: Board, sites: tuple[OpenSite, ...], own_site: SiteName | None = None
    ) -> None:
        self.board = board
        self.sites = sites
        self.index_of = {site.name: index for index, site in enumerate(sites)}
        self.places: np.ndarray[tuple[Any, ...], np.dtype[np.intp]] | None = None
        if len(sites) < len(board.index_of):
            self.places = np.array([board.index_of[site.name] for site in sites], dtype=np.intp)
        self.own = -1 if own_site is None else self.index_of.get(own_site, -1)
        self.refused: tuple[Refused, ...] = ()
        self.eligible = 0
        self.version = self.resized = -1
        self._nearest: list[int] = []
        self._sizes: list[float] = []  # of the nearest, each with those before it
        self._closed: Sequence[Refused] = ()
        self._shut_at = -1  # the version for which `_shut` is that of `_closed`
        self._shut: tuple[Refused, ...] = ()
        self._shut_places = np.zeros(0, dtype=np.intp)

    def catch_up(self) -> None:
        """Count anew. Due when `version` or `resized` differs from the board's."""
        if self.version == self.board.version:
            self._size_up()
            return
        refusals = self.board.refusals
        self.version = self.board.version
        self.refused = ()
        if refusals:
            self.refused = tuple([
                refusals[site.name] for site in self.sites if site.name in refusals
            ])
        self.eligible = len(self.sites) - len(self.refused)
        self._rank()

    def shut(
        self, closed: Sequence[Refused]
    ) -> tuple[tuple[Refused, ...], np.ndarray[tuple[Any, ...], np.dtype[np.intp]]]:
        """Of the sites that are `closed` to a class, which may be nearly all, those that could take
        a request otherwise, and their indices: worked out once for many requests."""
        if closed is not self._closed or self._shut_at != self.version:
            refusals, index_of = self.board.refusals, self.index_of
            self._closed, self._shut_at = closed, self.version
            self._shut = tuple([
                each for each in closed if each.site in index_of and each.site not in refusals
            ])
            places = [index_of[each.site] for each in self._shut]
            self._shut_places = np.array(places, dtype=np.intp)
        return self._shut, self._shut_places

    def stays(self, index: int, late_ms: float) -> float:
        """The chance with which a request stays at its nearest site, which is `late_ms` dearer than
        the cheapest (or near equals)."""
        board = self.board
        place = index if self.places is None else self.places.item(index)
        load = board.cells[place].load
        if load is None or load.spare is None:
            return 1.0 if late_ms <= 0.0 else 0.0
        arrived = load.arrived or 0.0
        share = min(load.sent / arrived, 1.0) if arrived > 0.0 else 1.0
        return stays(load.keep, share, late_ms, arrived)

    def nearest(self, luck: float) -> int:
        """The site where a request is answered soonest while nobody queues; of several as good as
        equal one by its size and by `luck` in [0, 1). -1 when no site is eligible."""
        nearest = self._nearest
        if len(nearest) < 2:
            return nearest[0] if nearest else -1
        drawn = bisect_right(self._sizes, luck * self._sizes[-1])
        return nearest[min(drawn, len(nearest) - 1)]

    def _rank(self) -> None:
        board, at = self.board, self.places
        self._nearest = []
        if not self.eligible:
            return
        costs = board.times(board.prompt_ms, USUAL_PROMPT_TOKENS)
        costs += board.fixed_ms - board.queues_ms
        if at is not None:
            costs = costs.take(at)
        cheapest_ms = costs.item(int(costs.argmin()))
        near = (costs <= cheapest_ms + max(TIE_MS, TIE_SHARE * cheapest_ms)).tobytes()
        index = near.find(1)
        while index >= 0:
            self._nearest.append(index)
            index = near.find(1, index + 1)
        self._size_up()

    def _size_up(self) -> None:
        """How large the nearest are."""
        cells, at, total = self.board.cells, self.places, 0.0
        self.resized = self.board.resized
        sizes = self._sizes = []
        for index in self._nearest:
            total += cells[index if at is None else at.item(index)].size
            sizes.append(total)


def _seeded(load: ModelLoad, ready: int, seed: Rates, before: Servers | None) -> Servers:
    """Replicas that have not measured a rate yet: the seed of the site's hardware stands in. The
    same as `before` while nothing changes: a price is asked for with every request."""
    prefill_tok_s = load.prefill_tok_s if load.prefill_tok_s > 0 else seed.prefill_tok_s
    decode_tok_s = load.decode_tok_s if load.decode_tok_s > 0 else seed.decode_tok_s
    if before is not None and before.ready == ready and before.slots == load.slots:
        rates = before.rates
        if rates.prefill_tok_s == prefill_tok_s and rates.decode_tok_s == decode_tok_s:
            return before
    return Servers(
        ready=ready, slots=load.slots,
        rates=Rates(prefill_tok_s=prefill_tok_s, decode_tok_s=decode_tok_s),
    )


# A board's refusals are shared by the requests of up to a second, so an age is said as a bound.


def _unreachable(known: SiteLoad, now_ns: int) -> Refused:
    assert known.lost_ns is not None
    detail = (
        f"the connection to {known.site} was lost at least {_seconds(now_ns - known.lost_ns)} ago; "
        f"tried again at its first digest after {known.hold_ns // 1_000_000_000} s"
    )
    return Refused(site=known.site, rule="unreachable", detail=detail)


def _stale(site: SiteName, age_ms: float, limit_ms: float) -> Refused:
    detail = (
        f"the last digest of {site} is at least {_seconds(int(age_ms * 1e6))} old, at most "
        f"{limit_ms / 1000:.1f} s count"
    )
    return Refused(site=site, rule="digest_stale", detail=detail)


def _ejected(site: SiteName, model: ModelName, health: Health) -> Refused:
    detail = (
        f"requests for {model} failed at {site}, the last because of this: {health.why}; one may "
        f"try it again after {health.hold_s:g} s"
    )
    return Refused(site=site, rule="ejected", detail=detail)


def _seconds(duration_ns: int) -> str:
    """Rounded down, so that it stays true as a lower bound."""
    return f"{duration_ns // 100_000_000 / 10:.1f} s"


def _none_ready(site: SiteName, model: ModelName, load: ModelLoad | None) -> Refused:
    said = "does not mention it" if load is None or load.ready is None else (
        f"says {load.ready} ready"
    )
    detail = f"{site} has no ready replica of {model}: its digest {said}"
    return Refused(site=site, rule="no_ready_replica", detail=detail)
