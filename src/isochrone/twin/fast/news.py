"""Digests on their way: each reaches an ingress half a round trip after it was made.

The last `KEPT` of each site are kept, whoever reads them and when. A gateway that is not asked for
anything for longer has missed what came before, as if it had been away for that long.
"""

from array import array
from collections import deque
from math import inf
from typing import Final

from isochrone.core.routing.loads import Report
from isochrone.core.routing.replicas_said import ReplicasSaid
from isochrone.core.world.digest import SiteDigest
from isochrone.twin.fast.ways import Ways

KEPT: Final = 16


class Told:
    """One digest, made at a site at an instant. `number` counts all of them; `report` is what
    loads take in, `said` what prompts' beginnings do, the same wherever they are heard."""

    __slots__ = ("digest", "made_s", "number", "report", "said", "site")

    def __init__(self, number: int, site: int, made_s: float, digest: SiteDigest) -> None:
        self.number = number
        self.site = site
        self.made_s = made_s
        self.digest = digest
        self.report = Report(digest)
        self.said = ReplicasSaid(digest)


class Digests:
    """What was said lately, by whom and when; see `policy.News`."""

    def __init__(self, sites: int, ways: Ways) -> None:
        self._ways = ways
        self._of: list[deque[Told]] = [deque(maxlen=KEPT) for _ in range(sites)]
        self._log: list[Told] = []  # a ring, once it is full
        self._most = KEPT * sites
        self.made = 0  # how many there were

    def tell(self, site: int, digest: SiteDigest, now_s: float) -> None:
        """A digest is made."""
        told = Told(self.made, site, now_s, digest)
        self._of[site].append(told)
        if len(self._log) < self._most:
            self._log.append(told)
        else:
            self._log[self.made % self._most] = told
        self.made += 1

    def first_since(self, number: int) -> int:
        """The number of the first one from there on that is kept; `made` where none is. Who reads
        on from it must wait for each to arrive."""
        return max(number, self.made - len(self._log))

    def numbered(self, number: int) -> Told:
        """One that is kept."""
        return self._log[number % self._most]

    def delays_s(self, ingress: int, site: int) -> "array[float]":
        """How long digests of each site are on their way to an ingress; where nobody enters (-1),
        to a site."""
        if ingress >= 0:
            return self._ways.from_sites_s(ingress)
        return self._ways.between_sites_s(site)

    def passes(self, site: int, ingress: int) -> bool:
        """Whether what the site says gets to the ingress."""
        return self._ways.is_up(ingress, site)

    def heard(self, site: int, ingress: int, now_s: float) -> SiteDigest | None:
        told = self._arrived(site, ingress, now_s)
        return None if told is None else told.digest

    def heard_at(self, site: int, at_site: int, now_s: float) -> SiteDigest | None:
        told = self._last(site, now_s - self._ways.plain_between_s(site, at_site))
        return None if told is None else told.digest

    def age_s(self, site: int, ingress: int, now_s: float) -> float:
        told = self._arrived(site, ingress, now_s)
        return inf if told is None else now_s - told.made_s

    def age_at_s(self, site: int, at_site: int, now_s: float) -> float:
        told = self._last(site, now_s - self._ways.plain_between_s(site, at_site))
        return inf if told is None else now_s - told.made_s

    def _arrived(self, site: int, ingress: int, now_s: float) -> Told | None:
        ways = self._ways
        passed_s = ways.passed_until_s(ingress, site, now_s)
        return self._last(site, passed_s - ways.plain_s(ingress, site))

    def _last(self, site: int, made_by_s: float) -> Told | None:
        for told in reversed(self._of[site]):
            if told.made_s <= made_by_s:
                return told
        return None
