"""Requests that count in two limits at once: nobody keeps what another needs while it waits."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from isochrone.core.ids import KeyId, LimitId, ProjectId, SiteName
from isochrone.core.limits.admit import Claim
from isochrone.core.limits.messages import AskGrant, Grant, LimitLetter
from isochrone.core.limits.part import Part
from isochrone.core.limits.terms import custodians_of
from isochrone.core.world.limit import Limit, LimitKind
from isochrone.gateway.replies import Refusal
from isochrone.gateway.shared_limits import SharedLimits
from isochrone.wire.commitments import decode_messages, encode_messages
from tests.fixtures.limited_fleet import MS, SECOND_NS, SITES, LimitedFleet, a_limit
from tests.unit import test_limit_gauges as gauges

FOUR = SITES[:4]


def kept_at(home: SiteName, name: str, sites: Sequence[SiteName]) -> LimitId:
    """A limit's id whose home is that site."""
    ids = (LimitId(f"{name}{number}") for number in range(1_000))
    return next(each for each in ids if custodians_of(each, sites)[0] == home)


def two_limits(kind: LimitKind, amount: int, seed: int = 5) -> LimitedFleet:
    """Of a key and of its project, kept at the two sites that ask, each at the other's end."""
    of_key = replace(a_limit(kind, amount), id=kept_at(FOUR[0], "key", FOUR))
    of_project = replace(of_key, id=kept_at(FOUR[1], "project", FOUR), key_id=None)
    fleet = LimitedFleet(of_key, seed, FOUR, (of_project,), delay_ms=40)
    fleet.pass_ms(1_000)
    return fleet


@pytest.mark.parametrize("in_step", [True, False], ids=["clocks alike", "clocks apart"])
def test_of_two_that_want_the_only_place_one_has_it(in_step: bool) -> None:
    fleet = two_limits("concurrent", 1)
    for place in fleet.places.values() if in_step else ():
        place.drift_ppm = place.offset_ns = 0
    for _ in range(20):
        before = len(fleet.admitted)
        fleet.request(FOUR[0], 1, 1, 200)
        fleet.request(FOUR[1], 1, 1, 200)
        fleet.pass_ms(3_100)
        assert len(fleet.running) <= 1
        assert len(fleet.admitted) > before


def test_what_is_left_of_two_budgets_can_be_spent() -> None:
    fleet = two_limits("budget", 40)
    fleet.request(FOUR[2], 10, 10, 10)
    fleet.pass_ms(15_000)
    for _ in range(3):  # of the 30 that are left
        fleet.request(FOUR[0], 16, 16, 10)
        fleet.request(FOUR[1], 16, 16, 10)
        fleet.pass_ms(3_300)
    assert fleet.spent() == 26


@pytest.mark.parametrize("seed", range(4))
def test_streams_of_four_sites_use_two_limits_of_two(seed: int) -> None:
    """Three clients a site, who come again two seconds after a refusal or a little later."""
    fleet = two_limits("concurrent", 2, seed)
    pausing: dict[SiteName, list[int]] = {site: [] for site in FOUR}
    busy = 0
    for _ in range(1_200):
        for site in FOUR:
            pausing[site] = [each for each in pausing[site] if each > fleet.now_ns]
            open_ = sum(each.place == site for each in fleet.running)
            open_ += len(fleet.places[site].waiting) + len(pausing[site])
            for _ in range(3 - open_):
                fleet.request(site, 1, 1, 500)
        refused = len(fleet.refusals)
        fleet.pass_ms(50)
        for each in fleet.refusals[refused:]:
            pause_ms = fleet.rng.randint(2_000, 2_500)
            pausing[SiteName(each.place)].append(fleet.now_ns + pause_ms * MS)
        assert len(fleet.running) <= 2
        busy += len(fleet.running)
    assert busy > 1_200, "half of it was used at least"


def test_what_can_never_fit_in_one_limit_waits_for_none() -> None:
    of_key, of_project = (Part(a_limit("tokens_per_min", most), 0) for most in (10**6, 1_000))
    claim = Claim((of_key, of_project), [2_000, 2_000], 0, SECOND_NS)
    assert claim.decide(SECOND_NS) == "refused"
    assert claim.lacking is of_project
    assert (of_key.waiting, of_project.waiting) == (0, 0)


def test_whatever_is_asked_for_fits_in_a_letter() -> None:
    """One that did not was lost with those of others that went with it."""
    most = 4 * 10**18
    part = Part(a_limit("tokens_per_min", most), 0)
    claims = [Claim((part,), [most], 0, SECOND_NS) for _ in range(20)]
    assert {each.decide(SECOND_NS) for each in claims} == {"waits"}
    ask = part.ask(FOUR[0], 1, 1, 3, SECOND_NS)
    assert decode_messages(encode_messages([ask])) == [ask]
    assert ask.need == ask.want == most + 1

    beyond = Claim((part,), [1 << 70], 0, SECOND_NS)
    assert beyond.decide(SECOND_NS) == "refused"


class AtHomeOfOne(gauges.Home):
    """A gateway of two; the other keeps some of the limits, and answers when it is let."""

    OTHER = SiteName("tokyo")

    def __init__(self, *limits: Limit) -> None:
        self.asks: list[AskGrant] = []
        super().__init__(*limits)

    def _deliver(self, letters: Sequence[LimitLetter]) -> None:
        self.limits.send = self._deliver
        for letter in letters:
            if letter.to == self.OTHER:
                assert isinstance(letter.message, AskGrant)
                self.asks.append(letter.message)
            else:
                self._deliver(self.limits.hear(gauges.SITE, letter.message))

    def join(self) -> None:
        """From now on there are two gateways."""
        limits = [each for of in self._view.limits.values() for each in of.limits]
        self.limits.fleet.take(
            limits, (gauges.SITE, self.OTHER), self.clock.now_ns, self.clock.wall_ns()
        )

    def leave_only(self, limits: Sequence[Limit]) -> None:
        """The others are removed."""
        self.limits.fleet.take(
            limits, (gauges.SITE, self.OTHER), self.clock.now_ns, self.clock.wall_ns()
        )

    def grant(self, free: int = 0) -> None:
        """The other site gives what was needed, by its last ask."""
        ask = self.asks.pop()
        self.limits.hear(self.OTHER, Grant(
            limit=ask.limit, life=ask.life, number=ask.number, mark=ask.mark, amount=ask.need,
            for_ns=6 * SECOND_NS, free=free, spare=0,
        ))


def waiting(limits: SharedLimits) -> dict[LimitId, int]:
    return {part.limit.id: part.waiting for part in parts(limits)}


def parts(limits: SharedLimits) -> list[Part]:
    return list(limits.fleet.parts().values())


def at(level: str, home: SiteName) -> Limit:
    """Of one stream, of the key or of its project."""
    both = (gauges.SITE, AtHomeOfOne.OTHER)
    return replace(
        gauges.a_limit("concurrent", 1, "mine"), id=kept_at(home, level, both),
        key_id=KeyId("mine") if level == "key" else None, project_id=ProjectId("project"),
    )


def ask(home: AtHomeOfOne, answers: list[Refusal | None]) -> None:
    """Of a request that waits; what becomes of it is added to the answers."""
    def decided(refusal: Refusal | None, now_ns: int) -> None:
        answers.append(refusal)

    exchange, refusal = home.ask("mine")
    assert refusal is None
    assert exchange.limited is not None
    assert exchange.limited.waits
    exchange.limits_decided = decided  # type: ignore[method-assign]


def asked(
    key_at: SiteName, project_at: SiteName, answers: list[Refusal | None]
) -> tuple[AtHomeOfOne, list[LimitId]]:
    """A request that waits, and the limits of its key and its project."""
    of_key, of_project = at("key", key_at), at("project", project_at)
    home = AtHomeOfOne(of_project, of_key)
    home.join()
    home.pass_s(1)
    ask(home, answers)
    return home, [of_key.id, of_project.id]


def test_who_waits_for_the_first_limit_asks_for_nothing_of_the_next() -> None:
    answers: list[Refusal | None] = []
    home, (key, project) = asked(AtHomeOfOne.OTHER, AtHomeOfOne.OTHER, answers)
    assert [each.limit for each in home.asks] == [key]
    assert waiting(home.limits) == {key: 1, project: 0}

    home.grant()
    assert [each.limit for each in home.asks] == [project]
    assert waiting(home.limits) == {key: 1, project: 1}

    home.grant()
    assert answers == [None]
    assert waiting(home.limits) == {key: 0, project: 0}
    assert [part.held for part in parts(home.limits)] == [1, 1]


def test_what_its_own_gateway_keeps_it_has_as_soon_as_it_is_asked() -> None:
    answers: list[Refusal | None] = []
    home, _ = asked(AtHomeOfOne.OTHER, gauges.SITE, answers)
    home.grant()
    assert answers == [None]


def test_many_that_wait_for_the_next_limit_are_decided_in_one_go() -> None:
    """Each may be answered while another is decided about."""
    answers: list[Refusal | None] = []
    home, (key, project) = asked(AtHomeOfOne.OTHER, gauges.SITE, answers)
    for part in parts(home.limits):
        part.limit = replace(part.limit, amount=3_000)
        if part.limit.id == project:
            home.limits.fleet.keepers()[project].limit = part.limit
    for _ in range(1_500):
        ask(home, answers)
    home.pass_s(1)
    assert {each.limit for each in home.asks} == {key}
    home.grant()
    assert answers == [None] * 1_501


@pytest.mark.parametrize("gone", [("key",), ("key", "project")], ids=["one", "all"])
def test_who_waits_for_a_limit_that_is_removed_goes_on(gone: tuple[str, ...]) -> None:
    """It was refused after three seconds, as if those that kept the limit did not answer."""
    answers: list[Refusal | None] = []
    home, _ = asked(AtHomeOfOne.OTHER, gauges.SITE, answers)
    home.leave_only([] if "project" in gone else [at("project", gauges.SITE)])
    home.pass_s(1)
    assert answers == [None]
