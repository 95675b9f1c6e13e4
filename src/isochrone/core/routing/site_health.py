"""How far this gateway trusts other sites, by what came of the requests that it sent there.

One `Health` (see core/lifecycle/health.py) a site and model, since an engine that fails says
nothing of other models. A site that cannot be connected to is out for all of them: that is in
`loads`. Mutable, owned by one event loop; time and chance are arguments.
"""

from collections.abc import Callable, Collection, Iterator

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.lifecycle.health import (
    Health,
    HealthRules,
    has_room,
    is_late,
    too_many,
    usual_pace,
)
from isochrone.core.rng import Random

USUAL_RULES = HealthRules()


class SiteHealth:
    """`changed` hears of each change that concerns choices; `serving` says at which sites a model
    is ready that can be reached now. `ailing` is how many sites and models are not healthy: while
    it is 0 nobody has to look further. `ejections` counts."""

    def __init__(
        self, changed: Callable[[SiteName, ModelName], None],
        serving: Callable[[ModelName, int], list[SiteName]],
    ) -> None:
        self.rules = USUAL_RULES
        self.ailing = 0
        self.ejections = 0
        self._changed = changed
        self._serving = serving
        self._kept: Collection[SiteName] | None = None
        self._drained: Collection[SiteName] = ()
        self._known: dict[ModelName, dict[SiteName, Health]] = {}
        self._ailing: dict[tuple[SiteName, ModelName], Health] = {}

    def of(self, site: SiteName, model: ModelName) -> Health | None:
        """What is known of a model at a site; None before its first request."""
        sites = self._known.get(model)
        return None if sites is None else sites.get(site)

    def may_ask(self, site: SiteName, model: ModelName, organisation: str, now_ns: int) -> bool:
        """Whether a request of this organisation may be sent there now."""
        health = self.of(site, model)
        return health is None or health.may_ask(now_ns, organisation)

    def doubtful(self) -> Iterator[tuple[SiteName, ModelName, Health]]:
        """Everything that is not healthy."""
        for (site, model), health in self._ailing.items():
            yield site, model, health

    # -- what happens ----------------------------------------------------------------------------

    def asked(self, site: SiteName, model: ModelName, now_ns: int) -> None:
        """A request is sent there; where the site is out, it is the probe."""
        health = self.of(site, model)
        if health is not None and health.ailing:
            health.asked(now_ns, self.rules)
            self._changed(site, model)

    def answered(
        self, site: SiteName, model: ModelName, organisation: str, now_ns: int, *,
        expected_ms: float = 0.0, waited_ms: float = 0.0,
    ) -> None:
        """The first byte of a good answer came from there."""
        health = self._open(site, model)
        health.kept_pace(expected_ms, waited_ms)
        if not health.ailing:
            health.answered(organisation, now_ns)
            return
        was_out = health.is_out
        health.answered(organisation, now_ns)
        self._note(site, model, health)
        if was_out != health.is_out:
            self._changed(site, model)

    def failed(
        self, site: SiteName, model: ModelName, why: str, organisation: str, now_ns: int,
        rng: Random, sent_ns: int = 0,
    ) -> bool:
        """A request failed there that was sent at `sent_ns` (0: nobody knows); whether the site is
        ejected for it."""
        health, group = self._open(site, model), self._group(model, now_ns)
        was_out = health.is_out
        out = sum([each.is_out for each in self._members(model, group)])
        health.failed(
            why, organisation, now_ns, rng=rng, rules=self.rules, alone=False,
            room=has_room(out, len(group), self.rules), sent_ns=sent_ns,
        )
        self._note(site, model, health)
        if was_out or health.is_out:
            self._changed(site, model)
        if was_out or not health.is_out:
            return False
        self.ejections += 1
        return True

    def late(
        self, site: SiteName, model: ModelName, waited_ms: float, expected_ms: float,
        organisation: str, now_ns: int, rng: Random, sent_ns: int = 0,
    ) -> bool:
        """Whether a request that waits for its first byte does so for far too long, by the measure
        of the other sites; that counts as a failure, unless there are no others."""
        if not is_late(waited_ms, expected_ms, 1.0):
            return False
        group = self._group(model, now_ns)
        if model not in self._known or len(group) < 2:
            return False
        if not is_late(waited_ms, expected_ms, usual_pace(self._members(model, group))):
            return False
        why = f"no first byte after {waited_ms / 1000:.1f} s, expected {expected_ms / 1000:.1f} s"
        self.failed(site, model, why, organisation, now_ns, rng, sent_ns)
        return True

    def abandoned(
        self, site: SiteName, model: ModelName, now_ns: int, sent_ns: int = 0
    ) -> None:
        """A request ended there without saying anything of the site."""
        if self.ailing:
            health = self.of(site, model)
            if health is not None and health.state == "probing":
                health.abandoned(now_ns, sent_ns)
                self._changed(site, model)

    def returned(self, site: SiteName, model: ModelName, why: str, now_ns: int) -> None:
        """It was away and is there again: it begins with little, if it ever served anything."""
        health = self.of(site, model)
        if health is not None and health.has_served:
            health.returned(why, now_ns)
            self._note(site, model, health)
            self._changed(site, model)

    def sweep(self, now_ns: int) -> None:
        """A few times a second: recoveries and suspicions that end, and groups that became too
        small for all that is ejected of them."""
        if not self.ailing:
            return
        models: dict[ModelName, None] = {}
        for (site, model), health in list(self._ailing.items()):
            models[model] = None
            if health.ease(now_ns, self.rules):
                self._note(site, model, health)
                self._changed(site, model)
        for model in models:
            group = self._group(model, now_ns)
            released = too_many(self._members(model, group), len(group), self.rules)
            if released is not None:
                released.returned("too few other sites are left", now_ns)
                for site, health in self._known[model].items():
                    if health is released:
                        self._note(site, model, health)
                        self._changed(site, model)

    def keep(self, sites: Collection[SiteName], drained: Collection[SiteName] = ()) -> None:
        """Forget every site but these: it is in the fleet no more. Those that are `drained` take
        nothing new, so that nobody may be left out because of them."""
        self._kept, self._drained = sites, drained
        for model in list(self._known):
            known = self._known[model]
            for site in [each for each in known if each not in sites]:
                del known[site]
                self._ailing.pop((site, model), None)
            if not known:
                del self._known[model]
        self.ailing = len(self._ailing)

    # -- inside ----------------------------------------------------------------------------------

    def _group(self, model: ModelName, now_ns: int) -> list[SiteName]:
        """The sites among which the model's requests may choose now. Who is lost, silent, drained
        or gone is no reason to leave another one out."""
        kept, drained = self._kept, self._drained
        return [
            each for each in self._serving(model, now_ns)
            if (kept is None or each in kept) and each not in drained
        ]

    def _members(self, model: ModelName, group: list[SiteName]) -> list[Health]:
        """What is known of those of a group that have been asked."""
        known = self._known[model]
        return [known[each] for each in group if each in known]

    def _open(self, site: SiteName, model: ModelName) -> Health:
        sites = self._known.get(model)
        if sites is None:
            sites = self._known[model] = {}
        health = sites.get(site)
        if health is None:
            health = sites[site] = Health()
        return health

    def _note(self, site: SiteName, model: ModelName, health: Health) -> None:
        """It may be healthy now, or not any more."""
        if health.ailing:
            self._ailing[(site, model)] = health
        else:
            self._ailing.pop((site, model), None)
        self.ailing = len(self._ailing)
