"""One row of a comparison: what a policy did with a workload at a load."""

from dataclasses import dataclass

from isochrone.twin.fast.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Named as in the file that a comparison writes. `load`: of the fleet's no-cache token work.
    None is what does not exist: see `Summary` for times, and of a bound the bytes over borders.
    `gpus_for_slo`: the smallest fleet that keeps the objective, None where nobody looked for it."""

    workload: str
    load: float
    policy: str
    ttft_ms_mean: float | None
    ttft_ms_p50: float | None
    ttft_ms_p90: float | None
    ttft_ms_p99: float | None
    slo_attainment: float
    goodput_rps: float
    hit_rate: float
    cross_border_bytes: int | None
    gpus_for_slo: int | None


def row_of(
    summary: Summary, *, workload: str, load: float, gpus_for_slo: int | None = None
) -> Row:
    """The row of one run."""
    return Row(
        workload=workload, load=load, policy=summary.policy, ttft_ms_mean=summary.ttft_ms_mean,
        ttft_ms_p50=summary.ttft_ms_p50, ttft_ms_p90=summary.ttft_ms_p90,
        ttft_ms_p99=summary.ttft_ms_p99, slo_attainment=summary.slo_attainment,
        goodput_rps=summary.goodput_rps, hit_rate=summary.hit_rate,
        cross_border_bytes=summary.cross_border_bytes, gpus_for_slo=gpus_for_slo,
    )
