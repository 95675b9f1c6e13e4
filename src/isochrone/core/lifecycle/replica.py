"""Decides what an agent does next with each replica: start, stop, retry or forget.

A replica's life is a table of transitions; `step` applies one event, `plan` compares what is
desired with what runs and says which commands close the gap. A replica whose recipe changed is
replaced one at a time for each model, so that a recipe that does not work stops at the first. One
that was asked to restart is replaced as it is, once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.model import Desired, EngineSpec, ReplicaState

EventKind = Literal["started", "ready", "failed", "stop_asked", "ended"]

TRANSITIONS: Mapping[tuple[ReplicaState, EventKind], ReplicaState] = {
    ("starting", "ready"): "ready",
    ("starting", "failed"): "failed",
    ("starting", "stop_asked"): "draining",
    ("ready", "failed"): "failed",
    ("ready", "stop_asked"): "draining",
    ("draining", "failed"): "stopped",
    ("draining", "ended"): "stopped",
    ("failed", "started"): "starting",
    ("failed", "stop_asked"): "stopped",
    ("stopped", "started"): "starting",
}

FIRST_RETRY_NS = 500_000_000
LONGEST_RETRY_NS = 30_000_000_000
STABLE_NS = 60_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One replica that should run, and how (its recipe). A process of a generation up to
    `restart_up_to` is not the one that is wanted; this is no part of the recipe, so that whatever
    was started since, for another reason, stays."""

    id: ReplicaId
    site: SiteName
    model: ModelName
    engine: EngineSpec
    context_tokens: int
    restart_up_to: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One replica as the agent knows it; `since_ns` and `retry_at_ns` are monotonic.

    `failures` counts failures in a row and decides the next wait; `restarts` only grows. `at_once`:
    it was asked to stop without finishing its work.
    """

    goal: Goal
    generation: int
    state: ReplicaState
    since_ns: int
    failures: int = 0
    restarts: int = 0
    retry_at_ns: int | None = None
    detail: str | None = None
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a replica; `detail` is the reason of a failure, `at_once` of
    `stop_asked`: without finishing its work."""

    kind: EventKind
    detail: str | None = None
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start this goal; there is no running process under its id."""

    goal: Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Take no new work, finish what runs, end the process; `at_once`: end it, whatever runs."""

    id: ReplicaId
    reason: str
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Nothing runs and nobody wants it: drop its record."""

    id: ReplicaId


Command = Start | Stop | Forget


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Commands for now, and the monotonic instant at which to plan again without any event."""

    commands: tuple[Command, ...]
    wake_ns: int | None


def replica_id(site: SiteName, model: ModelName, index: int) -> ReplicaId:
    """Readable and fit for headers and file names; differs whenever site, model or index do."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", model)
    if plain != model:
        plain += "-" + sha256(model.encode()).hexdigest()[:8]
    return ReplicaId(f"{site}/{plain}/{index}")


def goals(desired: Desired) -> tuple[Goal, ...]:
    """Every replica of the desired state, each with its own stable id."""
    return tuple(
        Goal(
            id=replica_id(desired.site, each.model, index),
            site=desired.site,
            model=each.model,
            engine=each.engine,
            context_tokens=each.context_tokens,
            restart_up_to=each.restart_up_to[index] if index < len(each.restart_up_to) else 0,
        )
        for each in desired.deployments
        for index in range(each.replicas)
    )


def ended_at_once(desired: Desired) -> frozenset[ModelName]:
    """Models of which a replica that is not wanted ends in the middle of its work."""
    return frozenset(each.model for each in desired.deployments if each.at_once)


def first(goal: Goal, generation: int, now_ns: int) -> Status:
    """The status of a replica that is being started for the first time."""
    return Status(goal=goal, generation=generation, state="starting", since_ns=now_ns)


def again(status: Status, goal: Goal, generation: int, now_ns: int) -> Status:
    """The status of a replica that is being started anew under the same id."""
    state = TRANSITIONS[status.state, "started"]
    same = goal == status.goal
    return replace(
        status,
        goal=goal,
        generation=generation,
        state=state,
        since_ns=now_ns,
        failures=status.failures if same else 0,
        restarts=status.restarts + 1 if status.state == "failed" else status.restarts,
        retry_at_ns=None,  # `detail` stays: until it is ready, the last failure explains it
        at_once=False,
    )


def step(status: Status, event: Event, now_ns: int) -> Status:
    """Apply one event; an event that means nothing in this state changes nothing."""
    if event.at_once:
        status = replace(status, at_once=True)
    state = TRANSITIONS.get((status.state, event.kind))
    if state is None or event.kind == "started":
        return status
    if state != "failed":
        return replace(
            status, state=state, since_ns=now_ns, retry_at_ns=None, detail=event.detail
        )
    stable = status.state == "ready" and now_ns - status.since_ns >= STABLE_NS
    failures = 1 if stable else status.failures + 1
    return replace(
        status,
        state=state,
        since_ns=now_ns,
        failures=failures,
        retry_at_ns=now_ns + retry_after_ns(failures),
        detail=event.detail,
    )


def retry_after_ns(failures: int) -> int:
    """Wait before the next start after this many failures in a row: doubles up to 30 s."""
    doublings = min(max(failures - 1, 0), 16)
    return min(LONGEST_RETRY_NS, FIRST_RETRY_NS << doublings)


def plan(
    wanted: Sequence[Goal], known: Mapping[ReplicaId, Status], now_ns: int, *,
    at_once: frozenset[ModelName] = frozenset(),
) -> Plan:
    """The commands that bring `known` towards `wanted`; replicas of `at_once` that are not wanted
    are not drained. Applying them twice does no harm."""
    by_id = {goal.id: goal for goal in wanted}
    commands: list[Command] = []
    wakes: list[int] = []
    for goal in wanted:
        status = known.get(goal.id)
        if status is None or status.state == "stopped":
            commands.append(Start(goal=goal))
        elif status.state == "failed":
            at_ns = status.retry_at_ns
            if (
                at_ns is None or at_ns <= now_ns or status.goal != goal
                or _asked_to_restart(goal, status)
            ):
                commands.append(Start(goal=goal))
            else:
                wakes.append(at_ns)
    commands += _restarts(wanted, known)
    commands += _replacements(wanted, known)
    for id_, status in known.items():
        if id_ in by_id:
            continue
        if status.state in ("failed", "stopped"):
            commands.append(Forget(id=id_))
        else:
            urgent = status.goal.model in at_once
            if status.state != "draining" or (urgent and not status.at_once):
                commands.append(Stop(id=id_, reason="no longer desired", at_once=urgent))
    return Plan(commands=tuple(commands), wake_ns=min(wakes, default=None))


def _asked_to_restart(goal: Goal, status: Status) -> bool:
    return status.generation <= goal.restart_up_to


def _restarts(wanted: Sequence[Goal], known: Mapping[ReplicaId, Status]) -> list[Command]:
    """Stops of replicas that somebody asked to restart; what is stopped and wanted is started."""
    return [
        Stop(id=goal.id, reason="a restart was asked for")
        for goal in wanted
        if (status := known.get(goal.id)) is not None and status.state in ("starting", "ready")
        and _asked_to_restart(goal, status)
    ]


def _replacements(wanted: Sequence[Goal], known: Mapping[ReplicaId, Status]) -> list[Command]:
    """Stops of replicas with an old recipe: those not yet ready, and one ready one a model while
    every other replica of that model is ready."""
    stops: list[Command] = []
    for model in dict.fromkeys(goal.model for goal in wanted):
        group = [(goal, known.get(goal.id)) for goal in wanted if goal.model == model]
        group = [
            (goal, None if status is not None and _asked_to_restart(goal, status) else status)
            for goal, status in group
        ]  # those that restart anyway are not stopped twice
        old = [s for goal, s in group if s is not None and s.goal != goal]
        starting = [s for s in old if s.state == "starting"]
        all_ready = all(s is not None and s.state == "ready" for _, s in group)
        ready = [s for s in old if s.state == "ready"][:1] if all_ready else []
        stops += [Stop(id=s.goal.id, reason="its recipe changed") for s in starting + ready]
    return stops
