"""Sites that fail are left out of choices, within their share, and come back step by step."""

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.rng import stream
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.table import RoutingTable
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_choice,
    a_digest,
    a_load,
    a_site,
    a_table,
    a_view,
)

RNG = stream(9, "site health")
NEAR, FAR = SiteName("near"), SiteName("far")


def two_sites() -> tuple[RoutingTable, Loads]:
    table = a_table(a_view(
        [a_site("ingress"), a_site("near"), a_site("far")],
        rtt_ms={"near": 5.0, "far": 60.0}, serving=["near", "far"],
    ))
    loads = Loads()
    tell(loads, 1)
    return table, loads


def tell(loads: Loads, now_ns: int, *sites: str) -> None:
    for name in sites or ("near", "far"):
        loads.heard(a_digest(name, sequence=now_ns), now_ns)


def fail(loads: Loads, site: SiteName, now_ns: int, *, count: int = 5) -> None:
    for _ in range(count):
        loads.health.failed(site, MODEL, "status 500", "org", now_ns, RNG)


def chosen(table: RoutingTable, loads: Loads, now_ns: int) -> Choice:
    return a_choice(table, loads, now_ns=now_ns, rng=RNG)


def test_a_site_that_fails_is_refused_by_its_rule_and_the_fact() -> None:
    table, loads = two_sites()
    assert chosen(table, loads, 1).site == "near"
    fail(loads, NEAR, 1, count=4)
    assert chosen(table, loads, 1).site == "near"
    assert loads.health.failed(NEAR, MODEL, "status 500", "org", 1, RNG)
    choice = chosen(table, loads, 1)
    assert choice.site == "far"
    assert [(each.site, each.rule) for each in choice.refused] == [("near", "ejected")]
    assert "status 500" in choice.refused[0].detail
    assert loads.health.ejections == 1


def test_after_its_hold_one_request_is_the_probe_and_its_answer_lets_work_grow_back() -> None:
    table, loads = two_sites()
    fail(loads, NEAR, 1)
    now_ns = SECOND_NS + 1
    assert chosen(table, loads, now_ns).site == "near"
    loads.dispatched(NEAR, MODEL, 10, 10, now_ns)
    assert chosen(table, loads, now_ns).site == "far"
    loads.health.answered(NEAR, MODEL, "org", now_ns)
    sites = [chosen(table, loads, now_ns).site for _ in range(200)]
    assert 0 < sites.count(NEAR) < 60
    waits = {choice.queue_ms for choice in (chosen(table, loads, now_ns) for _ in range(100))}
    assert waits <= {0.0, 10.0}  # who is held back is not chosen while there is another
    for second in range(2, 13):
        tell(loads, second * SECOND_NS)
        loads.health.sweep(second * SECOND_NS)
    assert chosen(table, loads, 12 * SECOND_NS).site == "near"
    assert loads.health.ailing == 0


def test_a_probe_that_fails_is_out_for_twice_as_long() -> None:
    table, loads = two_sites()
    fail(loads, NEAR, 1)
    now_ns = SECOND_NS + 1
    loads.dispatched(NEAR, MODEL, 10, 10, now_ns)
    fail(loads, NEAR, now_ns, count=1)
    assert chosen(table, loads, now_ns + SECOND_NS).site == "far"
    assert chosen(table, loads, now_ns + 2 * SECOND_NS).site == "near"


def test_never_more_than_half_of_the_sites_and_never_the_only_one() -> None:
    table, loads = two_sites()
    fail(loads, NEAR, 1)
    fail(loads, FAR, 1, count=40)
    assert chosen(table, loads, 1).site == "far"
    health = loads.health.of(FAR, MODEL)
    assert health is not None
    assert health.state == "suspect"
    alone = Loads()
    tell(alone, 1, "near")
    fail(alone, NEAR, 1, count=40)
    assert chosen(table, alone, 1).site == "near"


def test_who_is_out_is_taken_back_when_the_others_are_gone() -> None:
    table, loads = two_sites()
    fail(loads, NEAR, 1)
    loads.heard(a_digest("far", a_load(ready=0), sequence=2), 2)
    loads.health.sweep(2)
    assert chosen(table, loads, 2).site == "near"


def test_the_only_site_that_can_be_asked_stays_whatever_took_the_others() -> None:
    for how in ("lost", "silent", "left", "drained"):
        table, loads = two_sites()
        now_ns = 1
        if how == "lost":
            loads.lost(FAR, now_ns)
        elif how == "silent":
            now_ns = 3600 * SECOND_NS
            tell(loads, now_ns, "near")
        elif how == "left":
            loads.health.keep({NEAR})
        else:
            loads.health.keep({NEAR, FAR}, {FAR})
        fail(loads, NEAR, now_ns)
        assert chosen(table, loads, now_ns).site == "near", how


def test_who_is_out_is_taken_back_when_the_others_cannot_be_reached() -> None:
    table, loads = two_sites()
    fail(loads, NEAR, 1)
    loads.lost(FAR, 2)
    loads.health.sweep(2)
    assert chosen(table, loads, 2).site == "near"


def test_half_of_the_sites_that_can_be_asked_stay() -> None:
    names = ["a", "b", "c", "d"]
    loads = Loads()
    tell(loads, 1, *names)
    for lost in ("c", "d"):
        loads.lost(SiteName(lost), 1)
    for failing in ("a", "b"):
        fail(loads, SiteName(failing), 1)
    states = [loads.health.of(SiteName(name), MODEL) for name in ("a", "b")]
    assert [each.state for each in states if each is not None] == ["ejected", "suspect"]


def test_who_was_ejected_and_has_nothing_ready_any_more_keeps_nobody_else_in() -> None:
    loads = Loads()
    tell(loads, 1, "a", "b", "c", "d")
    fail(loads, SiteName("a"), 1)
    loads.heard(a_digest("a", a_load(ready=0), sequence=2), 2)
    loads.health.sweep(2)
    fail(loads, SiteName("b"), 2)
    health = loads.health.of(SiteName("b"), MODEL)
    assert health is not None
    assert health.state == "ejected"  # one of the three that are left may be out


def test_other_models_of_a_site_are_not_concerned() -> None:
    table, loads = two_sites()
    for _ in range(9):
        loads.health.failed(NEAR, ModelName("other"), "status 500", "org", 1, RNG)
    assert chosen(table, loads, 1).site == "near"


def test_what_was_away_begins_with_little_if_it_ever_served() -> None:
    table, loads = two_sites()
    loads.heard(a_digest("near", a_load(ready=0), sequence=2), 2)
    loads.heard(a_digest("near", sequence=3), 3)
    assert loads.health.ailing == 0
    loads.health.answered(NEAR, MODEL, "org", 3)
    loads.heard(a_digest("near", a_load(ready=0), sequence=4), 4)
    loads.heard(a_digest("near", sequence=5), 5)
    assert loads.health.ailing == 1
    sites = [chosen(table, loads, 5).site for _ in range(200)]
    assert 0 < sites.count(NEAR) < 60


def test_a_site_that_was_lost_or_silent_begins_with_little() -> None:
    for how in ("lost", "silent"):
        _, loads = two_sites()
        loads.health.answered(NEAR, MODEL, "org", 3)
        if how == "lost":
            loads.lost(NEAR, 4)
        tell(loads, 6 * SECOND_NS)
        health = loads.health.of(NEAR, MODEL)
        assert health is not None
        assert health.state == "recovering"


def test_a_lost_site_that_does_not_answer_probes_stays_lost() -> None:
    table, loads = two_sites()
    loads.lost(NEAR, 1)
    loads.still_lost(NEAR, 2 * SECOND_NS - 1)
    tell(loads, 3 * SECOND_NS)
    refused = chosen(table, loads, 3 * SECOND_NS).refused
    assert [(each.site, each.rule) for each in refused] == [("near", "unreachable")]
    tell(loads, 6 * SECOND_NS)
    assert not chosen(table, loads, 6 * SECOND_NS).refused


def test_one_that_hangs_is_late_by_the_measure_of_the_other() -> None:
    table, loads = two_sites()
    for _ in range(5):
        loads.health.answered(FAR, MODEL, "org", 1, expected_ms=200.0, waited_ms=220.0)
    late = [
        loads.health.late(NEAR, MODEL, waited_ms, 100.0, "org", 1, RNG)
        for waited_ms in (5_000.0, *[6_000.0] * 5)
    ]
    assert late == [False, *[True] * 5]
    assert chosen(table, loads, 1).site == "far"


def test_slow_sites_that_are_gone_are_no_measure_of_those_that_are_there() -> None:
    for how in ("lost", "drained"):
        _, loads = two_sites()
        gone = [SiteName(name) for name in ("c", "d", "e")]
        tell(loads, 1, *gone)
        for site, waited_ms in ((FAR, 220.0), *[(each, 20_000.0) for each in gone]):
            for _ in range(5):
                loads.health.answered(site, MODEL, "org", 1, expected_ms=200.0, waited_ms=waited_ms)
        assert not loads.health.late(NEAR, MODEL, 6_000.0, 100.0, "org", 1, RNG)  # as all are
        if how == "lost":
            for each in gone:
                loads.lost(each, 1)
        else:
            loads.health.keep({NEAR, FAR, *gone}, set(gone))
        assert loads.health.late(NEAR, MODEL, 6_000.0, 100.0, "org", 1, RNG), how


def test_suspicion_is_over_a_minute_after_the_last_failure() -> None:
    table, loads = two_sites()
    fail(loads, NEAR, 1, count=4)
    loads.health.sweep(59 * SECOND_NS)
    assert [each[0] for each in loads.health.doubtful()] == [NEAR]
    loads.health.sweep(61 * SECOND_NS)
    assert loads.health.ailing == 0
    fail(loads, NEAR, 62 * SECOND_NS, count=4)
    tell(loads, 62 * SECOND_NS)
    assert chosen(table, loads, 62 * SECOND_NS).site == "near"


def test_what_was_sent_to_a_site_before_it_was_out_is_no_probe() -> None:
    _, loads = two_sites()
    fail(loads, NEAR, SECOND_NS)
    now_ns = 2 * SECOND_NS
    loads.dispatched(NEAR, MODEL, 10, 10, now_ns)  # the probe
    for _ in range(5):
        loads.health.failed(NEAR, MODEL, "a time-out", "org", now_ns, RNG, SECOND_NS // 2)
        loads.health.abandoned(NEAR, MODEL, now_ns, SECOND_NS // 2)
        loads.health.late(NEAR, MODEL, 6e3, 100.0, "org", now_ns, RNG, SECOND_NS // 2)
    health = loads.health.of(NEAR, MODEL)
    assert health is not None
    assert health.state == "probing"
    loads.health.failed(NEAR, MODEL, "a time-out", "org", now_ns, RNG, now_ns)
    assert (health.state, health.hold_s) == ("ejected", 2.0)


def test_who_is_held_back_but_taken_is_predicted_as_it_is() -> None:
    table, loads = two_sites()
    fail(loads, NEAR, 1)
    now_ns = SECOND_NS + 1
    loads.dispatched(NEAR, MODEL, 10, 10, now_ns)
    loads.health.answered(NEAR, MODEL, "org", now_ns)
    for _ in range(2000):  # all that another site could take, and far more
        loads.dispatched(FAR, MODEL, 100_000, 100, now_ns)
    choices = [chosen(table, loads, now_ns) for _ in range(100)]
    taken = [each for each in choices if each.site == "near"]
    assert len(taken) == len(choices)
    assert max(each.queue_ms for each in taken) < 100
    assert max(each.predicted_ttft_ms or 0.0 for each in taken) < 1000
    assert {each.costs.item(each.index) for each in taken} == {each.cost_ms for each in taken}


def test_a_site_that_left_is_forgotten() -> None:
    _, loads = two_sites()
    fail(loads, NEAR, 1)
    loads.health.keep({FAR})
    assert loads.health.ailing == 0
    assert loads.health.of(NEAR, MODEL) is None
