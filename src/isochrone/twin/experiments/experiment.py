"""What an experiment is and what comes out of it.

The file is read by `wiring/twin_experiment.py`; docs/twin.md has every key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from isochrone.twin.bound.lower_bound import Least
from isochrone.twin.fast.rows import Row
from isochrone.twin.fast.summary import Summary

Cell = str | int | float | bool | None

# How what came out is drawn and judged: against load; fleet against campus, against load; case
# beside the first case; each second case beside the one before it; tenant beside tenant; against
# the Erlang table.
View = Literal["loads", "campus", "cases", "pairs", "tenants", "pooling"]

# Of one tenant nobody counts them.
OF_ALL_ALONE = ("goodput_rps", "hit_rate")
# What is varied and stands in every row anyhow.
IN_THE_ROW = ("workload.load", "workload.rate_rps", "workload.name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting of an experiment: the `case` and the values of what is `varied`, by key."""

    case: str
    varied: Mapping[str, Cell]

    @property
    def others(self) -> str:
        """What is varied and in no row, as `fleet.replicas=8`: empty where nothing is."""
        return ", ".join(
            f"{key}={told(value)}" for key, value in self.varied.items() if key not in IN_THE_ROW
        )

    @property
    def name(self) -> str:
        """The case and that: what tells points of one workload and load apart."""
        return ", ".join(each for each in (self.case, self.others) if each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one policy did at a point. `tenant` is empty for all requests together; of one tenant
    only times, requests, refusals and the share in time are known. `gpus`: that were there. Counts
    are None for the bound, which is no run; only with that, `light` is what the way alone takes at
    the speed of light."""

    point: Point
    row: Row
    tenant: str = ""
    requests: int | None = None
    refused: int | None = None
    broken: int | None = None
    gpus: int | None = None
    busy_share: float | None = None
    by_site: tuple[int, ...] = ()
    light: Least | None = None

    @property
    def subject(self) -> str:
        """What was played, whatever the load: the workload, the case, and what else is varied."""
        words = (self.row.workload, self.point.case, self.point.others)
        return ", ".join(dict.fromkeys(each for each in words if each))

    def record(self) -> dict[str, Cell]:
        """A flat row of a table; the same columns for all outcomes of one experiment."""
        unknown = dict.fromkeys(OF_ALL_ALONE) if self.tenant else {}
        return {
            "case": self.point.case, **self.point.varied, **asdict(self.row), **unknown,
            "tenant": self.tenant, "requests": self.requests, "refused": self.refused,
            "broken": self.broken, "gpus": self.gpus, "busy_share": self.busy_share,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A site with engines, for the map; `replicas` it has."""

    name: str
    country: str
    latitude_deg: float
    longitude_deg: float
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Where clients enter, for the map; `share` of the demand."""

    latitude_deg: float
    longitude_deg: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """An experiment that was played. `command` and `commit` reproduce it. `slo_share`: what part in
    time the number of GPUs is for."""

    name: str
    title: str
    question: str
    view: View
    command: str
    commit: str
    requests: int | None
    outcomes: Sequence[Outcome]
    places: Sequence[Place] = ()
    clients: Sequence[Client] = ()
    slo_share: float | None = None
    notes: Sequence[str] = field(default=())


def told(value: Cell) -> str:
    """One value of what is varied, as a scenario has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def outcomes_of(
    point: Point, row: Row, summary: Summary | None, tenants: Sequence[str],
    light: Least | None = None,
) -> list[Outcome]:
    """The one of all requests, and, where there are several tenants, one for each."""
    if summary is None:
        return [Outcome(point=point, row=row, light=light)]
    found = [Outcome(
        point=point, row=row, requests=summary.requests, refused=summary.refused,
        broken=summary.broken, gpus=summary.gpus, busy_share=summary.busy_share,
        by_site=summary.by_site,
    )]
    for name, own in zip(tenants, summary.by_tenant, strict=False):
        found.append(Outcome(
            point=point, tenant=name, requests=own.requests, refused=own.refused,
            gpus=summary.gpus,
            row=Row(
                workload=row.workload, load=row.load, policy=row.policy,
                ttft_ms_mean=own.ttft_ms_mean, ttft_ms_p50=own.ttft_ms_p50, ttft_ms_p90=None,
                ttft_ms_p99=own.ttft_ms_p99, slo_attainment=own.slo_attainment,
                goodput_rps=0.0, hit_rate=0.0, cross_border_bytes=None, gpus_for_slo=None,
            ),
        ))
    return found
