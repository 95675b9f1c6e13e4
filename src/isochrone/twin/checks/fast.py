"""Watches a policy in the fast twin, and leaves a record for the judges of a run.

Where a request may be processed is asked of the rule of residency itself, not of the tables that
the simulation and the policy go by.
"""

from collections.abc import Iterator, Sequence

from isochrone.core.ids import KeyId, OrgId
from isochrone.core.residency.rule import Admitted, admits
from isochrone.core.world.digest import SiteDigest
from isochrone.twin.checks.record import Asked, Record, Worked
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.policy import Flight, Router, Setting


class Recorder:
    """A router that does what `router` does, and notes what becomes of every request. It keeps all
    of them, so it is for short runs. Who is never answered was refused: the fast twin has no
    bodies of errors, and its own counts say how many there were."""

    def __init__(self, router: Router, fleet: Fleet) -> None:
        self.name = router.name
        self.digest_s = router.digest_s
        self._router = router
        self._fleet = fleet
        self._began: dict[int, tuple[Flight, float]] = {}
        self._ended: dict[int, tuple[str, float]] = {}
        self._worked: list[tuple[int, int]] = []

    def record(self, *, refused: int) -> Record:
        """What to judge, at the end of a run that refused so many requests."""
        left = [ident for ident in self._began if ident not in self._ended]
        lost = len(left) - refused
        return Record(
            asked=tuple(self._asked(ident) for ident in self._began),
            worked=tuple(self._work(ident, site) for ident, site in self._worked),
            stuck=() if lost == 0 else (f"{lost} requests neither ended nor were refused",),
        )

    def ended_flights(self) -> Iterator[tuple[Flight, float]]:
        """Requests whose answer came to its end, in the order in which they began, and when."""
        for ident, (flight, _) in self._began.items():
            how, ended_s = self._ended.get(ident, ("refused", 0.0))
            if how == "ended":
                yield flight, ended_s

    def _asked(self, ident: int) -> Asked:
        flight, began_s = self._began[ident]
        how, ended_s = self._ended.get(ident, ("refused", began_s))
        fleet, arrival = self._fleet, flight.arrival
        tenant = fleet.tenants[arrival.tenant]
        axis = tenant.policy.residency
        allowed = frozenset(
            site.country or "" for site in fleet.sites
            if isinstance(admits(axis, site, fleet.blocs), Admitted)
        )
        is_whole = how == "ended"
        return Asked(
            reference=str(ident), ingress=fleet.ingresses[arrival.ingress].name,
            key_id=KeyId(tenant.name), org_id=OrgId(tenant.name),
            countries=None if axis == ("any",) else allowed, began_s=began_s, ended_s=ended_s,
            status=503 if how == "refused" else 200,
            reason="refused" if how == "refused" else None,
            code="refused" if how == "refused" else None,
            serving_country=fleet.sites[flight.site].country if flight.site >= 0 else None,
            tokens=arrival.output_tokens if is_whole else 0, whole=is_whole,
            told_error=how == "broke",
        )

    def _work(self, ident: int, site: int) -> Worked:
        flight, _ = self._began[ident]
        noun = self._fleet.sites[site]
        return Worked(
            reference=str(ident), site=noun.name, country=noun.country,
            prompt_tokens=flight.arrival.prompt_tokens,
            output_tokens=flight.arrival.output_tokens,
        )

    def _end(self, flight: Flight, how: str, now_s: float) -> None:
        assert flight.ident not in self._ended, f"request {flight.ident} ended twice"
        self._ended[flight.ident] = (how, now_s)

    # -- the router ------------------------------------------------------------------------------

    def start(self, setting: Setting) -> None:
        self._router.start(setting)

    def began(self, flight: Flight, now_s: float) -> None:
        self._began[flight.ident] = (flight, now_s)
        self._router.began(flight, now_s)

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        self._router.refused(flight, now_s, lost)

    def ended(self, flight: Flight, now_s: float) -> None:
        self._end(flight, "ended", now_s)
        self._router.ended(flight, now_s)

    def broke(self, flight: Flight, now_s: float) -> None:
        self._end(flight, "broke", now_s)
        self._router.broke(flight, now_s)

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        self._router.arrived(flight, site, now_s)

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        self._worked.append((flight.ident, site))
        self._router.first_token(flight, site, now_s)

    def served(self, flight: Flight, site: int, now_s: float) -> None:
        self._router.served(flight, site, now_s)

    def replicas_changed(self, site: int, ready: Sequence[int], now_s: float) -> None:
        self._router.replicas_changed(site, ready, now_s)

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        self._router.told(site, digest, now_s)

    def woken(self, place: int, now_s: float) -> None:
        self._router.woken(place, now_s)
