"""Digests on their way: each reaches an ingress half a round trip after it was made.

The last `KEPT` of each site are kept, whoever reads them and when. A gateway that is not asked for
anything for longer has missed what came before, as if it had been away for that long.
"""

from collections import deque
from math import inf
from typing import Final

from isochrone.core.world.digest import SiteDigest
from isochrone.twin.fast.ways import Ways

KEPT: Final = 16


class Told:
    """One digest, made at a site at an instant. `number` counts all of them."""

    __slots__ = ("digest", "made_s", "number", "site")

    def __init__(self, number: int, site: int, made_s: float, digest: SiteDigest) -> None:
        self.number = number
        self.site = site
        self.made_s = made_s
        self.digest = digest


class Digests:
    """What was said lately, by whom and when; see `policy.News`."""

    def __init__(self, sites: int, ways: Ways) -> None:
        self._ways = ways
        self._of: list[deque[Told]] = [deque(maxlen=KEPT) for _ in range(sites)]
        self._log: deque[Told] = deque(maxlen=KEPT * sites)
        self._made = 0

    def tell(self, site: int, digest: SiteDigest, now_s: float) -> None:
        """A digest is made."""
        told = Told(self._made, site, now_s, digest)
        self._made += 1
        self._of[site].append(told)
        self._log.append(told)

    def since(self, number: int) -> list[Told]:
        """Those with this number and later, as far as they are kept, in the order in which they
        were made. Who reads them must wait for each to arrive."""
        log = self._log
        if not log or log[-1].number < number:
            return []
        count = min(log[-1].number - number + 1, len(log))
        return [log[-at] for at in range(count, 0, -1)]

    def passes(self, site: int, ingress: int) -> bool:
        """Whether what the site says gets to the ingress."""
        return self._ways.is_up(ingress, site)

    @property
    def made(self) -> int:
        """How many there were."""
        return self._made

    def heard(self, site: int, ingress: int, now_s: float) -> SiteDigest | None:
        told = self._last(site, now_s - self._ways.plain_s(ingress, site))
        return told.digest if told is not None and self._ways.is_up(ingress, site) else None

    def heard_at(self, site: int, at_site: int, now_s: float) -> SiteDigest | None:
        told = self._last(site, now_s - self._ways.plain_between_s(site, at_site))
        return None if told is None else told.digest

    def age_s(self, site: int, ingress: int, now_s: float) -> float:
        told = self._last(site, now_s - self._ways.plain_s(ingress, site))
        return inf if told is None else now_s - told.made_s

    def _last(self, site: int, made_by_s: float) -> Told | None:
        for told in reversed(self._of[site]):
            if told.made_s <= made_by_s:
                return told
        return None
