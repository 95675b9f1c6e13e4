"""Which site: the first choice of the baselines. `sites` come nearest first, at least one.

Most systems here were made for replicas behind one balancer and know no distance. So that they are
not beaten by that alone, each may keep to the nearest sites: how many is a parameter to be tuned.
"""

from bisect import bisect_left
from collections.abc import Sequence

from isochrone.core.rng import Random
from isochrone.twin.baselines.prefix_tree import PrefixTree
from isochrone.twin.baselines.vantage import Vantage
from isochrone.twin.fast.arrivals import NO_SESSION
from isochrone.twin.fast.policy import Flight, Setting
from isochrone.twin.fast.replica import BLOCK_TOKENS

_MASK = 2**64 - 1


class NearestSite:
    """The nearest one that is healthy, however long its queue: geographic DNS or anycast."""

    def start(self, setting: Setting) -> None:
        pass

    def pick(self, vantage: Vantage, flight: Flight, sites: Sequence[int], now_s: float) -> int:
        return sites[0]


class RoundRobinSites:
    """One replica after the other, of the `nearest` sites; so a site with more has more turns."""

    def __init__(self, *, nearest: int) -> None:
        self.nearest = nearest

    def start(self, setting: Setting) -> None:
        self._at = setting.fleet.at
        self._turns: dict[tuple[bool, int, int], int] = {}

    def pick(self, vantage: Vantage, flight: Flight, sites: Sequence[int], now_s: float) -> int:
        model = flight.arrival.model
        key = (vantage.at_site, vantage.number, model)
        # Places begin at different replicas, or they would all begin at the same one.
        turn = self._turns.get(key, vantage.number)
        self._turns[key] = turn + 1
        near = sites[: self.nearest]
        counts = [max(len(self._at[site][model]), 1) for site in near]
        left = turn % sum(counts)
        for site, count in zip(near, counts, strict=True):
            if left < count:
                return site
            left -= count
        return near[-1]


class LeastOutstandingSites:
    """Of `draws` of the `nearest` sites, drawn by chance, the one with the fewest requests a
    replica; of equals the nearest. Draws keep balancers with the same news from running together;
    0 draws looks at all."""

    def __init__(self, *, nearest: int, draws: int) -> None:
        self.nearest = nearest
        self.draws = draws

    def start(self, setting: Setting) -> None:
        self._rng: Random = setting.rng
        self._models = setting.fleet.models

    def pick(self, vantage: Vantage, flight: Flight, sites: Sequence[int], now_s: float) -> int:
        near = sites[: self.nearest]
        if self.draws and len(near) > self.draws:
            near = [near[place] for place in sorted(self._rng.sample(range(len(near)), self.draws))]
        model = flight.arrival.model
        name = self._models[model].name
        return min(near, key=lambda site: vantage.load(site, model, name, now_s).requests_each)


class HashedSites:
    """Consistent hashing with bounded loads over the `nearest` sites: the key's place on a ring of
    `points` a replica, and on from there past sites with more than `bound` times the mean load.

    The key is the session, else the first `key_blocks` blocks of the prompt, else the request.
    """

    def __init__(self, *, nearest: int, bound: float, key_blocks: int, points: int = 40) -> None:
        self.nearest = nearest
        self.bound = bound
        self.key_blocks = key_blocks
        self.points = points

    def start(self, setting: Setting) -> None:
        self._at = setting.fleet.at
        self._models = setting.fleet.models
        self._rings: dict[tuple[int, tuple[int, ...]], tuple[list[int], list[int]]] = {}

    def pick(self, vantage: Vantage, flight: Flight, sites: Sequence[int], now_s: float) -> int:
        model = flight.arrival.model
        near = tuple(sites[: self.nearest])
        places, owners = self._ring(model, near)
        start = bisect_left(places, mixed(self._key(flight)))
        name = self._models[model].name
        loads = {site: vantage.load(site, model, name, now_s) for site in near}
        replicas = sum(load.ready for load in loads.values())
        mean = (sum(load.requests for load in loads.values()) + 1.0) / replicas
        met: set[int] = set()
        for step in range(len(owners)):
            site = owners[(start + step) % len(owners)]
            if site in met:
                continue
            load = loads[site]
            if load.requests + 1.0 <= max(self.bound * mean * load.ready, 1.0):
                return site
            met.add(site)
            if len(met) == len(near):
                break
        return min(near, key=lambda site: loads[site].requests_each)

    def _key(self, flight: Flight) -> int:
        arrival = flight.arrival
        if arrival.session != NO_SESSION:
            return arrival.session
        if arrival.blocks:
            return arrival.blocks[min(self.key_blocks, len(arrival.blocks)) - 1]
        return flight.ident

    def _ring(self, model: int, near: tuple[int, ...]) -> tuple[list[int], list[int]]:
        key = (model, tuple(sorted(near)))
        found = self._rings.get(key)
        if found is None:
            points = sorted(
                (mixed(site * 1_000_003 + point), site)
                for site in key[1]
                for point in range(self.points * max(len(self._at[site][model]), 1))
            )
            found = self._rings[key] = ([each[0] for each in points], [each[1] for each in points])
        return found


class SpillingSites:
    """The nearest site whose queue is short: at most `waiting` requests a replica that are not let
    in, and `prompt_tokens` a replica to be read. None within `extra_ms` of the nearest: that one.
    """

    def __init__(self, *, waiting: float, prompt_tokens: float, extra_ms: float) -> None:
        self.waiting = waiting
        self.prompt_tokens = prompt_tokens
        self.extra_ms = extra_ms

    def start(self, setting: Setting) -> None:
        self._models = setting.fleet.models

    def pick(self, vantage: Vantage, flight: Flight, sites: Sequence[int], now_s: float) -> int:
        model = flight.arrival.model
        name = self._models[model].name
        rtt_ms = vantage.rtt_ms
        farthest_ms = rtt_ms[sites[0]] + self.extra_ms
        for site in sites:
            if rtt_ms[site] > farthest_ms:
                break
            load = vantage.load(site, model, name, now_s)
            if (
                load.waiting <= self.waiting * load.ready
                and load.prompt_tokens <= self.prompt_tokens * load.ready
            ):
                return site
        return sites[0]


class WeightedSites:
    """GORGO's weighted sum: round trip, tokens to be read there, tokens running there at a weight,
    and what of the prompt was not sent there before, all in ms at one rate; the least is taken."""

    def __init__(
        self, *, ms_per_token: float, running_weight: float, rtt_weight: float,
        typical_tokens: float, most_blocks: int = 200_000,
    ) -> None:
        self.ms_per_token = ms_per_token
        self.running_weight = running_weight
        self.rtt_weight = rtt_weight
        self.typical_tokens = typical_tokens
        self.most_blocks = most_blocks

    def start(self, setting: Setting) -> None:
        self._models = setting.fleet.models
        self._trees: dict[tuple[bool, int], PrefixTree] = {}

    def pick(self, vantage: Vantage, flight: Flight, sites: Sequence[int], now_s: float) -> int:
        arrival = flight.arrival
        key = (vantage.at_site, vantage.number)
        tree = self._trees.get(key)
        if tree is None:
            tree = self._trees[key] = PrefixTree(self.most_blocks)
        matches = tree.matches(arrival.blocks)
        name = self._models[arrival.model].name
        best, best_ms = sites[0], float("inf")
        for site in sites:
            way_ms = self.rtt_weight * vantage.rtt_ms[site]
            if way_ms - arrival.prompt_tokens * self.ms_per_token >= best_ms:
                break  # they only get farther
            load = vantage.load(site, arrival.model, name, now_s)
            running = max(load.requests - load.waiting, 0.0) * self.typical_tokens
            ahead = (load.prompt_tokens + self.running_weight * running) / load.ready
            cached = min(matches.get(site, 0) * BLOCK_TOKENS, arrival.prompt_tokens)
            cost_ms = way_ms + self.ms_per_token * (ahead - cached)
            if cost_ms < best_ms:
                best, best_ms = site, cost_ms
        tree.sent(arrival.blocks, best)
        return best


def mixed(value: int) -> int:
    """A number whose bits all depend on all bits of `value` (the finaliser of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
