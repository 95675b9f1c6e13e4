"""What a balancer knows at its place: which sites may serve, how far they are, how loaded.

It is the same for every baseline: round trips as planned, digests as they arrived, and its own
dispatches since. A site whose digests stopped, or which lost a request lately, is left out while
there are others: everybody has health checks.
"""

from collections import deque
from typing import NamedTuple

from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from isochrone.twin.fast.policy import Setting

STALE_S = 5.0  # of a digest: as the product's gateways have it
HOLD_S = 5.0   # how long a site is left out that lost a request


class Load(NamedTuple):
    """Of the replicas of one model at one site, in sum, with what was sent since they said it.

    `ready` is at least 1: a site that says it has none is not asked.
    """

    ready: int
    slots: int
    requests: float  # queued or running
    waiting: float   # of them, those that the engines have not let in
    prompt_tokens: float  # of them, to be read

    @property
    def requests_each(self) -> float:
        return self.requests / self.ready

    @property
    def prompt_tokens_each(self) -> float:
        return self.prompt_tokens / self.ready


class _OnTheirWay:
    """Requests to one site that its latest digest cannot have counted."""

    __slots__ = ("there_s", "tokens")

    def __init__(self) -> None:
        self.there_s: deque[tuple[float, int]] = deque()  # and the prompt tokens of each
        self.tokens = 0

    def add(self, there_s: float, tokens: int) -> None:
        self.there_s.append((there_s, tokens))
        self.tokens += tokens

    def forget(self, until_s: float) -> None:
        """Those that were there by then."""
        there_s = self.there_s
        while there_s and there_s[0][0] <= until_s:
            self.tokens -= there_s.popleft()[1]


class Vantage:
    """One place: an ingress, or a site with a balancer (`at_site`)."""

    __slots__ = ("_held", "_news", "_seen", "_sent", "_sites", "at_site", "number", "rtt_ms")

    def __init__(self, setting: Setting, number: int, *, at_site: bool) -> None:
        fleet = setting.fleet
        self.number = number
        self.at_site = at_site
        row = fleet.site_rtt_ms[number] if at_site else fleet.rtt_ms[number]
        self.rtt_ms: list[float] = row.tolist()
        self._news = setting.news
        self._sites = [tuple(models) for models in fleet.at]
        self._sent: dict[tuple[int, int], _OnTheirWay] = {}
        self._seen: dict[int, tuple[SiteDigest, dict[str, DeploymentLoad]]] = {}
        self._held: dict[int, float] = {}

    def nearest_first(self, sites: list[int]) -> list[int]:
        rtt_ms = self.rtt_ms
        return sorted(sites, key=lambda site: (rtt_ms[site], site))

    def lost(self, site: int, now_s: float) -> None:
        """A request was lost there."""
        self._held[site] = now_s + HOLD_S

    def healthy(self, site: int, model: str, now_s: float) -> bool:
        """Whether it may be asked: it says so, and can be reached."""
        digest = self._heard(site, now_s)
        if digest is not None:
            load = self._loads(site, digest).get(model)
            if load is None or load.ready < 1:
                return False
        return self.reached(site, now_s)

    def reached(self, site: int, now_s: float) -> bool:
        """Whether it is heard of, and lost nothing lately."""
        if self._held.get(site, 0.0) > now_s:
            return False
        news = self._news
        age_s = (news.age_at_s if self.at_site else news.age_s)(site, self.number, now_s)
        return age_s <= STALE_S or now_s <= STALE_S  # at first nothing was said: as planned

    def sent(self, site: int, model: int, prompt_tokens: int, now_s: float) -> None:
        """One more request goes there, which no digest has counted that is made before it is there.
        """
        since = self._sent.setdefault((site, model), _OnTheirWay())
        since.add(now_s + self.rtt_ms[site] / 2000.0, prompt_tokens)

    def load(self, site: int, model: int, name: str, now_s: float) -> Load:
        digest = self._heard(site, now_s)
        since = self._sent.get((site, model))
        known = None if digest is None else self._loads(site, digest).get(name)
        if digest is not None and since is not None:
            since.forget(digest.at / 1e9)
        requests, tokens = (0, 0) if since is None else (len(since.there_s), since.tokens)
        if known is None:
            ready = max(len(self._sites[site][model]), 1)
            return Load(ready, ready, requests, 0.0, tokens)
        running = known.running + known.waiting + requests
        return Load(
            max(known.ready, 1), max(known.slots, 1), running,
            known.waiting + max(0.0, known.running + requests - known.slots),
            known.pending_prompt_tokens + tokens,
        )

    def _heard(self, site: int, now_s: float) -> SiteDigest | None:
        news = self._news
        if self.at_site:
            return news.heard_at(site, self.number, now_s)
        return news.heard(site, self.number, now_s)

    def _loads(self, site: int, digest: SiteDigest) -> dict[str, DeploymentLoad]:
        seen = self._seen.get(site)
        if seen is None or seen[0] is not digest:
            seen = (digest, {load.model: load for load in digest.loads})
            self._seen[site] = seen
        return seen[1]
