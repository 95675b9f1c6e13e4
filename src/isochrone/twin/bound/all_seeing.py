"""A yardstick, no policy: whoever sees every engine at every instant, and sends each request where
it would be answered soonest.

What no gateway can know it knows: what every engine has before it now and what is on its way to it,
which blocks it holds, how long the answers will be. It chooses for each request alone, so it is no
bound; but what it leaves between itself and the bound is not to be had by better news, and what it
leaves to a policy is. See docs/bound.md.
"""

from collections.abc import Sequence
from math import inf

from isochrone.core.world.digest import SiteDigest
from isochrone.twin.fast.arrivals import Arrival
from isochrone.twin.fast.policy import Flight, Setting
from isochrone.twin.fast.replica import Job
from isochrone.twin.fast.simulation import Simulation


class AllSeeing:
    """See `policy.Router`, whose rules of what may be known where it breaks."""

    name = "all_seeing"
    digest_s = 1.0

    def start(self, setting: Setting) -> None:
        simulation = setting.actions
        assert isinstance(simulation, Simulation), "it looks into the engines themselves"
        self._simulation = simulation
        self._on_way: list[dict[int, Job]] = [{} for _ in setting.fleet.replicas]

    def began(self, flight: Flight, now_s: float) -> None:
        self._send(flight, now_s)

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        self._forget(flight)
        self._send(flight, now_s)

    def ended(self, flight: Flight, now_s: float) -> None:
        pass

    def broke(self, flight: Flight, now_s: float) -> None:
        pass

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        chosen = flight.note
        self._forget(flight)
        if isinstance(chosen, int) and self._simulation.replicas[chosen].ready:
            self._simulation.serve(flight, chosen, now_s)
        else:
            self._simulation.refuse(flight, now_s)

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        pass

    def served(self, flight: Flight, site: int, now_s: float) -> None:
        pass

    def replicas_changed(self, site: int, ready: Sequence[int], now_s: float) -> None:
        pass

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        pass

    def woken(self, place: int, now_s: float) -> None:
        pass

    # -- inside ----------------------------------------------------------------------------------

    def _forget(self, flight: Flight) -> None:
        if isinstance(flight.note, int):
            self._on_way[flight.note].pop(flight.ident, None)
            flight.note = None

    def _send(self, flight: Flight, now_s: float) -> None:
        arrival, fleet = flight.arrival, self._simulation.fleet
        tokens = arrival.prompt_tokens + arrival.output_tokens
        soonest_s, chosen = inf, -1
        for site in self._simulation.tables.allowed(
            arrival.ingress, arrival.tenant, arrival.model
        ):
            if not self._simulation.ways.is_up(arrival.ingress, site):
                continue
            home = fleet.home[arrival.ingress] == site
            rtt_s = 0.0 if home else float(fleet.rtt_ms[arrival.ingress, site]) / 1000.0
            for number in fleet.at[site][arrival.model]:
                fits = tokens <= fleet.replicas[number].physics.kv_tokens
                if fits and rtt_s < soonest_s and self._simulation.replicas[number].ready:
                    answer_s = rtt_s / 2.0 + self._read_s(number, arrival, rtt_s / 2.0, now_s)
                    if answer_s < soonest_s:
                        soonest_s, chosen = answer_s, number
        if chosen < 0:
            self._simulation.give_up(flight, now_s)
            return
        flight.note = chosen
        self._on_way[chosen][flight.ident] = Job(
            flight.ident, arrival.prompt_tokens, arrival.output_tokens
        )
        self._simulation.go(flight, fleet.replicas[chosen].site, now_s)

    def _read_s(self, number: int, arrival: Arrival, way_s: float, now_s: float) -> float:
        """When the replica would have read the prompt, from now; it gets there after `way_s`."""
        engine = self._simulation.replicas[number].sim
        ahead = list(self._on_way[number].values())
        tokens = arrival.prompt_tokens + arrival.output_tokens
        begin_s = engine.begins_in_s(tokens, ahead, now_s)
        read_s = engine.reading_takes_s(arrival.prompt_tokens, arrival.blocks)
        return max(begin_s, way_s) + read_s
