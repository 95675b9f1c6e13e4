"""Every baseline by name: its parameters, which of them are tried, and the router they make.

The defaults are where the search for the best parameters begins; those that it found are data
(`data/baselines.json`). See docs/baselines.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from isochrone.twin.baselines.replica_picks import (
    LeastOutstandingReplica,
    RoundRobinReplica,
    StickyReplica,
    WeightedReplica,
)
from isochrone.twin.baselines.site_picks import (
    HashedSites,
    LeastOutstandingSites,
    NearestSite,
    RoundRobinSites,
    SpillingSites,
    WeightedSites,
)
from isochrone.twin.baselines.skywalker import SkyWalkerRouter
from isochrone.twin.baselines.two_level import TwoLevelRouter
from isochrone.twin.fast.policy import Router

ALL = 1_000_000  # sites: as many as there are
P = TypeVar("P")

Name = Literal[
    "nearest", "round_robin", "least_outstanding", "consistent_hash", "nearest_then_spill",
    "skywalker", "gorgo", "llm_d", "campus",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """No parameters: the nearest healthy site, there the replica with the fewest requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    nearest: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastOutstanding:
    nearest: int = 4
    draws: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentHash:
    nearest: int = 4
    bound: float = 1.25
    key_blocks: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestThenSpill:
    """`waiting` requests and `prompt_tokens` a replica; see `SpillingSites`."""

    waiting: float = 1.0
    prompt_tokens: float = 8_192.0
    extra_ms: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyWalker:
    probe_s: float = 0.1
    pending: int = 1
    match_share: float = 0.5
    unread_tokens: float = 2_048.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gorgo:
    """The published code has `ms_per_token` and `running_weight`; a weight of the way is added,
    which its text has. `regional` balancers are its first form, `central` its proxy."""

    ms_per_token: float = 0.1
    running_weight: float = 0.3
    rtt_weight: float = 1.0
    typical_tokens: float = 2_000.0
    balancers: Literal["regional", "central"] = "regional"
    central_site: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmD:
    """`tolerated_s` of reading at a warm replica; 14 s in the published default."""

    tolerated_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Baseline(Generic[P]):
    """`space` are the parameters to try, `refine` whether an evolution strategy goes on from the
    best of them; `campus`: on the fleet of `campus_of`."""

    name: Name
    default: P
    space: tuple[P, ...]
    make: Callable[[P], Router]
    refine: bool = False
    campus: bool = False


def _space(kind: Callable[..., P], **values: Sequence[object]) -> tuple[P, ...]:
    return tuple(
        kind(**dict(zip(values, each, strict=True))) for each in product(*values.values())
    )


def _skywalker(each: SkyWalker) -> Router:
    return SkyWalkerRouter(
        probe_s=each.probe_s, pending=each.pending, match_share=each.match_share,
        unread_tokens=each.unread_tokens,
    )


def _gorgo(each: Gorgo) -> Router:
    return TwoLevelRouter(
        "gorgo",
        WeightedSites(
            ms_per_token=each.ms_per_token, running_weight=each.running_weight,
            rtt_weight=each.rtt_weight, typical_tokens=each.typical_tokens,
        ),
        WeightedReplica(running_weight=each.running_weight),
        balancers=each.balancers, central_site=each.central_site,
    )


NEAREST = Baseline(
    "nearest", Nearest(), (Nearest(),),
    lambda each: TwoLevelRouter("nearest", NearestSite(), LeastOutstandingReplica()),
)
ROUND_ROBIN = Baseline(
    "round_robin", RoundRobin(), _space(RoundRobin, nearest=(1, 2, 4, 8, 16, ALL)),
    lambda each: TwoLevelRouter(
        "round_robin", RoundRobinSites(nearest=each.nearest), RoundRobinReplica()
    ),
)
LEAST_OUTSTANDING = Baseline(
    "least_outstanding", LeastOutstanding(),
    _space(LeastOutstanding, nearest=(2, 4, 8, 16, ALL), draws=(0, 2, 3)),
    lambda each: TwoLevelRouter(
        "least_outstanding", LeastOutstandingSites(nearest=each.nearest, draws=each.draws),
        LeastOutstandingReplica(),
    ),
)
CONSISTENT_HASH = Baseline(
    "consistent_hash", ConsistentHash(),
    _space(
        ConsistentHash, nearest=(1, 2, 4, 8, ALL), bound=(1.1, 1.25, 1.5, 2.0), key_blocks=(2, 4, 8)
    ),
    lambda each: TwoLevelRouter(
        "consistent_hash",
        HashedSites(nearest=each.nearest, bound=each.bound, key_blocks=each.key_blocks),
        StickyReplica(tolerated_s=2.0),
    ),
)
NEAREST_THEN_SPILL = Baseline(
    "nearest_then_spill", NearestThenSpill(),
    _space(
        NearestThenSpill, waiting=(0.0, 1.0, 4.0), prompt_tokens=(1_024.0, 4_096.0, 16_384.0),
        extra_ms=(30.0, 100.0, 300.0),
    ),
    lambda each: TwoLevelRouter(
        "nearest_then_spill",
        SpillingSites(
            waiting=each.waiting, prompt_tokens=each.prompt_tokens, extra_ms=each.extra_ms
        ),
        LeastOutstandingReplica(),
    ),
)
SKYWALKER = Baseline(
    "skywalker", SkyWalker(),
    _space(
        SkyWalker, pending=(1, 2, 4), match_share=(0.2, 0.5, 0.8),
        unread_tokens=(512.0, 2_048.0, 8_192.0),
    ),
    _skywalker,
)
GORGO = Baseline(
    "gorgo", Gorgo(),
    _space(
        Gorgo, ms_per_token=(0.03, 0.1, 0.3), running_weight=(0.05, 0.2, 0.6),
        rtt_weight=(0.7, 1.0, 1.5), balancers=("regional", "central"),
    ),
    _gorgo, refine=True,
)
LLM_D = Baseline(
    "llm_d", LlmD(), _space(LlmD, tolerated_s=(0.25, 0.5, 1.0, 2.0, 4.0, 14.0)),
    lambda each: TwoLevelRouter(
        "llm_d", NearestSite(), StickyReplica(tolerated_s=each.tolerated_s)
    ),
)
CAMPUS = Baseline(
    "campus", LlmD(), _space(LlmD, tolerated_s=(0.25, 0.5, 1.0, 2.0, 4.0, 14.0)),
    lambda each: TwoLevelRouter(
        "campus", NearestSite(), StickyReplica(tolerated_s=each.tolerated_s)
    ),
    campus=True,
)


EVERY: tuple[Baseline[Any], ...] = (
    NEAREST, ROUND_ROBIN, LEAST_OUTSTANDING, CONSISTENT_HASH, NEAREST_THEN_SPILL, SKYWALKER, GORGO,
    LLM_D, CAMPUS,
)
NAMES: tuple[str, ...] = tuple(each.name for each in EVERY)


def routers(
    parameters: Mapping[str, Mapping[str, int | float | str]] = MappingProxyType({}),
) -> Mapping[str, Router]:
    """A fresh router of every baseline, with these parameters where there are some."""
    return {
        each.name: each.make(replace(each.default, **parameters.get(each.name, {})))
        for each in EVERY
    }
