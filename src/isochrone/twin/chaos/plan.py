"""Draws what a run is like from its seed: the cloud, its clients, and which faults come when.

Swarm-style: every fault is on in some seeds and off in others, and a seed decides how hard each is
that is on. A swarm in which everything always happens hides what only shows when one thing does.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from isochrone.core.rng import Random, stream

# What happens at an instant, to one process or site, and mostly lasts for a while.
Kind = Literal[
    "gateway_kill",       # kill -9, then a new one
    "power_cut",          # of a gateway's host: what was not synced is lost
    "gateway_drain",      # stopped in good order, then a new one
    "control_kill",
    "second_control",     # another copy works beside the first for a while
    "agent_kill",         # its engines die with it
    "engine_crash",
    "engine_stands",      # takes connections and computes nothing
    "engine_slow",
    "engine_errors",      # answers the next requests with errors
    "engine_will_not_start",
    "bus_cut",            # one process does not reach NATS
    "bus_down",           # nobody does
    "bucket_lost",
    "stream_full",
    "replies_lost",       # the next calls of one process are done, and no reply comes
    "pulls_doubled",      # durable messages are delivered twice
    "partition",          # nothing passes between two sites
    "connections_reset",  # all of one process break
    "network_slow",
    "clock_jump",         # the wall clock of one process
    "disk_full",
    "disk_errors",        # appends or syncs of a gateway's disk fail
    "store_away",         # PostgreSQL refuses every call
    "store_reply_lost",   # calls are committed, and their caller is told that they failed
    "key_revoked",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

SPAN_S = 8.0
FAULT_ON = 0.22       # share of the kinds that are on in a run with faults
QUIET_EVERY = 16      # each so many-th seed has no faults, and is judged without excuses
MOST_OF_A_KIND = 3
LONGEST_S = (0.5, 4.0, 4.0, 12.0)  # how long one lasts at most: a seed has one of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`pick` and `hard` are between 0 and 1: which process it hits, and how hard."""

    at_s: float
    kind: Kind
    for_s: float
    pick: float
    hard: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """What becomes of plain messages: the share that is lost and doubled, and by how many seconds
    at most each is late, which also puts them out of order."""

    lost: float = 0.0
    doubled: float = 0.0
    late_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. `sites` of the packaged world take part, each with `replicas` engines of `slots`.
    `sold_tok_s` is what is sold at each site, 0: nothing. Of the clients, a share is `leaving`
    before the answer is there, and a share reads slowly."""

    seed: int
    sites: int
    replicas: int
    slots: int
    requests: int
    leaving: float
    reading_slowly: float
    sold_tok_s: int
    redeliver_s: float
    messages: Messages
    events: tuple[Event, ...]

    @property
    def has_faults(self) -> bool:
        return bool(self.events) or self.messages != Messages()

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of events that it has, in the order of `KINDS`."""
        there = {event.kind for event in self.events}
        return tuple(kind for kind in KINDS if kind in there)


def draw(seed: int) -> Plan:
    """The run of a seed; the same seed is always the same run."""
    rng = stream(seed, "plan")
    quiet = seed % QUIET_EVERY == 0
    return Plan(
        seed=seed,
        sites=rng.choice((2, 3, 3)),
        replicas=rng.choice((1, 1, 2)),
        slots=rng.choice((1, 2, 4)),
        requests=rng.randint(20, 50),
        leaving=rng.choice((0.0, 0.0, 0.2)),
        reading_slowly=rng.choice((0.0, 0.0, 0.2)),
        sold_tok_s=rng.choice((0, 0, 200)),
        redeliver_s=rng.uniform(0.5, 15.0),
        messages=Messages() if quiet else _messages(rng),
        events=() if quiet else _events(rng),
    )


def _messages(rng: Random) -> Messages:
    return Messages(
        lost=rng.choice((0.0, 0.0, rng.uniform(0.05, 0.6))),
        doubled=rng.choice((0.0, 0.0, rng.uniform(0.05, 0.5))),
        late_s=rng.choice((0.0, 0.0, rng.uniform(0.01, 3.0))),
    )


def _events(rng: Random) -> tuple[Event, ...]:
    found = []
    longest_s = rng.choice(LONGEST_S)
    for kind in KINDS:
        if rng.random() < FAULT_ON:
            found += [
                Event(
                    at_s=rng.uniform(0.0, SPAN_S), kind=kind, for_s=rng.uniform(0.02, longest_s),
                    pick=rng.random(), hard=rng.random(),
                )
                for _ in range(rng.randint(1, MOST_OF_A_KIND))
            ]
    return tuple(sorted(found, key=lambda event: event.at_s))
