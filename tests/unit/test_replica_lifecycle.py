"""The life of replicas: what is planned for each state, waits after failures, and replacements."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.lifecycle.replica import (
    STABLE_NS,
    TRANSITIONS,
    Event,
    EventKind,
    Forget,
    Goal,
    Start,
    Status,
    Stop,
    again,
    ended_at_once,
    first,
    goals,
    plan,
    replica_id,
    retry_after_ns,
    step,
)
from isochrone.core.world.model import Deployment, Desired, EngineSpec, ReplicaState

S = 1_000_000_000
SITE, TINY = SiteName("sydney"), ModelName("tiny")
SPEC = EngineSpec(kind="llamacpp", source="tiny.gguf")


def wanted(replicas: int = 1, *, slots: int = 4) -> tuple[Goal, ...]:
    deployment = Deployment(
        site=SITE, model=TINY, replicas=replicas, engine=replace(SPEC, slots=slots),
        context_tokens=2048,
    )
    return goals(Desired(site=SITE, serial=1, deployments=(deployment,)))


def in_state(state: ReplicaState, goal: Goal | None = None, *, since_ns: int = 0) -> Status:
    goal = goal or wanted()[0]
    return Status(
        goal=goal, generation=1, state=state, since_ns=since_ns,
        retry_at_ns=5 * S if state == "failed" else None,
        failures=1 if state == "failed" else 0,
    )


def by_id(*statuses: Status) -> Mapping[ReplicaId, Status]:
    return {status.goal.id: status for status in statuses}


def test_ids_are_stable_readable_and_distinct() -> None:
    assert [goal.id for goal in wanted(2)] == ["sydney/tiny/0", "sydney/tiny/1"]
    odd, other = (replica_id(SITE, ModelName(name), 0) for name in ("a b/ü", "a-b/ü"))
    assert odd != other
    assert odd.isascii()
    assert odd.count("/") == 2


def test_what_is_wanted_is_started_and_what_is_not_is_stopped() -> None:
    goal = wanted()[0]
    assert plan([goal], {}, 0).commands == (Start(goal=goal),)
    working: tuple[ReplicaState, ...] = ("starting", "ready", "draining")
    for state in working:
        assert plan([goal], by_id(in_state(state)), 0).commands == ()
    for state in working[:2]:
        stop = Stop(id=goal.id, reason="no longer desired")
        assert plan([], by_id(in_state(state)), 0).commands == (stop,)
    assert plan([], by_id(in_state("draining")), 0).commands == ()
    ended: tuple[ReplicaState, ...] = ("failed", "stopped")
    for state in ended:
        assert plan([], by_id(in_state(state)), 0).commands == (Forget(id=goal.id),)


def test_a_failed_replica_waits_for_its_instant() -> None:
    goal, failed = wanted()[0], in_state("failed")
    early = plan([goal], by_id(failed), 5 * S - 1)
    assert (early.commands, early.wake_ns) == ((), 5 * S)
    assert plan([goal], by_id(failed), 5 * S).commands == (Start(goal=goal),)


def test_waits_double_up_to_a_limit() -> None:
    waits = [retry_after_ns(failures) / S for failures in (1, 2, 3, 6, 7, 8, 1000)]
    assert waits == [0.5, 1, 2, 16, 30, 30, 30]


def test_failures_in_a_row_add_up_until_a_replica_was_stable() -> None:
    goal = wanted()[0]
    status = first(goal, 7, 0)
    for failures in (1, 2, 3):
        status = step(status, Event(kind="ready"), 10 * S)
        status = step(status, Event(kind="failed", detail="killed"), 10 * S + STABLE_NS - 1)
        assert (status.failures, status.detail) == (failures, "killed")
        status = again(status, goal, 7 + failures, 100 * S)
        assert (status.state, status.restarts, status.generation) == (
            "starting", failures, 7 + failures,
        )
    status = step(status, Event(kind="ready"), 10 * S)
    status = step(status, Event(kind="failed"), 10 * S + STABLE_NS)
    assert status.failures == 1
    assert status.retry_at_ns == 10 * S + STABLE_NS + retry_after_ns(1)


def test_a_new_recipe_is_tried_at_once_with_no_failures() -> None:
    new = wanted(slots=8)[0]
    failed = in_state("failed")
    assert plan([new], by_id(failed), 0).commands == (Start(goal=new),)
    assert again(failed, new, 2, 0).failures == 0


def test_a_new_recipe_replaces_one_ready_replica_at_a_time() -> None:
    old, new = wanted(3), wanted(3, slots=8)
    known = dict(by_id(*(in_state("ready", goal) for goal in old)))
    replaced = []
    for _ in range(3):
        (stop,) = plan(new, known, 0).commands
        assert isinstance(stop, Stop)
        replaced.append(stop.id)
        goal = next(goal for goal in new if goal.id == stop.id)
        not_ready: tuple[ReplicaState, ...] = ("draining", "starting")
        for state in not_ready:
            known[stop.id] = in_state(state, goal)
            assert plan(new, known, 0).commands == ()
        known[stop.id] = in_state("ready", goal)
    assert replaced == [goal.id for goal in new]
    assert plan(new, known, 0).commands == ()


def test_a_recipe_that_fails_stops_the_replacement() -> None:
    old, new = wanted(2), wanted(2, slots=8)
    known = by_id(in_state("failed", new[0]), in_state("ready", old[1]))
    assert plan(new, known, 0).commands == ()


@pytest.mark.parametrize("state", ["starting", "ready", "draining", "failed", "stopped"])
@pytest.mark.parametrize("kind", ["ready", "failed", "stop_asked", "ended"])
def test_events_without_meaning_change_nothing(state: ReplicaState, kind: EventKind) -> None:
    before = in_state(state)
    after = step(before, Event(kind=kind), 9 * S)
    assert after.state == TRANSITIONS.get((state, kind), state)
    if (state, kind) not in TRANSITIONS:
        assert after == before


def test_a_replica_becoming_ready_while_it_is_stopped_stays_stopping() -> None:
    status = step(first(wanted()[0], 1, 0), Event(kind="stop_asked", detail="why"), S)
    assert step(status, Event(kind="ready"), 2 * S) == status


def restarting(up_to: int, *, replicas: int = 1, slots: int = 4) -> tuple[Goal, ...]:
    """Goals of which the first was asked to restart."""
    deployment = Deployment(
        site=SITE, model=TINY, replicas=replicas, engine=replace(SPEC, slots=slots),
        context_tokens=2048, restart_up_to=(up_to,),
    )
    return goals(Desired(site=SITE, serial=2, deployments=(deployment,)))


def test_a_replica_that_was_asked_to_restart_is_replaced_once_and_alone() -> None:
    old, other = (in_state("ready", goal) for goal in wanted(2))
    both = restarting(1, replicas=2)
    stop = Stop(id=old.goal.id, reason="a restart was asked for")
    assert plan(both, by_id(old, other), 0).commands == (stop,)
    assert plan(both, by_id(step(old, Event(kind="stop_asked"), 0), other), 0).commands == ()
    assert plan(both, by_id(in_state("stopped"), other), 0).commands == (Start(goal=both[0]),)
    fresh = replace(old, generation=2, state="ready")
    assert plan(both, by_id(fresh, other), 0).commands == (), "whoever started it since"


def test_a_restart_needs_no_patience_and_no_healthy_neighbour() -> None:
    (goal,) = restarting(1)
    assert plan([goal], by_id(in_state("failed")), 0).commands == (Start(goal=goal),)
    failed_later = replace(in_state("failed"), generation=2)
    assert plan([goal], by_id(failed_later), 0).commands == (), "it has its own next instant"
    old, waiting = in_state("ready", wanted(2)[0]), in_state("failed", wanted(2)[1])
    stops = [each for each in plan(restarting(1, replicas=2), by_id(old, waiting), 0).commands
             if isinstance(each, Stop)]
    assert [each.id for each in stops] == [old.goal.id]


def test_a_restart_with_another_recipe_stops_each_once() -> None:
    changed = restarting(1, replicas=2, slots=8)
    first_of, second = (in_state("ready", goal) for goal in wanted(2))
    commands = plan(changed, by_id(first_of, second), 0).commands
    assert commands == (Stop(id=first_of.goal.id, reason="a restart was asked for"),)


def test_what_is_stopped_at_once_is_not_drained() -> None:
    stopped = Deployment(
        site=SITE, model=TINY, replicas=0, engine=SPEC, context_tokens=2048, stopped_replicas=1,
        at_once=True,
    )
    desired = Desired(site=SITE, serial=2, deployments=(stopped,))
    assert goals(desired) == ()
    (stop,) = plan([], by_id(in_state("ready")), 0, at_once=ended_at_once(desired)).commands
    assert stop == Stop(id=wanted()[0].id, reason="no longer desired", at_once=True)
    (slowly,) = plan([], by_id(in_state("ready")), 0).commands
    assert isinstance(slowly, Stop)
    assert not slowly.at_once


def test_a_stop_that_becomes_urgent_is_said_once_more_and_not_again() -> None:
    draining, urgent = in_state("draining"), frozenset({TINY})
    assert plan([], by_id(draining), 0).commands == ()
    (stop,) = plan([], by_id(draining), 0, at_once=urgent).commands
    assert stop == Stop(id=draining.goal.id, reason="no longer desired", at_once=True)
    ending = step(draining, Event(kind="stop_asked", at_once=True), 0)
    assert ending.state == "draining"
    assert plan([], by_id(ending), 0, at_once=urgent).commands == ()
    stopped = step(ending, Event(kind="ended"), 0)
    assert not again(stopped, wanted()[0], 2, 0).at_once
