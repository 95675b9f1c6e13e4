"""The replicas of a gateway: records that come and go, counts, who is ejected, several sites."""

from dataclasses import replace

import pytest

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.lifecycle.health import HealthRules
from isochrone.core.metering.event import Outcome
from isochrone.core.rng import stream
from isochrone.core.world.digest import ReplicaLoad, SiteDigest
from isochrone.core.world.model import Replica
from isochrone.gateway.replicas import Replicas, verdict
from tests.builders import MODEL, SECOND_NS, a_digest, a_load

SITE = SiteName("sydney")
RNG = stream(5, "replicas")
RULES = HealthRules(
    failures=2, first_hold_s=1.0, longest_hold_s=4.0, probe_s=9.0, recovery_s=5.0
)


def a_replica(name: str = "sydney/tiny/0", **changes: object) -> Replica:
    replica = Replica(
        id=ReplicaId(name), site=SITE, model=MODEL, revision=None, generation=1, state="ready",
        engine="openai", base_url="http://127.0.0.1:1/v1", engine_key=None, credential=None,
        upstream_model="tiny", slots=4, pid=None, started_at=0,
    )
    return replace(replica, **changes)  # type: ignore[arg-type]


def some_replicas(*replicas: Replica) -> Replicas:
    found = Replicas(RULES)
    for replica in replicas:
        assert found.put(replica.id, replica)
    return found


def picked(
    replicas: Replicas, now_ns: int = 0, *, site: str = SITE, tried: tuple[str, ...] = ()
) -> str | None:
    found = replicas.pick(
        SiteName(site), MODEL, tuple(map(ReplicaId, tried)), now_ns=now_ns, rng=RNG
    )
    return None if found is None else found.id


def test_a_replica_that_is_heard_of_late_is_as_fast_as_its_site_has_said() -> None:
    """A gateway that runs alone is told once, and before its replicas are."""
    replicas = Replicas(RULES)
    replicas.heard(a_digest(SITE, a_load(prefill_tok_s=2_000.0)), 0, RNG)
    for name in ("a", "b"):
        replicas.put(name, a_replica(name))
        replicas.started(ReplicaId(name), 4_000, 10)
    assert replicas.soonest_ms(SITE, MODEL) == pytest.approx(2_000.0 + 1 / 4)


def test_sites_and_models_are_kept_apart() -> None:
    replicas = some_replicas(
        a_replica("a"), a_replica("b", site=SiteName("oslo")),
        a_replica("c", model=ModelName("other")),
    )
    assert (picked(replicas), picked(replicas, site="oslo")) == ("a", "b")
    assert picked(replicas, tried=("a",)) is None
    assert [replicas.reaches(SiteName(each)) for each in ("sydney", "oslo", "paris")] \
        == [True, True, False]
    replicas.drop("b")
    assert not replicas.reaches(SiteName("oslo"))
    assert picked(replicas, site="oslo") is None


def test_running_requests_decide_and_outlive_a_change_of_the_record() -> None:
    replicas = some_replicas(a_replica("a"), a_replica("b"))
    replicas.started(ReplicaId("a"))
    assert picked(replicas) == "b"
    assert replicas.put("a", a_replica("a", slots=8))
    assert picked(replicas) == "b"
    replicas.finished(ReplicaId("a"), True, 0, RNG)
    replicas.started(ReplicaId("b"))
    assert picked(replicas) == "a"


def test_a_dropped_replica_is_counted_to_its_end_and_then_forgotten() -> None:
    replicas = some_replicas(a_replica("a"))
    replicas.started(ReplicaId("a"))
    replicas.drop("a")
    replicas.drop("a")
    assert picked(replicas) is None
    assert replicas.put("a", a_replica("a"))
    assert replicas.put("b", a_replica("b"))
    assert picked(replicas) == "b"
    for name in ("a", "b"):
        replicas.drop(name)
    replicas.finished(ReplicaId("a"), None, 0, RNG)
    replicas.finished(ReplicaId("a"), None, 0, RNG)
    assert replicas._by_id == {}


def test_an_older_generation_is_not_believed() -> None:
    replicas = some_replicas(a_replica("a", generation=2))
    assert not replicas.put("a", a_replica("a", generation=1, state="failed"))
    assert picked(replicas) == "a"


def test_a_lost_replica_gets_one_probe_after_its_hold() -> None:
    replica = a_replica("a")
    replicas = some_replicas(replica)
    replicas.lost(replica, 0, RNG)
    assert picked(replicas, SECOND_NS // 2) is None
    assert picked(replicas, SECOND_NS) == "a"
    replicas.started(replica.id)
    assert picked(replicas, SECOND_NS) is None
    replicas.answered(replica.id, SECOND_NS)
    assert picked(replicas, SECOND_NS) == "a"


def test_a_sole_replica_that_fails_is_asked_again_soon() -> None:
    replica = a_replica("a")
    replicas = some_replicas(replica)
    now_ns = 0
    for _ in range(6):
        for _ in range(2):
            replicas.finished(replica.id, False, now_ns, RNG)
        assert picked(replicas, now_ns) is None
        now_ns += SECOND_NS
        assert picked(replicas, now_ns) == "a"


def test_a_failed_probe_doubles_the_hold_and_an_abandoned_one_does_not() -> None:
    replica = a_replica("a")
    replicas = some_replicas(replica)
    replicas.lost(replica, 0, RNG)
    assert picked(replicas, SECOND_NS) == "a"
    replicas.started(replica.id)
    replicas.finished(replica.id, None, SECOND_NS, RNG)
    assert picked(replicas, SECOND_NS) == "a"
    replicas.started(replica.id)
    replicas.finished(replica.id, False, SECOND_NS, RNG)
    assert picked(replicas, SECOND_NS + SECOND_NS) is None
    assert picked(replicas, SECOND_NS + 2 * SECOND_NS) == "a"


def test_failures_in_a_row_leave_it_out_and_success_between_does_not() -> None:
    replicas = some_replicas(a_replica("a"))
    for ok in (False, True, False):
        replicas.started(ReplicaId("a"))
        replicas.finished(ReplicaId("a"), ok, 0, RNG)
    assert picked(replicas) == "a"
    replicas.started(ReplicaId("a"))
    replicas.finished(ReplicaId("a"), False, 0, RNG)
    assert picked(replicas) is None


def test_only_half_are_ejected_for_what_came_of_requests() -> None:
    names = [f"r{number}" for number in range(5)]
    replicas = some_replicas(*[a_replica(name) for name in names])
    for _ in range(9):
        for name in names:
            replicas.finished(ReplicaId(name), False, 0, RNG)
    states = {replica.id: state for replica, state, _ in replicas.states()}
    assert sorted(states.values()) == ["ejected", "ejected", "suspect", "suspect", "suspect"]
    assert replicas.ejections[MODEL] == 2
    for name in names:  # what cannot be connected to is out, whatever its share
        replicas.lost(a_replica(name), 0, RNG)
    assert picked(replicas) is None


def test_who_became_too_many_since_others_left_are_taken_back() -> None:
    names = [f"r{number}" for number in range(4)]
    replicas = some_replicas(*[a_replica(name) for name in names])
    for second, name in enumerate(names[:2]):
        for _ in range(2):
            replicas.finished(ReplicaId(name), False, second * SECOND_NS, RNG)
    replicas.drop("r3")
    replicas.sweep(2 * SECOND_NS)
    states = [state for _, state, _ in replicas.states()]
    assert states == ["recovering", "ejected", "healthy"]


def test_an_engine_that_does_not_answer_its_agent_is_not_asked() -> None:
    replicas = some_replicas(a_replica("a"), a_replica("b"))
    said = ReplicaLoad(
        id="a", model=MODEL, generation=1, state="ready", pid=None, running=0, waiting=0,
        restarts=0, prompt_tokens_total=None, cached_tokens_total=None, output_tokens_total=None,
    )

    def digest(silent_s: float) -> SiteDigest:
        return replace(a_digest(SITE), replicas=(replace(said, silent_s=silent_s),))

    replicas.heard(digest(9.0), 0, RNG)
    assert [state for _, state, _ in replicas.states()] == ["healthy", "healthy"]
    replicas.heard(digest(11.0), 0, RNG)
    assert {picked(replicas, 60 * SECOND_NS) for _ in range(20)} == {"b"}
    replicas.heard(digest(0.0), 61 * SECOND_NS, RNG)
    assert picked(replicas, 61 * SECOND_NS, tried=("b",)) == "a"


def test_far_too_late_is_a_failure_by_the_measure_of_the_others() -> None:
    replicas = some_replicas(a_replica("a"), a_replica("b"))
    for _ in range(5):
        replicas.answered(ReplicaId("b"), 0, expected_ms=100.0, waited_ms=120.0)
    assert not replicas.late(ReplicaId("a"), 5900.0, 100.0, 0, RNG)
    for _ in range(2):
        assert replicas.late(ReplicaId("a"), 6000.0, 100.0, 0, RNG)
    assert [state for _, state, _ in replicas.states()] == ["ejected", "healthy"]


def test_where_everybody_is_slow_nobody_is_late() -> None:
    replicas = some_replicas(a_replica("a"), a_replica("b"))
    for name in "ab":
        for _ in range(5):
            replicas.answered(ReplicaId(name), 0, expected_ms=100.0, waited_ms=2000.0)
    assert not replicas.late(ReplicaId("a"), 6000.0, 100.0, 0, RNG)
    alone = some_replicas(a_replica("a"))
    assert not alone.late(ReplicaId("a"), 60_000.0, 100.0, 0, RNG)


def test_a_last_resort_is_asked_before_nobody_is() -> None:
    replica = a_replica("a")
    replicas = some_replicas(replica)
    for _ in range(2):
        replicas.finished(replica.id, False, 0, RNG)

    def last_resort() -> Replica | None:
        return replicas.pick(SITE, MODEL, (), now_ns=1, rng=RNG, last_resort=True)

    assert (picked(replicas), last_resort()) == (None, replica)
    replicas.finished(replica.id, True, 2, RNG)
    replicas.lost(replica, 3, RNG)  # nothing is there: nobody has to find that out again
    assert last_resort() is None


def test_a_last_resort_takes_no_more_than_it_has_slots() -> None:
    replica = a_replica("a", slots=2)
    replicas = some_replicas(replica)
    for _ in range(2):
        replicas.started(replica.id)
        replicas.finished(replica.id, False, 0, RNG)
    asked = 0
    while replicas.pick(SITE, MODEL, (), now_ns=1, rng=RNG, last_resort=True) is not None:
        replicas.started(replica.id)
        asked += 1
        assert asked < 10
    assert asked == 2
    replicas.finished(replica.id, None, 2, RNG)
    assert replicas.pick(SITE, MODEL, (), now_ns=3, rng=RNG, last_resort=True) is replica


def test_slots_of_ejected_replicas_do_not_count() -> None:
    heard: list[str] = []
    replicas = some_replicas(a_replica("a"), a_replica("b", slots=8))
    replicas.on_change = lambda site, model: heard.append(site)
    assert replicas.slots(SITE, MODEL) == 12
    replicas.lost(a_replica("b", slots=8), 0, RNG)
    assert (replicas.slots(SITE, MODEL), heard) == (4, [SITE])


def test_a_new_generation_begins_anew_and_an_old_loss_does_not_touch_it() -> None:
    old = a_replica("a")
    replicas = some_replicas(old)
    replicas.lost(old, 0, RNG)
    assert picked(replicas) is None
    assert replicas.put("a", a_replica("a", generation=2))
    assert picked(replicas) == "a"
    replicas.lost(old, 0, RNG)
    assert picked(replicas) == "a"
    assert [(state, health.why) for _, state, health in replicas.states()] \
        == [("recovering", "its engine was started anew")]
    replicas.sweep(5 * SECOND_NS)
    assert [state for _, state, _ in replicas.states()] == ["healthy"]


def test_what_an_earlier_engine_was_sent_says_nothing_of_the_next_one() -> None:
    replicas = some_replicas(a_replica("a"), a_replica("b"))
    replicas.put("a", a_replica("a", generation=2, state="starting"))
    for _ in range(4):  # sent to the first one, which hung
        replicas.finished(ReplicaId("a"), False, 3, RNG, sent_ns=1)
    assert not replicas.ejections
    replicas.put("a", a_replica("a", generation=2))
    replicas.sweep(4)
    replicas.sweep(60 * SECOND_NS)
    for _ in range(4):
        replicas.finished(ReplicaId("a"), False, 61 * SECOND_NS, RNG, sent_ns=2)
    assert [state for _, state, _ in replicas.states()] == ["healthy", "healthy"]
    for _ in range(2):
        replicas.finished(ReplicaId("a"), False, 62 * SECOND_NS, RNG, sent_ns=61 * SECOND_NS)
    assert [state for _, state, _ in replicas.states()] == ["ejected", "healthy"]


def test_what_was_sent_before_an_ejection_is_no_probe() -> None:
    replicas = some_replicas(a_replica("a"), a_replica("b"))
    for _ in range(2):
        replicas.finished(ReplicaId("a"), False, SECOND_NS, RNG, sent_ns=1)
    now_ns = 2 * SECOND_NS
    assert picked(replicas, now_ns, tried=("b",)) == "a"  # the probe
    for ok in (False, None):
        replicas.finished(ReplicaId("a"), ok, now_ns, RNG, sent_ns=2)
        assert replicas.late(ReplicaId("a"), 6000.0, 100.0, now_ns, RNG, sent_ns=2)
        assert [state for _, state, _ in replicas.states()] == ["probing", "healthy"]
    replicas.answered(ReplicaId("a"), now_ns)
    for _ in range(4):
        replicas.finished(ReplicaId("a"), False, now_ns, RNG, sent_ns=3)
    assert [state for _, state, _ in replicas.states()] == ["recovering", "healthy"]


def test_the_slots_of_one_that_recovers_count_by_its_share_and_are_used() -> None:
    replicas = some_replicas(*[a_replica(name, slots_stated=True) for name in ("a", "b")])
    heard: list[int] = []
    replicas.on_change = lambda site, model: heard.append(replicas.slots(site, model))
    replicas.put("a", a_replica("a", slots_stated=True, generation=2))
    assert heard == [5]  # the queue starts no more before it is asked first, either
    sent = []
    for _ in range(5):
        name = picked(replicas, 1)
        assert name is not None
        sent.append(name)
        replicas.started(ReplicaId(name), 200, 256)
    assert (sent.count("a"), sent.count("b")) == (1, 4)
    for quarter in range(1, 22):
        replicas.sweep(1 + quarter * SECOND_NS // 4)
    assert heard == [5, 6, 7, 8]


def test_the_slots_of_one_that_a_probe_brings_back_count_by_its_share() -> None:
    names = ("a", "b")
    replicas = some_replicas(*[a_replica(name, slots_stated=True) for name in names])
    heard: list[int] = []
    replicas.on_change = lambda site, model: heard.append(replicas.slots(site, model))
    replicas.lost(a_replica("a"), 0, RNG)
    assert picked(replicas, SECOND_NS, tried=("b",)) == "a"
    replicas.answered(ReplicaId("a"), SECOND_NS)
    assert heard == [4, 5]


def test_where_all_recover_all_slots_count() -> None:
    replicas = some_replicas(*[a_replica(name, slots_stated=True) for name in ("a", "b")])
    for name in ("a", "b"):
        replicas.put(name, a_replica(name, slots_stated=True, generation=2))
    replicas.sweep(1)
    assert replicas.slots(SITE, MODEL) == 8
    replicas.drop("b")
    assert replicas.slots(SITE, MODEL) == 4


def test_the_state_of_the_same_generation_keeps_its_health() -> None:
    replica = a_replica("a")
    replicas = some_replicas(replica)
    replicas.lost(replica, 0, RNG)
    assert replicas.put("a", replica)
    assert picked(replicas) is None


@pytest.mark.parametrize(
    ("outcome", "status", "reason", "expected"),
    [
        ("finished", 200, None, True),
        ("engine_error", 400, "engine_error", None),
        ("engine_error", 429, "engine_error", None),
        ("engine_error", 500, "engine_error", False),
        ("engine_error", 200, "engine_error", False),
        ("engine_lost", 200, "engine_lost", False),
        ("timed_out", 504, "first_byte_timeout", False),
        ("timed_out", 200, "between_events_timeout", False),
        ("timed_out", 200, "total_timeout", None),
        ("timed_out", 503, "gateway_stopping", None),
        ("client_gone", 499, None, None),
        ("refused", 503, "no_healthy_site", None),
    ],
)
def test_what_an_end_says_of_the_replica(
    outcome: Outcome, status: int, reason: str | None, expected: bool | None
) -> None:
    assert verdict(outcome, status, reason) is expected


def test_a_replica_that_lets_requests_wait_is_left_to_those_it_has() -> None:
    replicas = some_replicas(a_replica("full"), a_replica("free"))
    replicas.started(ReplicaId("full"), 10, 1_000)
    replicas.started(ReplicaId("full"), 10, 1_000)
    for _ in range(3):
        replicas.started(ReplicaId("free"), 1_000, 1_000)
    assert picked(replicas) == "full"
    said = [
        ReplicaLoad(
            id=name, model=MODEL, generation=generation, state="ready", pid=None, running=1,
            waiting=1, restarts=0, prompt_tokens_total=None, cached_tokens_total=None,
            output_tokens_total=None,
        )
        for name, generation in (("full", 1), ("free", 7), ("nobody", 1))
    ]
    replicas.heard(replace(a_digest(SITE), replicas=tuple(said)), 0, RNG)
    assert picked(replicas) == "free"  # what is said of another generation does not count


def test_slots_that_memory_does_not_hold_are_not_given_out() -> None:
    """Each of four slots; what runs takes 1,000 tokens each, in the mean of both."""
    replicas, heard = some_replicas(a_replica("long"), a_replica("short")), []
    replicas.on_change = lambda site, model: heard.append((site, model))

    def hear(held: int | None, kept: int | None = 4_000) -> int:
        said = [
            ReplicaLoad(
                id=name, model=MODEL, generation=1, state="ready", pid=None, running=running,
                waiting=0, restarts=0, prompt_tokens_total=None, cached_tokens_total=None,
                output_tokens_total=None, kept_tokens=kept, held_tokens=tokens,
            )
            for name, running, tokens in (("long", 2, held), ("short", 2, 500))
        ]
        replicas.heard(replace(a_digest(SITE), replicas=tuple(said)), 0, RNG)
        return replicas.slots(SITE, MODEL)

    assert hear(3_500) == 2 + 4
    assert heard == [(SITE, MODEL)]
    assert hear(3_500) == 6
    assert heard == [(SITE, MODEL)]  # nothing new
    assert hear(None) == 8
    assert hear(3_500, None) == 8
