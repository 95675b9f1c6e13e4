"""How far somebody is trusted: who is ejected, who probes, who is believed, how work grows back."""

import pytest

from isochrone.core.lifecycle.health import (
    BARRED_NS,
    OUTCOMES,
    TRANSITIONS,
    USED_NS,
    Health,
    HealthRules,
    has_room,
    shown,
    usual_pace,
    worse,
)
from isochrone.core.rng import stream
from tests.builders import SECOND_NS

RULES = HealthRules(failures=3, failure_rate=0.5, first_hold_s=1.0, longest_hold_s=8.0)
RNG = stream(7, "health")


def fail(
    health: Health, *organisations: str, now_ns: int = 0, room: bool = True, lost: bool = False,
    alone: bool = False,
) -> Health:
    for organisation in organisations:
        health.failed(
            "it failed", organisation, now_ns, rng=RNG, rules=RULES, alone=alone, room=room,
            lost=lost,
        )
    return health


def lose(health: Health, now_ns: int = 0) -> Health:
    health.lost("refused", now_ns, rng=RNG, rules=RULES)
    return health


def test_failures_in_a_row_eject() -> None:
    health = fail(Health(), "a", "a")
    assert (health.state, health.ailing) == ("suspect", True)
    health.answered("a", 0)
    assert fail(health, "a", "a").state == "suspect"
    assert fail(health, "a").state == "ejected"


def test_a_rate_of_failures_ejects() -> None:
    health = Health()
    for _ in range(OUTCOMES // 2 - 1):
        fail(health, "a")
        health.answered("a", 0)
    assert health.state == "suspect"
    assert fail(health, "a").state == "ejected"


def test_what_failed_is_forgotten_after_the_last_outcomes() -> None:
    health = fail(Health(), "a", "a")
    for _ in range(OUTCOMES):
        health.answered("a", 0)
    assert (health.state, health.outcomes, health.ailing) == ("healthy", 0, False)


def test_what_cannot_be_connected_to_is_out_at_once() -> None:
    health = lose(Health(), 5)
    assert (health.state, health.outright) == ("ejected", True)
    assert not health.may_ask(health.until_ns - 1)
    assert health.may_ask(health.until_ns)


def test_one_probe_is_let_through_and_its_answer_begins_a_recovery() -> None:
    health = lose(Health())
    now_ns = health.until_ns
    health.asked(now_ns, RULES)
    assert (health.state, health.may_ask(now_ns)) == ("probing", False)
    assert health.may_ask(now_ns + int(RULES.probe_s * 1e9))  # it took too long
    health.answered("a", now_ns)
    assert (health.state, health.may_ask(now_ns)) == ("recovering", True)
    assert not health.ease(now_ns + 9 * SECOND_NS, RULES)
    assert health.ease(now_ns + 10 * SECOND_NS, RULES)
    assert (health.state, health.hold_s) == ("healthy", 0.0)


def test_a_probe_that_tells_nothing_leaves_room_for_the_next() -> None:
    health = lose(Health())
    health.asked(SECOND_NS, RULES)
    health.abandoned(SECOND_NS)
    assert health.may_ask(SECOND_NS)


def test_the_hold_doubles_to_its_bound_and_chance_shortens_it() -> None:
    health, now_ns, holds_s = lose(Health()), 0, []
    for _ in range(6):
        holds_s.append(health.hold_s)
        assert 0.75 <= (health.until_ns - now_ns) / (health.hold_s * 1e9) <= 1
        now_ns = health.until_ns
        health.asked(now_ns, RULES)
        fail(health, "a", now_ns=now_ns)
    assert holds_s == [1, 2, 4, 8, 8, 8]


def test_who_fails_again_while_it_recovers_is_out_for_longer() -> None:
    health = lose(Health())
    health.asked(SECOND_NS, RULES)
    health.answered("a", SECOND_NS)
    assert fail(health, "a", "a", "a", now_ns=SECOND_NS).hold_s == 2.0


def test_what_older_requests_say_of_an_ejected_one_changes_nothing() -> None:
    health = lose(Health())
    before = (health.state, health.until_ns, health.hold_s)
    lose(fail(health, "a", "b"), 9)
    health.answered("a", 9)
    health.abandoned(9)
    assert (health.state, health.until_ns, health.hold_s) == before


def test_the_requests_of_one_do_not_speak_against_what_works_for_others() -> None:
    health = Health()
    health.answered("others", 0)
    fail(health, *["poison"] * 50, now_ns=1)
    states = [str(health.state)]
    for now_ns in range(2, 200):  # however they take turns
        health.answered("others", now_ns)
        fail(health, "poison", "poison", "poison", now_ns=now_ns, lost=True)
        states.append(health.state)
    assert set(states) == {"suspect"}
    for _ in range(OUTCOMES):
        health.answered("others", 200)
    assert health.state == "healthy"


def test_a_failure_of_a_second_organisation_is_believed() -> None:
    health = Health()
    health.answered("others", 0)
    fail(health, *["one"] * 5, now_ns=1)
    assert fail(health, "others", now_ns=2).state == "ejected"


def test_a_half_that_fails_for_everybody_is_believed() -> None:
    health = Health()
    for now_ns in range(OUTCOMES):
        for organisation in ("one", "others"):
            health.answered(organisation, now_ns)
            fail(health, organisation, now_ns=now_ns)
        if health.state == "ejected":
            return
    raise AssertionError("half of all failed, and nothing came of it")


def test_who_is_alone_is_believed() -> None:
    health = Health()
    health.answered("others", 0)
    assert fail(health, *["one"] * 30, now_ns=USED_NS).state == "suspect"
    assert fail(health, "one", now_ns=USED_NS + 1).state == "ejected"


def test_a_failed_probe_of_one_leaves_the_next_to_the_others() -> None:
    health = Health()
    health.answered("others", 0)
    lose(health)
    now_ns = health.until_ns
    health.asked(now_ns, RULES)
    fail(health, "one", now_ns=now_ns)
    assert (health.state, health.hold_s) == ("ejected", 1.0)
    assert not health.may_ask(now_ns, "one")
    assert health.may_ask(now_ns, "others")
    assert health.may_ask(now_ns + BARRED_NS, "one")
    health.asked(now_ns, RULES)
    assert fail(health, "others", now_ns=now_ns).hold_s == 2.0


def test_no_room_keeps_a_suspect_at_work() -> None:
    health = fail(Health(), *"abcdefgh", room=False)
    assert (health.state, health.may_ask(0)) == ("suspect", True)


@pytest.mark.parametrize(("size", "out", "expected"), [
    (1, 0, False), (2, 0, True), (2, 1, False), (3, 0, True), (3, 1, False), (4, 1, True),
    (10, 4, True), (10, 5, False),
])
def test_how_many_may_be_out(size: int, out: int, expected: bool) -> None:
    assert has_room(out, size, RULES) is expected


def test_silence_keeps_it_out_and_a_word_makes_it_worth_a_probe() -> None:
    health = Health()
    health.fell_silent("no answer", 0, rng=RNG, rules=RULES, alone=False, room=True)
    assert not health.may_ask(60 * SECOND_NS)
    health.spoke(60 * SECOND_NS)
    assert health.may_ask(60 * SECOND_NS)
    full = Health()
    full.fell_silent("no answer", 0, rng=RNG, rules=RULES, alone=False, room=False)
    assert (full.state, full.silent) == ("healthy", False)


def test_the_weight_grows_in_time() -> None:
    health = Health()
    assert health.weight(0, RULES) == 1.0
    health.returned("it was away", 0)
    weights = [health.weight(second * SECOND_NS, RULES) for second in (0, 1, 5, 9, 10, 99)]
    assert weights == pytest.approx([0.1, 0.1, 0.5, 0.9, 1.0, 1.0])
    assert health.weight(0, HealthRules(recovery_s=0.0)) == 1.0


def test_the_measure_of_a_group_is_its_lower_median() -> None:
    slow, quick, unknown = Health(), Health(), Health()
    for _ in range(30):
        slow.kept_pace(100.0, 2000.0)
        quick.kept_pace(100.0, 150.0)
    unknown.kept_pace(100.0, 9000.0)
    assert usual_pace([slow, quick, unknown]) == pytest.approx(1.5)
    assert usual_pace([unknown]) == 1.0


def test_what_is_shown() -> None:
    said = ("starting", "ready", "draining", "failed", "stopped")
    assert [shown(each, "ejected") for each in said] \
        == ["down", "ejected", "draining", "down", "down"]
    assert shown("ready", None) == "healthy"
    pairs = [("suspect", "healthy"), ("ejected", "down"), ("down", "down"), ("new", "down")]
    assert [worse(*pair) for pair in pairs] == [True, False, False, True]


@pytest.mark.parametrize("state", ["healthy", "suspect", "ejected", "probing", "recovering"])
def test_every_state_is_left_by_some_sign(state: str) -> None:
    assert any(before == state != then for (before, _), then in TRANSITIONS.items())


def worked_example() -> list[tuple[int, str, float]]:
    """(second, state, share or hold) of the replica of docs/health.md."""
    health, rules = Health(), HealthRules()
    told: list[tuple[int, str, float]] = []

    def told_at(second: int) -> None:
        share = health.weight(second * SECOND_NS, rules)
        held = health.hold_s if health.state == "ejected" else share
        told.append((second, health.state, held))

    def fails(organisation: str, second: int) -> None:
        health.failed(
            "status 500", organisation, second * SECOND_NS, rng=RNG, rules=rules, alone=False,
            room=has_room(0, 4, rules),
        )

    health.answered("shop", 0)
    told_at(0)
    for _ in range(9):
        fails("lab", 1)
    told_at(1)
    fails("shop", 2)
    told_at(2)
    assert health.may_ask(3 * SECOND_NS, "lab")
    health.asked(3 * SECOND_NS, rules)
    fails("lab", 3)
    told_at(3)
    assert not health.may_ask(3 * SECOND_NS, "lab")
    assert health.may_ask(3 * SECOND_NS, "shop")
    health.asked(3 * SECOND_NS, rules)
    fails("shop", 3)
    told_at(3)
    assert health.may_ask(5 * SECOND_NS, "shop")
    health.asked(5 * SECOND_NS, rules)
    health.answered("shop", 5 * SECOND_NS)
    for second in (5, 9, 15):
        health.ease(second * SECOND_NS, rules)
        told_at(second)
    assert health.hold_s == 0.0
    return told


def test_worked_example() -> None:
    assert worked_example() == [
        (0, "healthy", 1.0), (1, "suspect", 1.0), (2, "ejected", 1.0), (3, "ejected", 1.0),
        (3, "ejected", 2.0), (5, "recovering", 0.1), (9, "recovering", 0.4), (15, "healthy", 1.0),
    ]
