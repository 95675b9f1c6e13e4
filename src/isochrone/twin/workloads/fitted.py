"""Requests from published fits: rates that change over the week, spread of lengths, no prompts.

Arrivals of a client are a renewal process in its own time: the steps of its expected count are
Gamma or Weibull distributed with mean 1 and the spread of the window. So a client's rate follows
its windows exactly in the mean, with its bursts. After the last window all begins anew.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import accumulate, pairwise
from math import exp, gamma, inf, isfinite, log
from typing import Literal

from isochrone.core.errors import InvalidInput
from isochrone.core.rng import Random, stream
from isochrone.twin.fast.arrivals import NO_SESSION
from isochrone.twin.table import table_of
from isochrone.twin.workloads.asks import Ask, mixed
from isochrone.twin.world.fleet_plan import CONTEXT_TOKENS

Family = Literal["Gamma", "Weibull"]
MOST_TOLD = 20
MOST_S = 1e10          # of a clock: years since 1970 are below
MOST_RPS = 1e9
LEAST_RPS = 1e-9       # once in thirty years
LEAST_SPREAD = 0.01
MANY_TURNS = 1000      # of a period without a request, that are passed over at once
STEPS = 1000           # of quantiles that a mean is taken over
_PERCENTILES = ("p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99")
# Of a prompt that is told in parts, as ServeGen's multimodal clients have it.
PROMPT_PARTS = ("text_tokens", "image_tokens", "audio_tokens", "video_tokens")
_FIELDS = ("input_tokens", *PROMPT_PARTS, "output_tokens")
_PERCENTILE_WEIGHTS = (0.03, 0.045, 0.1, 0.2, 0.25, 0.2, 0.1, 0.045, 0.03)  # what lies nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """From `start_s` to `end_s` a client sends `rate_rps` in the mean; `spread`: the coefficient of
    variation (Gamma) or the shape (Weibull) of the times between its requests."""

    start_s: float
    end_s: float
    rate_rps: float
    family: Family
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens by quantile: ascending `shares` from 0 to 1, and the tokens at them; between two of
    them the logarithm is linear."""

    shares: tuple[float, ...]
    tokens: tuple[float, ...]

    def at(self, share: float) -> int:
        place = min(max(bisect_right(self.shares, share), 1), len(self.shares) - 1)
        low, high = self.shares[place - 1], self.shares[place]
        part = (share - low) / (high - low) if high > low else 0.0
        first, last = log(self.tokens[place - 1]), log(self.tokens[place])
        return max(round(exp(first + part * (last - first))), 1)

    @property
    def mean(self) -> float:
        return sum(self.steps()) / STEPS

    def steps(self) -> list[int]:
        """Ascending, each as likely as the others."""
        return [self.at((step + 0.5) / STEPS) for step in range(STEPS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """`clients` each have windows by `start_s`; all repeat after `period_s`. Prompt and answer are
    drawn independently of each other, which the real ones are not, and again where they are more
    than `most_tokens` together."""

    clients: tuple[tuple[Window, ...], ...]
    period_s: float
    prompt: Lengths
    output: Lengths
    spread_over: int = 8  # places that one client's requests come from
    most_tokens: int = CONTEXT_TOKENS

    @property
    def rate_rps(self) -> float:
        expected = sum(
            (each.end_s - each.start_s) * each.rate_rps for client in self.clients
            for each in client
        )
        return expected / self.period_s


def fitted_asks(fit: Fitted, rate_rps: float, seed: int) -> Iterator[Ask]:
    """For ever; the rates of all clients are multiplied alike, so that their mean is `rate_rps`."""
    factor = rate_rps / fit.rate_rps
    rng = stream(seed, "workload.fitted")
    due = []
    for number, windows in enumerate(fit.clients):
        times = _times(windows, fit.period_s, factor, stream(seed, f"workload.fitted.{number}"))
        due.append((next(times), number, times))
    heapify(due)
    while True:
        at_s, number, times = due[0]
        heapreplace(due, (next(times), number, times))
        # One that stands for everybody has no place of its own.
        place = rng.getrandbits(62) if len(fit.clients) == 1 else rng.randrange(fit.spread_over)
        prompt, output = fit.prompt.at(rng.random()), fit.output.at(rng.random())
        while prompt + output > fit.most_tokens:
            prompt, output = fit.prompt.at(rng.random()), fit.output.at(rng.random())
        yield Ask(at_s, prompt, output, mixed(number, place), NO_SESSION, ())


def means_within(prompt: Lengths, output: Lengths, most_tokens: int) -> tuple[float, float, float]:
    """Which share of the requests has at most so many tokens, and the means of prompt and answer of
    those; 0 for all where there are none."""
    prompts, outputs = prompt.steps(), output.steps()
    sums = [0, *accumulate(outputs)]
    fitting = [bisect_right(outputs, most_tokens - each) for each in prompts]
    count = sum(fitting)
    if not count:
        return 0.0, 0.0, 0.0
    return (
        count / STEPS**2,
        sum(each * there for each, there in zip(prompts, fitting, strict=True)) / count,
        sum(sums[there] for there in fitting) / count,
    )


def _times(
    windows: Sequence[Window], period_s: float, factor: float, rng: Random
) -> Iterator[float]:
    left = _rest_of_step(windows[0], rng)
    turn = 0
    of_turn = sum((each.end_s - each.start_s) * each.rate_rps for each in windows) * factor
    while True:
        if left > MANY_TURNS * of_turn:
            turn += int(left / of_turn)
            left %= of_turn
        for window in windows:
            rate = window.rate_rps * factor
            at_s = window.start_s + turn * period_s
            end_s = window.end_s + turn * period_s
            while at_s + left / rate <= end_s:
                at_s += left / rate
                yield at_s
                left = _step(window, rng)
            left -= (end_s - at_s) * rate
        turn += 1


def _step(window: Window, rng: Random) -> float:
    """Of mean 1."""
    if window.family == "Gamma":
        shape = 1.0 / window.spread**2
        return rng.gammavariate(shape, 1.0 / shape)
    return rng.weibullvariate(1.0 / gamma(1.0 + 1.0 / window.spread), window.spread)


def _rest_of_step(window: Window, rng: Random) -> float:
    """What is left, at any instant, of the step that it falls into: into a long one more often. Or
    every client would begin with a burst, the more of one the more its steps differ."""
    if window.family == "Gamma":
        shape = 1.0 / window.spread**2
        whole = rng.gammavariate(shape + 1.0, 1.0 / shape)
    else:
        power = 1.0 / window.spread
        whole = rng.gammavariate(1.0 + power, 1.0) ** power / gamma(1.0 + power)
    return rng.random() * whole


def parse_client_rates(
    text: str, source: str, window_s: float = 600.0
) -> tuple[tuple[tuple[Window, ...], ...], float]:
    """ServeGen's rates: CSV with client, window_s (its start), rate_rps, cv, dist, p1. The clients
    and the period. Raises InvalidInput with all problems."""
    clients: dict[str, list[Window]] = {}
    problems: list[str] = []
    for line, row in _rows(text, source, ("client", "window_s", "rate_rps", "cv", "dist", "p1")):
        try:
            start_s, rate = float(row["window_s"]), float(row["rate_rps"])
            family: Family = "Weibull" if row["dist"] == "Weibull" else "Gamma"
            spread = float(row["p1"] if family == "Weibull" else row["cv"])
        except ValueError as error:
            problems.append(f"{source}, line {line}: {error}")
            continue
        if row["dist"] not in ("Gamma", "Weibull") or not (
            abs(start_s) <= MOST_S and LEAST_RPS <= rate <= MOST_RPS
            and LEAST_SPREAD <= spread <= 1.0 / LEAST_SPREAD
        ):
            problems.append(
                f"{source}, line {line}: expected a time in s, dist Gamma or Weibull, rate_rps "
                f"from {LEAST_RPS:g} on, and cv (Gamma) or p1 (Weibull) from {LEAST_SPREAD:g} on"
            )
            continue
        clients.setdefault(row["client"], []).append(Window(
            start_s=start_s, end_s=start_s + window_s, rate_rps=rate, family=family, spread=spread,
        ))
    for client, windows in clients.items():
        windows.sort(key=lambda window: window.start_s)
        problems += [
            f"{source}: client {client} has two windows at {after.start_s:g} s"
            for before, after in pairwise(windows) if after.start_s < before.end_s
        ]
    _raise_if(problems, clients, source)
    ordered = tuple(map(tuple, clients.values()))
    return ordered, max(each[-1].end_s for each in ordered)


def parse_length_histogram(text: str, source: str) -> Mapping[str, Lengths]:
    """ServeGen's pooled histograms: CSV with field, bin_lo (ascending, logarithmic), requests; all
    days together. By field."""
    bins: dict[str, dict[float, float]] = {}
    problems: list[str] = []
    for line, row in _rows(text, source, ("field", "bin_lo", "requests")):
        try:
            low, count = float(row["bin_lo"]), float(row["requests"])
        except ValueError as error:
            problems.append(f"{source}, line {line}: {error}")
            continue
        if not (0.0 <= low < inf and 0.0 <= count < inf):
            problems.append(f"{source}, line {line}: expected bin_lo and requests from 0 on")
            continue
        of_field = bins.setdefault(row["field"], {})
        of_field[max(low, 1.0)] = of_field.get(max(low, 1.0), 0.0) + count
    _raise_if(problems, bins, source)
    return {
        field: _lengths_of_bins(each) for field, each in bins.items() if sum(each.values()) > 0.0
    }


def pooled_lengths(
    rows: Sequence[Mapping[str, str | int | float | bool | None]], source: str
) -> Mapping[str, Lengths]:
    """ServeGen's percentiles by client and window, pooled by their `requests`. By field, as
    `input_tokens` of input_tokens_p01 to _p99. Raises InvalidInput."""
    parts: dict[str, list[tuple[float, float]]] = {}  # tokens, weight
    for row in rows:
        weight = row.get("requests")
        for field in _FIELDS:
            values = [row.get(f"{field}_{each}") for each in _PERCENTILES]
            numbers = [float(each) for each in values if isinstance(each, int | float)]
            if (
                isinstance(weight, int | float) and 0.0 < weight < inf
                and len(numbers) == len(values) and all(map(isfinite, numbers))
            ):
                parts.setdefault(field, []).extend(
                    (max(number, 1.0), weight * share)
                    for number, share in zip(numbers, _PERCENTILE_WEIGHTS, strict=True)
                )
    _raise_if((), parts, source)
    found: dict[str, Lengths] = {}
    for field, weighted in parts.items():
        shares, tokens, below = [0.0], [min(weighted)[0]], 0.0
        total = sum(weight for _, weight in weighted)
        for number, weight in sorted(weighted):
            below += weight
            shares.append(below / total)
            tokens.append(number)
        found[field] = Lengths(shares=tuple(shares), tokens=tuple(tokens))
    return found


def parse_length_percentiles(text: str, source: str) -> Mapping[str, Lengths]:
    """Azure's percentiles: CSV with field, percentile, tokens. By field."""
    points: dict[str, list[tuple[float, float]]] = {}
    problems: list[str] = []
    for line, row in _rows(text, source, ("field", "percentile", "tokens")):
        try:
            share, tokens = float(row["percentile"]) / 100.0, float(row["tokens"])
        except ValueError as error:
            problems.append(f"{source}, line {line}: {error}")
            continue
        if not (0.0 <= share <= 1.0 and 0.0 <= tokens < inf):
            problems.append(
                f"{source}, line {line}: expected a percentile from 0 to 100, and tokens from 0 on"
            )
            continue
        points.setdefault(row["field"], []).append((share, max(tokens, 1.0)))
    for each in points.values():
        each.sort()
    problems += [
        f"{source}: {field} has {high:g} tokens at percentile {after * 100:g}, less than at "
        f"{before * 100:g}; expected those of one trace"
        for field, each in points.items()
        for (before, low), (after, high) in pairwise(each) if high < low
    ]
    _raise_if(problems, points, source)
    found = {}
    for field, ordered in points.items():
        whole = [(0.0, ordered[0][1]), *ordered, (1.0, ordered[-1][1])]
        found[field] = Lengths(
            shares=tuple(share for share, _ in whole), tokens=tuple(tokens for _, tokens in whole)
        )
    return found


def parse_rate_curve(text: str, source: str) -> tuple[tuple[Window, ...], float]:
    """Azure's week: CSV with t_s and inv_per_min; arrivals by pure chance at that rate. Windows and
    period."""
    points: list[tuple[float, float]] = []
    problems: list[str] = []
    for line, row in _rows(text, source, ("t_s", "inv_per_min")):
        try:
            at_s, rate = float(row["t_s"]), float(row["inv_per_min"]) / 60.0
        except ValueError as error:
            problems.append(f"{source}, line {line}: {error}")
            continue
        if not (abs(at_s) <= MOST_S and 0.0 <= rate <= MOST_RPS):
            problems.append(f"{source}, line {line}: expected a time, and a rate from 0 on")
            continue
        points.append((at_s, rate))
    _raise_if(problems, points, source)
    points.sort()
    step_s = (points[-1][0] - points[0][0]) / max(len(points) - 1, 1) or 60.0
    ends = [each[0] for each in points[1:]] + [points[-1][0] + step_s]
    windows = tuple(
        Window(start_s=at_s, end_s=end_s, rate_rps=rate, family="Gamma", spread=1.0)
        for (at_s, rate), end_s in zip(points, ends, strict=True) if rate > 0 and end_s > at_s
    )
    return windows, ends[-1]


def together(parts: Sequence[Lengths]) -> Lengths:
    """The sum of parts, each at the same quantile, which nobody measured; the mean is that of the
    sum. Parts of which nobody has any are left out."""
    there = [each for each in parts if each.tokens[-1] > 2.0] or list(parts)
    shares = sorted({share for each in there for share in each.shares})
    return Lengths(
        shares=tuple(shares),
        tokens=tuple(float(sum(each.at(share) for each in there)) for share in shares),
    )


def _lengths_of_bins(bins: Mapping[float, float]) -> Lengths:
    lows = sorted(bins)
    total = sum(bins.values())
    shares, tokens, below = [0.0], [lows[0]], 0.0
    for place, low in enumerate(lows):
        below += bins[low]
        step = low / lows[place - 1] if place else lows[1] / low if len(lows) > 1 else 2.0
        shares.append(below / total)
        tokens.append(lows[place + 1] if place + 1 < len(lows) else low * step)
    return Lengths(shares=tuple(shares), tokens=tuple(tokens))


def _rows(
    text: str, source: str, needed: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    reader = table_of(text)
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise InvalidInput(
            [f"{source}: no column {name}; expected {', '.join(needed)}" for name in missing]
        )
    for row in reader:
        yield reader.line_num, {name: row[name] or "" for name in needed}


def _raise_if(problems: Sequence[str], found: Sequence[object] | Mapping[str, object], source: str
              ) -> None:
    if problems:
        raise InvalidInput(problems[:MOST_TOLD])
    if not found:
        raise InvalidInput([f"{source}: has no rows"])
