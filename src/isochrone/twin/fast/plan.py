"""What is done to a fleet while it is simulated: for how long, what fails, and who scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

# What fails: one replica; a whole site; the way between an ingress (-1: all) and a site.
Failing = Literal["replica", "site", "link"]

SILENT_S = 1.0  # until an ingress notices that a site, or the way there, is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """`number` fails at `from_s` and is repaired at `until_s`; replicas then start anew. `ingress`
    is the other end of a link."""

    what: Failing
    number: int
    from_s: float
    until_s: float
    ingress: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Failures that come by chance: mean seconds between two of one replica or site, and until it
    is repaired (both exponential)."""

    what: Literal["replica", "site"]
    between_s: float
    repair_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One replica as an operator sees it. `wanted`: it runs, or is on its way to."""

    number: int
    site: int
    model: int
    wanted: bool
    ready: bool
    running: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`start` a replica (it fetches its weights first), or let it finish what it has and stop."""

    replica: int
    start: bool


class Operator(Protocol):
    """Who scales and places: asked every `every_s`."""

    every_s: float

    def operate(self, fleet: Sequence[Observed], now_s: float) -> Sequence[Order]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`seed`: of all chance. What begins before `warm_s` is simulated and not counted. `off`:
    replicas that do not run until an operator starts them. Once the last request has come, at most
    `drain_s` are simulated."""

    seed: int = 1
    warm_s: float = 0.0
    drain_s: float = 3600.0
    outages: tuple[Outage, ...] = ()
    chances: tuple[Chance, ...] = ()
    operator: Operator | None = None
    off: frozenset[int] = frozenset()
