"""Reads what traffic a workload is from its files: requests, sessions, rates, lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Literal

from isochrone.adapters.packaged import DATA, bundled_trace
from isochrone.adapters.parquet.tables import read_parquet
from isochrone.core.errors import InvalidInput
from isochrone.replay.trace import parse_trace
from isochrone.twin.scenario import Workload
from isochrone.twin.workloads.coding_sessions import (
    coding_asks,
    fitting,
    mean_output_tokens,
    parse_sessions,
)
from isochrone.twin.workloads.fitted import (
    PROMPT_PARTS,
    Fitted,
    Lengths,
    Window,
    fitted_asks,
    means_within,
    parse_client_rates,
    parse_length_histogram,
    parse_length_percentiles,
    parse_rate_curve,
    pooled_lengths,
    together,
)
from isochrone.twin.workloads.placing import Source
from isochrone.twin.workloads.recorded import (
    MOST_COPIES,
    Recorded,
    RecordedRow,
    recorded_asks,
)
from isochrone.twin.workloads.steady import (
    drawn_asks,
    exponential_asks,
    exponential_mean,
    parse_lengths,
)
from isochrone.twin.workloads.token_week import parse_token_week
from isochrone.twin.world.fleet_plan import CONTEXT_TOKENS
from isochrone.wiring.twin_files import bytes_of, path_of, text_of, unpacked_of

SAMPLES = {
    "servegen": (
        "servegen_deepseek_r1_rate_sample.csv.gz", "servegen_deepseek_r1_lengths.csv"
    ),
    "azure-2024": ("azure_2024_conv_week_rate.csv", "azure_2024_conv_tokens.csv"),
    "coding": ("coding_sessions_sample.jsonl.gz",),
}
SAMPLE_TRACE = "mooncake-conv-sample"
PARQUET = b"PAR1"
LONGEST_S = 366 * 86_400.0  # of a recording: a longer one has a wrong time, or another unit
LEAST_SHARE = 0.01  # of the requests of a table that fit: they are drawn until one does

# What prefixes it has: none, those of conversations, or long ones of sessions.
Nature = Literal["calls", "conversations", "coding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A source of requests at any rate up to `most_rps`, and the mean tokens of one. `left_out`
    says of each row that is no request why."""

    source: Source
    prompt_tokens: float
    output_tokens: float
    nature: Nature = "calls"
    left_out: tuple[str, ...] = ()
    most_rps: float = inf


def traffic_of(workload: Workload) -> Traffic:
    """Without what does not fit the model's context: a client who knows it would not send that.
    Kept for the next fleet that is asked the same. Raises InvalidInput with the problems of the
    first file that cannot be used."""
    return _traffic(replace(
        workload, name="", load=None, rate_rps=None, slo_ms=0.0, slo_token_ms=0.0, reserved=0.0,
        batch=0.0,
    ))


@lru_cache(maxsize=2)
def _traffic(workload: Workload) -> Traffic:
    files = tuple(path_of(each) for each in workload.files)
    if workload.kind == "exponential":
        return _exponential(round(workload.prompt_tokens), workload.output_tokens)
    if workload.kind == "recorded":
        return _recorded(files[0] if files else bundled_trace(SAMPLE_TRACE), workload.part)
    if workload.kind == "lengths":
        return _drawn(files[0])
    files = files or tuple(DATA / "workloads" / each for each in SAMPLES[workload.kind])
    if workload.kind == "coding":
        return _coding(files[0], workload.part)
    return _fitted(workload.kind, files, workload.part)


def _exponential(prompt: int, output: float) -> Traffic:
    if prompt + output > CONTEXT_TOKENS:
        raise InvalidInput([
            f"prompt_tokens {prompt} and output_tokens {output:g} are too many; expected at most "
            f"{CONTEXT_TOKENS} together"
        ])
    return Traffic(
        source=lambda rate, seed: exponential_asks(prompt, output, CONTEXT_TOKENS, rate, seed),
        prompt_tokens=prompt, output_tokens=exponential_mean(output, CONTEXT_TOKENS - prompt),
    )


def _drawn(path: Path) -> Traffic:
    lengths = [
        each for each in parse_lengths(text_of(path), str(path)) if sum(each) <= CONTEXT_TOKENS
    ]
    if not lengths:
        raise InvalidInput([f"{path}: has no request of at most {CONTEXT_TOKENS} tokens"])
    return Traffic(
        source=lambda rate, seed: drawn_asks(lengths, rate, seed),
        prompt_tokens=sum(each[0] for each in lengths) / len(lengths),
        output_tokens=sum(each[1] for each in lengths) / len(lengths),
    )


def _coding(path: Path, part: tuple[float, float]) -> Traffic:
    every = parse_sessions(text_of(path), str(path))
    sessions = fitting(
        every[round(part[0] * len(every)) : round(part[1] * len(every))], CONTEXT_TOKENS
    )
    if not sessions:
        raise InvalidInput([
            f"{path}: has no session that fits in the part from {part[0]:g} to {part[1]:g}"
        ])
    prompts = [turn.prompt_tokens for each in sessions for turn in each.turns]
    return Traffic(
        source=lambda rate, seed: coding_asks(sessions, rate, seed), nature="coding",
        prompt_tokens=sum(prompts) / len(prompts), output_tokens=mean_output_tokens(sessions),
    )


def _fitted(kind: str, files: Sequence[Path], part: tuple[float, float]) -> Traffic:
    rates, source = text_of(files[0]), str(files[0])
    clients: tuple[tuple[Window, ...], ...]
    if kind == "servegen":
        clients, period_s = parse_client_rates(rates, source)
        names = "input_tokens", "output_tokens"
    else:
        parse = parse_token_week if "tokens_per_s_plotted" in rates[:400] else parse_rate_curve
        windows, period_s = parse(rates, source)
        clients = (windows,) if windows else ()
        names = "context_tokens", "generated_tokens"
    tokens = _lengths(files[1])
    prompt, output = (
        tokens.get(name) or tokens.get(other) for name, other in
        zip(names, ("input_tokens", "output_tokens"), strict=True)
    )
    if prompt is None and PROMPT_PARTS[0] in tokens:
        prompt = together([tokens[each] for each in PROMPT_PARTS if each in tokens])
    if prompt is None or output is None:
        raise InvalidInput([f"{files[1]}: has no lengths of prompts and of answers"])
    if prompt.mean + output.mean > CONTEXT_TOKENS:
        raise InvalidInput([
            f"{files[1]}: has requests of {prompt.mean + output.mean:.3g} tokens in the mean; "
            f"expected at most {CONTEXT_TOKENS}"
        ])
    share, prompt_tokens, output_tokens = means_within(prompt, output, CONTEXT_TOKENS)
    if share < LEAST_SHARE:
        raise InvalidInput([
            f"{files[1]}: has hardly any request of at most {CONTEXT_TOKENS} tokens"
        ])
    first_s = min((windows[0].start_s for windows in clients), default=0.0)
    _need_span(first_s, period_s, source)
    clients, period_s = _part(clients, first_s, period_s, part)
    if not clients:
        raise InvalidInput([f"{source}: has no rate in the part from {part[0]:g} to {part[1]:g}"])
    fit = Fitted(clients=clients, period_s=period_s, prompt=prompt, output=output)
    return Traffic(
        source=lambda rate, seed: fitted_asks(fit, rate, seed), prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )


def _part(
    clients: tuple[tuple[Window, ...], ...], first_s: float, last_s: float,
    part: tuple[float, float],
) -> tuple[tuple[tuple[Window, ...], ...], float]:
    """The windows that lie in it, with the clock set to its begin. A file that is a later part of a
    recording may well keep the clock of the whole, so what counts is from its first window."""
    begin_s, end_s = (first_s + each * (last_s - first_s) for each in part)
    kept = tuple(
        tuple(
            replace(each, start_s=each.start_s - begin_s, end_s=each.end_s - begin_s)
            for each in windows if each.start_s >= begin_s - 1e-6 and each.end_s <= end_s + 1e-6
        )
        for windows in clients
    )
    return tuple(each for each in kept if each), end_s - begin_s


def _need_span(first_s: float, last_s: float, source: str) -> None:
    if last_s - first_s > LONGEST_S:
        raise InvalidInput([
            f"{source}: its times are from {first_s:g} to {last_s:g} s; expected at most "
            f"{LONGEST_S / 86_400:g} days of them"
        ])


def _lengths(path: Path) -> Mapping[str, Lengths]:
    """By field, of any of the tables of lengths: histogram, percentiles, or clients' percentiles
    (Parquet)."""
    if bytes_of(path).startswith(PARQUET):
        return pooled_lengths(read_parquet(path), str(path))
    text = text_of(path)
    parse = parse_length_histogram if "bin_lo" in text[:400] else parse_length_percentiles
    return parse(text, str(path))


def _recorded(path: Path, part: tuple[float, float]) -> Traffic:
    trace = parse_trace(unpacked_of(path), str(path))
    last_s = trace.rows[-1].at_s
    _need_span(0.0, last_s, str(path))
    rows = [
        row for row in trace.rows if part[0] * last_s <= row.at_s <= part[1] * last_s
        and row.input_tokens + row.output_tokens <= CONTEXT_TOKENS
    ]
    if len(rows) < 2 or rows[-1].at_s <= rows[0].at_s:
        raise InvalidInput([f"{path}: has no two requests at different times, so no rate"])
    recorded = Recorded(block_tokens=trace.block_tokens, rows=tuple(
        RecordedRow(
            at_s=row.at_s, prompt_tokens=row.input_tokens, output_tokens=row.output_tokens,
            blocks=row.blocks,
        )
        for row in rows
    ))
    return Traffic(
        source=lambda rate, seed: recorded_asks(recorded, rate, seed),
        nature="conversations" if trace.block_tokens else "calls", left_out=trace.bad,
        prompt_tokens=sum(row.input_tokens for row in rows) / len(rows),
        output_tokens=recorded.mean_output_tokens, most_rps=MOST_COPIES * recorded.rate_rps,
    )
