"""The ways between ingresses and sites: how long a message takes, and which ways are cut.

one way = rtt / 2 * (1 + JITTER_SHARE * Exp(1)) + bytes of the body * byte_ms
A message's jitter follows from its request's number and what it is, so that it is the same under
every policy and in whatever order things happen.
"""

from array import array
from typing import Final

from isochrone.core.estimate.transfer import LEAST_BODY_BYTES, byte_ms
from isochrone.core.rng import Random
from isochrone.twin.fast.fleet import Fleet, RttMs

JITTER_SHARE: Final = 0.05
DRAWN: Final = 4096  # factors, used over and over


class Ways:
    """All instants and durations are seconds."""

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        self._half_s = _halves(fleet.rtt_ms)
        self._between_s = _halves(fleet.site_rtt_ms)
        self._home = list(fleet.home)
        for ingress, site in enumerate(self._home):
            if site >= 0:
                self._half_s[ingress][site] = 0.0
        self._factors = [1.0 + JITTER_SHARE * rng.expovariate(1.0) for _ in range(DRAWN)]
        self._cut: dict[tuple[int, int], float] = {}  # since when

    def is_up(self, ingress: int, site: int) -> bool:
        """Whether anything passes between them."""
        cut = self._cut
        if not cut or self._home[ingress] == site:
            return True
        return (ingress, site) not in cut and (-1, site) not in cut

    def passed_until_s(self, ingress: int, site: int, now_s: float) -> float:
        """Until when anything passed between them: now, unless the way is cut."""
        cut = self._cut
        if not cut or self._home[ingress] == site:
            return now_s
        return min(now_s, cut.get((ingress, site), now_s), cut.get((-1, site), now_s))

    def cut(self, ingress: int, site: int, now_s: float) -> None:
        """Cut the way between an ingress (-1: all of other places) and a site."""
        self._cut[ingress, site] = now_s

    def mend(self, ingress: int, site: int) -> None:
        """It is whole again."""
        self._cut.pop((ingress, site), None)

    def plain_s(self, ingress: int, site: int) -> float:
        """Half a round trip without jitter."""
        return self._half_s[ingress][site]

    def from_sites_s(self, ingress: int) -> "array[float]":
        """The same from every site; not to be changed."""
        return self._half_s[ingress]

    def between_sites_s(self, site: int) -> "array[float]":
        """The same from every site to a site where nobody enters; not to be changed."""
        row = self._between_s[site][:]
        row[site] = 0.0
        return row

    def plain_between_s(self, site: int, other: int) -> float:
        """The same between two sites."""
        return self._between_s[site][other]

    def one_way_s(self, ingress: int, site: int, ident: int, what: int) -> float:
        """A small message of a request; `what` tells its messages apart."""
        half_s = self._half_s[ingress][site]
        return half_s * self._factors[(ident * 7 + what) % DRAWN] if half_s > 0.0 else 0.0

    def send_s(
        self, ingress: int, site: int, ident: int, what: int, body_bytes: int
    ) -> float:
        """A whole request."""
        half_s = self._half_s[ingress][site]
        if half_s <= 0.0:
            return 0.0
        taken_s = half_s * self._factors[(ident * 7 + what) % DRAWN]
        if body_bytes >= LEAST_BODY_BYTES:
            taken_s += body_bytes * byte_ms(2000.0 * half_s) / 1000.0
        return taken_s

    def between_s(self, site: int, other: int, ident: int, what: int) -> float:
        """A request that one site passes on to another."""
        return self._between_s[site][other] * self._factors[(ident * 7 + what) % DRAWN]


def _halves(rtt_ms: RttMs) -> "list[array[float]]":
    return [array("d", [float(each) / 2000.0 for each in row]) for row in rtt_ms.tolist()]
