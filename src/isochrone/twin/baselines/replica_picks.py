"""Which replica of a site: the second choice of the baselines, with the site's exact knowledge."""

from collections.abc import Sequence

from isochrone.twin.baselines.prefix_tree import PrefixTree
from isochrone.twin.fast.policy import Flight, Setting
from isochrone.twin.fast.replica import BLOCK_TOKENS


class RoundRobinReplica:
    """One after the other."""

    def start(self, setting: Setting) -> None:
        self._next: dict[tuple[int, int], int] = {}

    def pick(self, flight: Flight, ready: Sequence[int], now_s: float) -> int:
        key = (flight.site, flight.arrival.model)
        turn = self._next.get(key, 0)
        self._next[key] = turn + 1
        return ready[turn % len(ready)]

    def first_token(self, flight: Flight) -> None:
        pass

    def served(self, flight: Flight) -> None:
        pass

    def lost(self, site: int, replica: int) -> None:
        pass


class LeastOutstandingReplica:
    """The one with the fewest requests that have not ended; of equals the first."""

    def start(self, setting: Setting) -> None:
        self._open = [0] * len(setting.fleet.replicas)

    def pick(self, flight: Flight, ready: Sequence[int], now_s: float) -> int:
        counts = self._open
        chosen = min(ready, key=lambda replica: counts[replica])
        counts[chosen] += 1
        return chosen

    def first_token(self, flight: Flight) -> None:
        pass

    def served(self, flight: Flight) -> None:
        self._open[flight.replica] -= 1

    def lost(self, site: int, replica: int) -> None:
        pass


class StickyReplica:
    """llm-d's rule: the replica that was sent the longest beginning of the prompt, until the tokens
    that wait to be read there take longer than `tolerated_s`; then the one with the fewest."""

    def __init__(self, *, tolerated_s: float, most_blocks: int = 200_000) -> None:
        self.tolerated_s = tolerated_s
        self.most_blocks = most_blocks

    def start(self, setting: Setting) -> None:
        replicas = setting.fleet.replicas
        self._replicas = replicas
        self._tokens = [0] * len(replicas)  # uncached, not read yet, as far as is known
        self._open = [0] * len(replicas)
        self._trees: dict[int, PrefixTree] = {}

    def pick(self, flight: Flight, ready: Sequence[int], now_s: float) -> int:
        arrival, tokens, counts = flight.arrival, self._tokens, self._open
        tree = self._trees.get(flight.site)
        if tree is None:
            tree = self._trees[flight.site] = PrefixTree(self.most_blocks)
        matches = tree.matches(arrival.blocks)
        warm = max(
            (each for each in ready if each in matches), key=lambda each: matches[each],
            default=None,
        )
        if warm is None or tokens[warm] > self.tolerated_s * self._rate(warm):
            chosen = min(ready, key=lambda each: (tokens[each], counts[each]))
        else:
            chosen = warm
        fresh = max(arrival.prompt_tokens - matches.get(chosen, 0) * BLOCK_TOKENS, 1)
        tokens[chosen] += fresh
        counts[chosen] += 1
        flight.site_note = fresh
        tree.sent(arrival.blocks, chosen)
        return chosen

    def first_token(self, flight: Flight) -> None:
        if isinstance(flight.site_note, int):
            self._tokens[flight.replica] -= flight.site_note
            flight.site_note = None

    def served(self, flight: Flight) -> None:
        self.first_token(flight)  # of one that was lost before it
        self._open[flight.replica] -= 1

    def lost(self, site: int, replica: int) -> None:
        """It will begin anew, with nothing."""
        if site in self._trees:
            self._trees[site].forget(replica)

    def _rate(self, replica: int) -> float:
        return self._replicas[replica].stated.prefill_tok_s


class WeightedReplica:
    """GORGO's cost without the way, which is one for all replicas of a site: tokens sent and not
    answered yet, at a weight, and what of the prompt the replica was not sent before."""

    def __init__(self, *, running_weight: float, most_blocks: int = 200_000) -> None:
        self.running_weight = running_weight
        self.most_blocks = most_blocks

    def start(self, setting: Setting) -> None:
        count = len(setting.fleet.replicas)
        self._queued = [0] * count
        self._running = [0] * count
        self._trees: dict[int, PrefixTree] = {}

    def pick(self, flight: Flight, ready: Sequence[int], now_s: float) -> int:
        arrival = flight.arrival
        tree = self._trees.get(flight.site)
        if tree is None:
            tree = self._trees[flight.site] = PrefixTree(self.most_blocks)
        matches = tree.matches(arrival.blocks)

        def cost(replica: int) -> float:
            return (
                self._queued[replica] + self.running_weight * self._running[replica]
                - matches.get(replica, 0) * BLOCK_TOKENS
            )

        chosen = min(ready, key=cost)
        self._queued[chosen] += arrival.prompt_tokens
        flight.site_note = "queued"
        tree.sent(arrival.blocks, chosen)
        return chosen

    def first_token(self, flight: Flight) -> None:
        if flight.site_note == "queued":
            tokens = flight.arrival.prompt_tokens
            self._queued[flight.replica] -= tokens
            self._running[flight.replica] += tokens
            flight.site_note = "running"

    def served(self, flight: Flight) -> None:
        self.first_token(flight)
        if flight.site_note == "running":
            self._running[flight.replica] -= flight.arrival.prompt_tokens
            flight.site_note = None

    def lost(self, site: int, replica: int) -> None:
        """It will begin anew, with nothing."""
        if site in self._trees:
            self._trees[site].forget(replica)
