"""Sums up a replay: how many, which errors, how soon, how fast, and where it was served."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from isochrone.replay.client import Sent
from isochrone.replay.scale import Scaled
from isochrone.replay.trace import Trace

QUANTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Percentiles in milliseconds; None without any value."""

    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Requests that one site served; `name` is `all` for the whole, `-` for no site."""

    name: str
    requests: int
    finished: int
    ttft_ms: Spread
    total_ms: Spread
    output_tokens: int
    output_tok_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one replay, written as JSON. `errors` counts by code over all requests.

    `input_error` and `output_error` are the mean relative deviations of the lengths that came out
    from those that were wanted; `cached_share` is the part of prompt tokens that engines had.
    """

    run: str
    trace: str
    format: str
    model: str
    speed: float
    factor: float
    block_tokens: float
    wall_s: float
    bad_rows: tuple[str, ...]
    clipped_rows: tuple[int, ...]
    lifted_rows: tuple[int, ...]
    late_ms: Spread
    input_error: float | None
    output_error: float | None
    cached_share: float | None
    errors: dict[str, int]
    whole: Group
    by_site: tuple[Group, ...]
    requests: tuple[Sent, ...]

    def json(self) -> bytes:
        """Indented JSON of everything."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def read_report(data: bytes) -> Report:
    """Parse what `Report.json` made. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(data, type=Report)


def summarise(
    sent: Sequence[Sent], *, run: str, trace: Trace, scaled: Scaled, model: str, speed: float,
    wall_s: float,
) -> Report:
    """The report of all requests of one replay that took `wall_s`."""
    sites = sorted({each.site or "-" for each in sent})
    inputs = [(each.input_tokens, each.wanted_input_tokens) for each in sent]
    outputs = [(each.output_tokens, each.wanted_output_tokens) for each in sent if not each.error]
    prompt = sum(each.input_tokens or 0 for each in sent)
    cached = sum(each.cached_tokens or 0 for each in sent)
    return Report(
        run=run,
        trace=trace.source,
        format=trace.format,
        model=model,
        speed=speed,
        factor=scaled.factor,
        block_tokens=trace.block_tokens * scaled.factor,
        wall_s=wall_s,
        bad_rows=trace.bad,
        clipped_rows=scaled.clipped,
        lifted_rows=scaled.lifted,
        late_ms=_spread([each.late_ms for each in sent]),
        input_error=_deviation(inputs),
        output_error=_deviation(outputs),
        cached_share=cached / prompt if prompt else None,
        errors=dict(Counter(each.error for each in sent if each.error).most_common()),
        whole=_group("all", sent, wall_s),
        by_site=tuple(
            _group(site, [e for e in sent if (e.site or "-") == site], wall_s) for site in sites
        ),
        requests=tuple(sent),
    )


def _group(name: str, sent: Sequence[Sent], wall_s: float) -> Group:
    good = [each for each in sent if each.error is None]
    tokens = sum(each.output_tokens or 0 for each in sent)
    return Group(
        name=name,
        requests=len(sent),
        finished=len(good),
        ttft_ms=_spread([each.ttft_ms for each in good if each.ttft_ms is not None]),
        total_ms=_spread([each.total_ms for each in good]),
        output_tokens=tokens,
        output_tok_s=tokens / wall_s if wall_s > 0 else 0.0,
    )


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(p50=None, p90=None, p99=None)
    p50, p90, p99 = (float(value) for value in np.percentile(values, QUANTILES))
    return Spread(p50=p50, p90=p90, p99=p99)


def _deviation(pairs: Sequence[tuple[int | None, int]]) -> float | None:
    found = [abs(got - wanted) / wanted for got, wanted in pairs if got is not None and wanted > 0]
    return sum(found) / len(found) if found else None
