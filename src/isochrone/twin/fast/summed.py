"""What came of a run, as it goes from the process that played it to the one that asked.

Apart from `summary`, which is compiled: a frozen data class that is compiled can be sent to another
process, but not be read there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSummary:
    """The same of one class of requests, or of one tenant's."""

    requests: int
    refused: int
    ttft_ms_mean: float | None
    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    slo_attainment: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run. Of requests that began after the warm-up: `requests` = `answered` + `refused` +
    `broken` + `open`. One that was not answered whole counts as never answered in the quantiles and
    for the objective; None for a quantile that lies among those. `ttft_ms_mean` is of those that
    were. Times are the client's at its ingress. `goodput_rps`: answered within the
    objective, by simulated second after the warm-up. `hit_rate`: prompt tokens that were cached.
    `cross_border_bytes`: sent between countries, both ways and to sites that sent a request on or
    back; of answers, whole ones. `trace` is the hash of every request's way and instants.
    `by_tenant`: of each, empty where there is one."""

    policy: str
    seed: int
    requests: int
    answered: int
    refused: int
    broken: int
    open: int
    retried: int
    ttft_ms_mean: float | None
    ttft_ms_p50: float | None
    ttft_ms_p90: float | None
    ttft_ms_p99: float | None
    total_ms_mean: float | None
    slo_attainment: float
    goodput_rps: float
    hit_rate: float
    cross_border_bytes: int
    gpus: int
    simulated_s: float
    busy_share: float
    output_tokens: int
    by_class: Mapping[int, ClassSummary] = field(default_factory=dict)
    by_site: tuple[int, ...] = ()
    by_tenant: tuple[ClassSummary, ...] = ()
    trace: str = ""
