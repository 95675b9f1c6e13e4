"""Says how far the twin is from recorded runs of a mix, and how far those are from each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from isochrone.twin.calibration.play import Fitted, Times, live_times, quantile, twin_times
from isochrone.twin.calibration.recording import Recording

# What is asked of the twin, as a share of what was recorded.
TARGETS: Final[Mapping[str, float]] = {
    "ttft_ms_p50": 0.10, "ttft_ms_p99": 0.20, "output_tok_s": 0.10,
}
MEASURES: Final = (
    "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p99", "total_ms_p50", "total_ms_p99", "output_tok_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One measure of one mix: what each take had, what the twin says of each; `error` of the
    medians, twin / live - 1; `spread`: how far the takes are from their own median at most."""

    measure: str
    live: tuple[float, ...]
    twin: tuple[float, ...]

    @property
    def error(self) -> float:
        return median(self.twin) / median(self.live) - 1.0

    @property
    def spread(self) -> float:
        middle = median(self.live)
        return max(abs(each / middle - 1.0) for each in self.live)

    @property
    def is_met(self) -> bool:
        """Whether the error is within what is asked; so it is where nothing is."""
        return abs(self.error) <= TARGETS.get(self.measure, float("inf"))


def compare(takes: Sequence[Recording], fitted: Fitted) -> list[Compared]:
    """All measures of the takes of one mix. Raises ValueError where the twin refuses what the cloud
    answered: there is nothing to compare then."""
    live: list[dict[str, float]] = []
    twin: list[dict[str, float]] = []
    for take in takes:
        seen, said = live_times(take), twin_times(take, fitted)
        if len(seen) != len(said):
            raise ValueError(
                f"{take.mix} {take.take}: {len(seen)} were answered, {len(said)} by the twin"
            )
        live.append(figures(seen))
        twin.append(figures(said))
    return [
        Compared(
            measure=measure, live=tuple(each[measure] for each in live),
            twin=tuple(each[measure] for each in twin),
        )
        for measure in MEASURES
    ]


def figures(times: Sequence[Times]) -> dict[str, float]:
    """The measures of one run."""
    ttft_ms = [one.ttft_ms for one in times]
    total_ms = [one.total_ms for one in times]
    last_s = max(one.at_s + one.total_ms / 1000.0 for one in times)
    return {
        "ttft_ms_p50": quantile(ttft_ms, 0.5), "ttft_ms_p90": quantile(ttft_ms, 0.9),
        "ttft_ms_p99": quantile(ttft_ms, 0.99), "total_ms_p50": quantile(total_ms, 0.5),
        "total_ms_p99": quantile(total_ms, 0.99),
        "output_tok_s": sum(one.output_tokens for one in times) / (last_s - times[0].at_s),
    }
