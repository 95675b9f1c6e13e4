"""Which sites must not get clients now, from their digests and from probes of their gateways."""

from collections.abc import Collection, Mapping

from isochrone.core.ids import SiteName
from isochrone.core.routing.loads import Loads
from isochrone.core.steering.reach import Reach, unreachable
from isochrone.core.steering.steer import Unfit


class Fitness:
    """Digests as they were heard. A site with engines owes one about every second; a site without
    owes none, and only probes tell whether it is there.

    While the bus is away no digest grows stale: that says nothing about the sites.
    """

    def __init__(self, stale_after_s: float, now_ns: int) -> None:
        self.loads = Loads(stale_after_ms=stale_after_s * 1000)
        self._stale_after_s = stale_after_s
        self._listening_ns = now_ns
        self._deaf = False

    def deaf(self, since_ns: int) -> None:
        """No digest can have arrived since then."""
        self._deaf = True
        self.loads.deaf(since_ns)

    def hearing(self, now_ns: int) -> None:
        """Digests arrive again: what was not heard meanwhile has its time from now on."""
        if self._deaf:
            self._deaf = False
            self._listening_ns = now_ns
        self.loads.hearing(now_ns)

    def unfit(
        self, reporting: Collection[SiteName], reaches: Mapping[SiteName, Reach], now_ns: int
    ) -> dict[SiteName, Unfit]:
        """The sites to leave out, with the fact; equal while the same sites are out for the same
        reason. `reporting`: the sites that owe digests."""
        found = {
            site: Unfit(rule="unreachable", detail="its gateway does not answer probes")
            for site in unreachable(reaches)
        }
        for site in reporting:
            if self._is_stale(site, now_ns):
                detail = f"no digest for more than {self._stale_after_s:g} s"
                found[site] = Unfit(rule="digest_stale", detail=detail)
        return found

    def _is_stale(self, site: SiteName, now_ns: int) -> bool:
        load = self.loads.of(site)
        if load is not None:
            return self.loads.is_stale(load, now_ns)
        return not self._deaf and now_ns - self._listening_ns > self._stale_after_s * 1e9
