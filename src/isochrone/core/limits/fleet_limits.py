"""One gateway's part in all limits that hold over sites: what it uses, asks for, and keeps.

Pure: the view, the time and messages go in, letters come out. The gateway drives it live, the tests
in virtual time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from isochrone.core.ids import KeyId, LimitId, OrgId, ProjectId, SiteName
from isochrone.core.limits.keeper import Keeper
from isochrone.core.limits.messages import (
    AskGrant,
    Behind,
    Copied,
    Copy,
    Follow,
    Grant,
    Lead,
    Led,
    LimitLetter,
    Message,
)
from isochrone.core.limits.part import Part
from isochrone.core.limits.periods import period_begin, period_end
from isochrone.core.limits.terms import (
    NEW_NS,
    SECOND_NS,
    bootstrap_of,
    custodians_of,
    mark_of,
    most_headroom,
)
from isochrone.core.world.limit import Limit, LimitKind

Subject = tuple[OrgId, ProjectId | None, KeyId | None]


class FleetLimits:
    """Mutable, owned by one event loop. `life` is another in every start, `began` the wall instant
    of this one. `version` grows when limits come or go. `taken` and `left` count by kind the grants
    that came: used from then on, or not, because more was used already. `told_before`: what
    requests that came before this wall instant used is told to the book for good."""

    def __init__(self, site: SiteName, life: int, began: int) -> None:
        self.site = site
        self.version = 0
        self.told_before = 1 << 62
        self._life = life
        self._began = began
        self._numbers = 0
        self._sites: tuple[SiteName, ...] = ()
        self._limits: dict[LimitId, Limit] = {}
        self._custodians: dict[LimitId, tuple[SiteName, ...]] = {}
        self._parts: dict[LimitId, Part] = {}
        self._keepers: dict[LimitId, Keeper] = {}
        self._by_subject: dict[Subject, list[LimitId]] = {}
        self.taken: Counter[LimitKind] = Counter()
        self.left: Counter[LimitKind] = Counter()

    # -- the view --------------------------------------------------------------------------------

    def take(
        self, limits: Iterable[Limit], sites: Iterable[SiteName], now_ns: int, now: int
    ) -> None:
        """From now on these are all limits there are, and these the sites with a gateway."""
        before, ranked = self._sites, tuple(sorted(sites))
        self._sites = ranked
        known, self._limits = self._limits, {each.id: each for each in limits}
        for id_ in known.keys() - self._limits.keys():
            gone = self._parts.pop(id_, None)
            if gone is not None:
                gone.lift()
            for kept in (self._custodians, self._keepers):
                kept.pop(id_, None)
        for limit in self._limits.values():
            if known.get(limit.id) != limit or before != ranked:
                self._take_one(limit, now_ns, now)
        if known != self._limits or before != ranked:
            self.version += 1
            self._by_subject = {}
            # In this order requests wait for their limits: it is the same at all gateways.
            for limit in sorted(self._limits.values(), key=lambda each: each.id):
                subject = (limit.org_id, limit.project_id, limit.key_id)
                self._by_subject.setdefault(subject, []).append(limit.id)

    def _take_one(self, limit: Limit, now_ns: int, now: int) -> None:
        custodians = custodians_of(limit.id, self._sites)
        changed = self._custodians.get(limit.id) != custodians
        self._custodians[limit.id] = custodians
        keeper = self._keepers.get(limit.id)
        if self.site not in custodians:
            self._keepers.pop(limit.id, None)
        elif keeper is None or changed:
            # One of a limit that is made while it runs has nothing that it could have forgotten.
            is_new = self._began + SECOND_NS // 2 < limit.created_at > now - NEW_NS
            self._keepers[limit.id] = self._keeper(limit, custodians, keeper, is_new, now_ns)
        part = self._parts.get(limit.id)
        if part is not None:
            part.limit = limit
            if changed:
                part.redirect(0, now_ns)
        self._mark(limit, now_ns, now)
        self._size(limit)

    def _keeper(
        self, limit: Limit, custodians: tuple[SiteName, ...], before: Keeper | None, is_new: bool,
        now_ns: int,
    ) -> Keeper:
        """Who was a custodian stays one with all that it knows; others know nothing yet."""
        keeper = Keeper(
            limit, self.site, custodians, remembers=is_new and before is None, now_ns=now_ns
        )
        if before is not None:
            keeper.take_over(before)
        return keeper

    def _size(self, limit: Limit) -> None:
        part, gateways = self._parts.get(limit.id), len(self._sites)
        if part is not None:
            part.bootstrap = bootstrap_of(limit.amount, gateways)
            part.headroom = most_headroom(limit.amount, gateways)

    def _mark(self, limit: Limit, now_ns: int, now: int) -> None:
        """Since when a budget counts, which changes with its period and with what is booked."""
        mark, spent, begin = 0, 0, 0
        if limit.period is not None:
            begin = period_begin(limit.period, now)
            mark, spent = mark_of(limit, begin)
        keeper, part = self._keepers.get(limit.id), self._parts.get(limit.id)
        if keeper is not None:
            keeper.limit, keeper.mark, keeper.spent = limit, mark, spent
        if part is not None:
            part.note_mark(mark, begin, now_ns)

    # -- requests --------------------------------------------------------------------------------

    def has_limits(self) -> bool:
        return bool(self._limits)

    def parts_of(self, org: OrgId, project: ProjectId, key: KeyId, now: int) -> tuple[Part, ...]:
        """What a key's requests count in: the key's own limits first, then its project's, then its
        organisation's."""
        subjects: tuple[Subject, ...] = (
            (org, project, key), (org, project, None), (org, None, None)
        )
        return tuple(
            self._part(id_, now)
            for subject in subjects for id_ in self._by_subject.get(subject, ())
        )

    def parts(self) -> Mapping[LimitId, Part]:
        return self._parts

    def keepers(self) -> Mapping[LimitId, Keeper]:
        return self._keepers

    def _part(self, id_: LimitId, now: int) -> Part:
        part = self._parts.get(id_)
        if part is None:
            limit = self._limits[id_]
            part = self._parts[id_] = Part(limit, 0)
            self._mark(limit, 0, now)
            part.mark = part.asks_since
            self._size(limit)
        return part

    def ask_now(self, part: Part, now_ns: int) -> list[LimitLetter]:
        """A request waits: ask at once, unless an answer is under way."""
        return [] if part.is_asking() else [self._ask(part, now_ns)]

    def ends_in_s(self, limit: Limit, now: int) -> float:
        """In how long a budget's period is over."""
        assert limit.period is not None, "a budget has one"
        return (period_end(limit.period, now) - now) / 1e9

    # -- events ----------------------------------------------------------------------------------

    def tick(self, now_ns: int, now: int) -> list[LimitLetter]:
        """About four times a second."""
        letters: list[LimitLetter] = []
        for part in self._parts.values():
            part.measure(now_ns)
            if part.limit.period is not None:
                part.told_before = self.told_before
                self._mark(part.limit, now_ns, now)
            if part.is_due(now_ns):
                letters.append(self._ask(part, now_ns))
        for keeper in self._keepers.values():
            if keeper.limit.period is not None:
                self._mark(keeper.limit, now_ns, now)
            letters += keeper.tick(now_ns, now)
        return letters

    def hear(
        self, sender: SiteName, message: Message, now_ns: int, now: int
    ) -> list[LimitLetter]:
        """A message whose sender is proven; what it says in another's name is ignored."""
        if isinstance(message, Grant):
            part = self._parts.get(message.limit)
            if part is None or message.life != self._life:
                return []
            if sender not in self._custodians.get(message.limit, ()):
                return []
            is_taken = part.hear(message, now_ns)
            (self.taken if is_taken else self.left)[part.limit.kind] += 1
            return []
        if isinstance(message, Led):
            return self._redirect(message, now_ns)
        keeper = self._keepers.get(message.limit)
        if keeper is None or message.site != sender:
            return []
        if isinstance(message, AskGrant):
            return keeper.hear_ask(message, now_ns, now)
        if sender not in keeper.custodians:
            return []
        if isinstance(message, Lead):
            return keeper.hear_lead(message, now_ns)
        if isinstance(message, Follow):
            return keeper.hear_follow(message, now_ns, now)
        if isinstance(message, Copy):
            return keeper.hear_copy(message, now_ns)
        if isinstance(message, Copied):
            return keeper.hear_copied(message, now_ns)
        assert isinstance(message, Behind)
        return keeper.hear_behind(message, now_ns)

    def _redirect(self, led: Led, now_ns: int) -> list[LimitLetter]:
        part, custodians = self._parts.get(led.limit), self._custodians.get(led.limit, ())
        if part is None or led.by not in custodians:
            return []
        turn = custodians.index(led.by)
        if turn == part.turn or not part.redirect(turn, now_ns):
            return []
        return [self._ask(part, now_ns)]

    def _ask(self, part: Part, now_ns: int) -> LimitLetter:
        custodians = self._custodians[part.limit.id]
        self._numbers += 1
        ask = part.ask(self.site, self._life, self._numbers, len(custodians), now_ns)
        return LimitLetter(custodians[part.turn % len(custodians)], ask)
