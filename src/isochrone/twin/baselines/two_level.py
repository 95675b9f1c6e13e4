"""A router of two choices: which site, then which of its replicas. Most baselines are this.

The first choice is made at the ingress, or by balancers at sites: at the nearest one that may serve
(`regional`), or at one for the whole fleet (`central`). A refused or lost request is sent again by
its ingress, `TRIES` times in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from isochrone.core.world.digest import SiteDigest
from isochrone.twin.baselines.vantage import Vantage
from isochrone.twin.fast.policy import Flight, Setting

TRIES = 3

Balancers = Literal["ingress", "regional", "central"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Balanced:
    """A balancer has judged the flight; it is not to be judged again. `at`: the site of that
    balancer, -1 where it is the ingress."""

    at: int = -1


class SitePick(Protocol):
    """Chooses among `sites`, at least one, nearest to the vantage first."""

    def start(self, setting: Setting) -> None: ...

    def pick(
        self, vantage: Vantage, flight: Flight, sites: Sequence[int], now_s: float
    ) -> int: ...


class ReplicaPick(Protocol):
    """Chooses among the ready replicas of a site, at least one; told what became of them."""

    def start(self, setting: Setting) -> None: ...

    def pick(self, flight: Flight, ready: Sequence[int], now_s: float) -> int: ...

    def first_token(self, flight: Flight) -> None: ...

    def served(self, flight: Flight) -> None: ...

    def lost(self, site: int, replica: int) -> None: ...


class TwoLevelRouter:
    """See `Router` of the fast twin."""

    def __init__(
        self, name: str, sites: SitePick, replicas: ReplicaPick, *,
        balancers: Balancers = "ingress", central_site: int = 0, digest_s: float = 1.0,
    ) -> None:
        self.name = name
        self.digest_s = digest_s
        self._site_pick = sites
        self._replica_pick = replicas
        self._balancers = balancers
        self._central = central_site

    def start(self, setting: Setting) -> None:
        self._setting = setting
        self._ingresses: dict[int, Vantage] = {}
        self._sites: dict[int, Vantage] = {}
        self._ready: dict[int, tuple[int, ...]] = {}
        self._near: dict[tuple[int, int, int], list[int]] = {}
        self._site_pick.start(setting)
        self._replica_pick.start(setting)

    # -- at an ingress ---------------------------------------------------------------------------

    def began(self, flight: Flight, now_s: float) -> None:
        if self._balancers == "ingress":
            self._send(self._ingress(flight), flight, now_s)
            return
        if self._balancers == "central":
            self._by_central(flight, now_s)
            return
        # The balancer is reached, whatever its own engines do.
        vantage = self._ingress(flight)
        near = self._allowed(vantage, flight)
        if near:
            balancer = next((each for each in near if vantage.reached(each, now_s)), near[0])
            self._setting.actions.go(flight, balancer, now_s)
        else:
            self._setting.actions.give_up(flight, now_s)

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        vantage = self._ingress(flight)
        if lost:
            vantage.lost(flight.tried[-1], now_s)
            if isinstance(flight.note, _Balanced) and flight.note.at not in (-1, flight.tried[-1]):
                self._site(flight.note.at).lost(flight.tried[-1], now_s)  # its balancer saw it, too
        if len(flight.tried) >= TRIES:
            self._setting.actions.give_up(flight, now_s)
            return
        self._send(vantage, flight, now_s)

    def ended(self, flight: Flight, now_s: float) -> None:
        pass

    def broke(self, flight: Flight, now_s: float) -> None:
        pass

    # -- at a site -------------------------------------------------------------------------------

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        if self._balancers == "regional" and flight.note is None:
            vantage = self._site(site)
            sites = self._open(vantage, flight, now_s)
            chosen = self._site_pick.pick(vantage, flight, sites, now_s) if sites else site
            flight.note = _Balanced(at=site)
            if chosen != site:
                vantage.sent(chosen, flight.arrival.model, flight.arrival.prompt_tokens, now_s)
                self._setting.actions.go(flight, chosen, now_s)
                return
        model, replicas = flight.arrival.model, self._setting.fleet.replicas
        ready = [each for each in self._ready.get(site, ()) if replicas[each].model == model]
        if not ready:
            self._setting.actions.refuse(flight, now_s)
            return
        self._setting.actions.serve(flight, self._replica_pick.pick(flight, ready, now_s), now_s)

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        self._replica_pick.first_token(flight)

    def served(self, flight: Flight, site: int, now_s: float) -> None:
        self._replica_pick.served(flight)

    def replicas_changed(self, site: int, ready: Sequence[int], now_s: float) -> None:
        for replica in self._ready.get(site, ()):
            if replica not in ready:
                self._replica_pick.lost(site, replica)
        self._ready[site] = tuple(ready)

    # -- everywhere ------------------------------------------------------------------------------

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        pass

    def woken(self, place: int, now_s: float) -> None:
        pass

    def _ingress(self, flight: Flight) -> Vantage:
        number = flight.arrival.ingress
        found = self._ingresses.get(number)
        if found is None:
            found = self._ingresses[number] = Vantage(self._setting, number, at_site=False)
        return found

    def _site(self, number: int) -> Vantage:
        found = self._sites.get(number)
        if found is None:
            found = self._sites[number] = Vantage(self._setting, number, at_site=True)
        return found

    def _allowed(self, vantage: Vantage, flight: Flight) -> list[int]:
        """Where it may be processed, nearest to the vantage first."""
        arrival = flight.arrival
        place = -1 - vantage.number if vantage.at_site else vantage.number
        # What is allowed may depend on the ingress, and the order on the vantage.
        key = (place * 65_536 + arrival.ingress, arrival.tenant, arrival.model)
        found = self._near.get(key)
        if found is None:
            allowed = self._setting.rules.allowed(arrival.ingress, arrival.tenant, arrival.model)
            found = self._near[key] = vantage.nearest_first(list(allowed))
        return found

    def _open(self, vantage: Vantage, flight: Flight, now_s: float) -> list[int]:
        """Of them, those that are not known to be of no use; if all are, those not tried yet."""
        near, tried = self._allowed(vantage, flight), flight.tried
        name = self._setting.fleet.models[flight.arrival.model].name
        left = [site for site in near if site not in tried] if tried else near
        return [site for site in left if vantage.healthy(site, name, now_s)] or left

    def _send(self, vantage: Vantage, flight: Flight, now_s: float) -> None:
        sites = self._open(vantage, flight, now_s)
        if not sites:
            self._setting.actions.give_up(flight, now_s)
            return
        site = self._site_pick.pick(vantage, flight, sites, now_s)
        flight.note = _Balanced()
        vantage.sent(site, flight.arrival.model, flight.arrival.prompt_tokens, now_s)
        self._setting.actions.go(flight, site, now_s)

    def _by_central(self, flight: Flight, now_s: float) -> None:
        """Judged with what the one balancer knows, and charged the way over it, there and back."""
        central = self._site(self._central)
        sites = self._open(central, flight, now_s)
        if not sites:
            self._setting.actions.give_up(flight, now_s)
            return
        site = self._site_pick.pick(central, flight, sites, now_s)
        flight.note = _Balanced(at=self._central)
        central.sent(site, flight.arrival.model, flight.arrival.prompt_tokens, now_s)
        straight_ms = self._ingress(flight).rtt_ms
        detour_ms = straight_ms[self._central] + central.rtt_ms[site] - straight_ms[site]
        self._setting.actions.go(flight, site, now_s, max(detour_ms, 0.0) / 1000.0)
