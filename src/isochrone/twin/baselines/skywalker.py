"""SkyWalker: a balancer at every site, prefix trees of replicas and of sites, selective pushing.

A request comes to the balancer of the nearest site that may serve it. It is pushed only to replicas
where nothing is pending; while there is none at the site, to another site that had one when last
probed; while there is none anywhere, it is kept in the balancer's queue. What was forwarded once
stays where it came. Among those available, the one that was sent the longest beginning of the
prompt is taken if that is long enough, else the one with the fewest requests, of sites the nearest.
"""

from collections import deque
from collections.abc import Sequence

from isochrone.core.estimate.service import Work
from isochrone.core.world.digest import SiteDigest
from isochrone.twin.baselines.prefix_tree import PrefixTree
from isochrone.twin.baselines.two_level import TRIES
from isochrone.twin.baselines.vantage import Vantage
from isochrone.twin.fast.policy import Flight, Setting
from isochrone.twin.fast.replica import BLOCK_TOKENS


class SkyWalkerRouter:
    """`probe_s`: how old what sites know of each other may be. `pending`: requests that a replica
    may have unread (the one that it reads is not pending, so 1 is the paper's rule); of replicas
    elsewhere only sums are known, so there it is `unread_tokens` a replica. `match_share`: of a
    prompt that must match before the match decides."""

    name = "skywalker"

    def __init__(
        self, *, probe_s: float, pending: int, match_share: float, unread_tokens: float,
        most_blocks: int = 200_000,
    ) -> None:
        self.digest_s = probe_s
        self.pending = pending
        self.match_share = match_share
        self.unread_tokens = unread_tokens
        self.most_blocks = most_blocks

    def start(self, setting: Setting) -> None:
        self._setting = setting
        setting.waiting = self._waiting
        count = len(setting.fleet.replicas)
        self._unread = [0] * count
        self._open = [0] * count
        self._ready: dict[int, tuple[int, ...]] = {}
        self._queues: dict[tuple[int, int], deque[Flight]] = {}
        self._replica_trees: dict[int, PrefixTree] = {}
        self._site_trees: dict[int, PrefixTree] = {}
        self._vantages: dict[int, Vantage] = {}
        self._ingresses: dict[int, Vantage] = {}
        self._near: dict[tuple[int, int, int], list[int]] = {}
        self._woken: set[int] = set()

    # -- at an ingress ---------------------------------------------------------------------------

    def began(self, flight: Flight, now_s: float) -> None:
        self._to_balancer(flight, now_s)

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        if lost:
            self._ingress(flight).lost(flight.tried[-1], now_s)
            if isinstance(flight.note, int):  # the balancer that forwarded it saw it, too
                self._at_site(flight.note).lost(flight.tried[-1], now_s)
        if len(flight.tried) >= TRIES:
            self._setting.actions.give_up(flight, now_s)
        else:
            self._to_balancer(flight, now_s)

    def ended(self, flight: Flight, now_s: float) -> None:
        pass

    def broke(self, flight: Flight, now_s: float) -> None:
        pass

    def _to_balancer(self, flight: Flight, now_s: float) -> None:
        arrival, vantage = flight.arrival, self._ingress(flight)
        key = (arrival.ingress, arrival.tenant, arrival.model)
        near = self._near.get(key)
        if near is None:
            near = vantage.nearest_first(list(self._setting.rules.allowed(*key)))
            self._near[key] = near
        name = self._setting.fleet.models[arrival.model].name
        left = [site for site in near if site not in flight.tried]
        sites = [site for site in left if vantage.healthy(site, name, now_s)] or left
        flight.note = None  # not forwarded yet
        if sites:
            self._setting.actions.go(flight, sites[0], now_s)
        else:
            self._setting.actions.give_up(flight, now_s)

    # -- at a site -------------------------------------------------------------------------------

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        model = flight.arrival.model
        if not self._serving(site, model):
            self._setting.actions.refuse(flight, now_s)
            return
        queue = self._queues.setdefault((site, model), deque())
        if not queue and self._to_replica(site, flight, now_s):
            return
        if flight.note is None and self._to_site(site, flight, now_s):
            return
        queue.append(flight)
        self._wake(site, now_s)

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        self._read(flight)
        self._push(site, flight.arrival.model, now_s)

    def served(self, flight: Flight, site: int, now_s: float) -> None:
        self._read(flight)
        self._open[flight.replica] -= 1
        self._push(site, flight.arrival.model, now_s)

    def replicas_changed(self, site: int, ready: Sequence[int], now_s: float) -> None:
        tree = self._tree(self._replica_trees, site)
        for replica in self._ready.get(site, ()):
            if replica not in ready:
                tree.forget(replica)  # it will begin anew, with nothing
        self._ready[site] = tuple(ready)
        for (at, model), queue in self._queues.items():
            if at != site:
                continue
            if self._serving(site, model):
                self._push(site, model, now_s)
                continue
            kept = list(queue)
            queue.clear()
            for flight in kept:
                self._setting.actions.refuse(flight, now_s)

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        pass

    def woken(self, place: int, now_s: float) -> None:
        """The other sites have been probed again."""
        self._woken.discard(place)
        for (site, model), queue in self._queues.items():
            if site != place or not queue:
                continue
            self._push(site, model, now_s)
            kept: deque[Flight] = deque()
            full: set[int] = set()  # tenants for which nothing is available elsewhere
            while queue:
                flight = queue.popleft()
                tenant = flight.arrival.tenant
                if flight.note is not None or tenant in full:
                    kept.append(flight)
                elif not self._to_site(site, flight, now_s):
                    full.add(tenant)
                    kept.append(flight)
            queue.extend(kept)
            if queue:
                self._wake(site, now_s)

    def _waiting(self, site: int, model: int) -> tuple[Work, int]:
        """What waits at a balancer, as it tells others when they probe it."""
        return Work(requests=len(self._queues.get((site, model), ()))), 0

    def _wake(self, site: int, now_s: float) -> None:
        if site not in self._woken:
            self._woken.add(site)
            self._setting.actions.wake(site, now_s + self.digest_s)

    def _read(self, flight: Flight) -> None:
        if flight.site_note == "unread":
            flight.site_note = None
            self._unread[flight.replica] -= 1

    def _serving(self, site: int, model: int) -> list[int]:
        replicas = self._setting.fleet.replicas
        return [each for each in self._ready.get(site, ()) if replicas[each].model == model]

    def _push(self, site: int, model: int, now_s: float) -> None:
        """Give the site's replicas what they can take, in the order in which it came."""
        queue = self._queues.get((site, model))
        while queue and self._to_replica(site, queue[0], now_s):
            queue.popleft()

    def _to_replica(self, site: int, flight: Flight, now_s: float) -> bool:
        unread = self._unread
        serving = self._serving(site, flight.arrival.model)
        free = [each for each in serving if unread[each] < self.pending]
        if not free:
            return False
        tree = self._tree(self._replica_trees, site)
        chosen = self._longest(tree, flight, free)
        if chosen is None:
            chosen = min(free, key=lambda each: (self._open[each], each))
        unread[chosen] += 1
        self._open[chosen] += 1
        flight.site_note = "unread"
        tree.sent(flight.arrival.blocks, chosen)
        self._setting.actions.serve(flight, chosen, now_s)
        return True

    def _to_site(self, site: int, flight: Flight, now_s: float) -> bool:
        arrival, vantage = flight.arrival, self._at_site(site)
        name = self._setting.fleet.models[arrival.model].name
        key = (arrival.ingress, arrival.tenant, arrival.model)
        free = []
        for each in self._near.get(key, ()):
            if each == site or each in flight.tried:
                continue
            if not vantage.healthy(each, name, now_s):
                continue
            load = vantage.load(each, arrival.model, name, now_s)
            if load.waiting == 0 and load.prompt_tokens < self.unread_tokens * load.ready:
                free.append(each)
        if not free:
            return False
        tree = self._tree(self._site_trees, site)
        chosen = self._longest(tree, flight, free)
        if chosen is None:
            chosen = min(free, key=lambda each: (vantage.rtt_ms[each], each))
        flight.note = site  # that forwarded it
        tree.sent(arrival.blocks, chosen)
        vantage.sent(chosen, arrival.model, arrival.prompt_tokens, now_s)
        self._setting.actions.go(flight, chosen, now_s)
        return True

    def _longest(self, tree: PrefixTree, flight: Flight, among: Sequence[int]) -> int | None:
        matches = tree.matches(flight.arrival.blocks)
        best = max(
            (each for each in among if each in matches), key=lambda each: matches[each],
            default=None,
        )
        if best is None:
            return None
        share = matches[best] * BLOCK_TOKENS / max(flight.arrival.prompt_tokens, 1)
        return best if share >= self.match_share else None

    def _tree(self, trees: dict[int, PrefixTree], site: int) -> PrefixTree:
        found = trees.get(site)
        if found is None:
            found = trees[site] = PrefixTree(self.most_blocks)
        return found

    def _at_site(self, site: int) -> Vantage:
        found = self._vantages.get(site)
        if found is None:
            found = self._vantages[site] = Vantage(self._setting, site, at_site=True)
        return found

    def _ingress(self, flight: Flight) -> Vantage:
        number = flight.arrival.ingress
        found = self._ingresses.get(number)
        if found is None:
            found = self._ingresses[number] = Vantage(self._setting, number, at_site=False)
        return found
