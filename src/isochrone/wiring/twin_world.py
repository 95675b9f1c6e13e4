"""Reads the files of a scenario and makes what the twin simulates: the fleet and its arrivals."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from isochrone.adapters.packaged import (
    DATA,
    bundled_trace,
    load_blocs,
    load_engine_rates,
    load_hardware,
    load_region_positions,
    load_spread,
)
from isochrone.core.errors import InvalidInput
from isochrone.replay.trace import parse_trace
from isochrone.twin.fast.arrivals import Arrivals
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.scenario import FleetOrder, Scenario, Workload
from isochrone.twin.workloads.coding_sessions import (
    coding_asks,
    mean_output_tokens,
    parse_sessions,
)
from isochrone.twin.workloads.fitted import (
    Fitted,
    fitted_asks,
    parse_client_rates,
    parse_length_histogram,
    parse_length_percentiles,
    parse_rate_curve,
)
from isochrone.twin.workloads.placing import Mix, Source, placed
from isochrone.twin.workloads.recorded import Recorded, RecordedRow, recorded_asks
from isochrone.twin.world.demand import demand_of
from isochrone.twin.world.fleet_plan import FleetPlan, capacity_rps, plan_fleet
from isochrone.twin.world.round_trips import Measured, measured_of, spread_of
from isochrone.twin.world.sites_table import PlacedSite, parse_sites

T = TypeVar("T")

SAMPLES = {
    "servegen": (
        "servegen_deepseek_r1_rate_sample.csv.gz", "servegen_deepseek_r1_lengths.csv"
    ),
    "azure-2024": ("azure_2024_conv_week_rate.csv", "azure_2024_conv_tokens.csv"),
    "coding": ("coding_sessions_sample.jsonl.gz",),
}
SAMPLE_TRACE = "mooncake-conv-sample"
RTT_COLUMNS = ("rtt_p95_ms", "rtt_avg_ms", "rtt_p50_ms", "rtt_ms")
MOST_TOLD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinWorld:
    """`arrivals()` begins anew with each call, always the same; `rate_rps` is their mean rate in a
    week, of the `capacity_rps` that load 1 is. `share[ingress]` is each ingress's part of the
    demand."""

    fleet: Fleet
    arrivals: Callable[[], Iterator[Arrivals]]
    rate_rps: float
    capacity_rps: float
    share: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    source: Source
    prompt_tokens: float
    output_tokens: float


def twin_world(scenario: Scenario) -> TwinWorld:
    """Raises InvalidInput with the problems of every file that cannot be used."""
    problems: list[str] = []
    sites = _read(lambda: _sites(scenario.sites), problems)
    measured = _read(lambda: _measured(scenario.rtt), problems)
    traffic = _read(lambda: _traffic(scenario.workload), problems)
    if sites is None or measured is None or traffic is None:
        raise InvalidInput(problems)
    by_distance = load_spread()
    fleet = plan_fleet(
        _plan(scenario.fleet), sites, scenario.tenants, measured,
        spread_of([each[0] for each in by_distance], [each[1] for each in by_distance]),
        load_blocs(), load_hardware(),
    )
    workload = scenario.workload
    most_rps = capacity_rps(fleet, traffic.prompt_tokens, traffic.output_tokens)
    rate_rps = workload.rate_rps or (workload.load or 1.0) * most_rps
    demand = demand_of(sites, start_s=scenario.start_hour * 3600.0, flat=not scenario.hours)
    mix = Mix(
        tenants=tuple(each.share for each in scenario.tenants),
        classes=(
            workload.reserved, max(1.0 - workload.reserved - workload.batch, 0.0), workload.batch
        ),
        slo_ms=workload.slo_ms, slo_token_ms=workload.slo_token_ms,
        expected_tokens=max(round(traffic.output_tokens), 1),
    )
    return TwinWorld(
        fleet=fleet, rate_rps=rate_rps, capacity_rps=most_rps, share=tuple(demand.share.tolist()),
        arrivals=lambda: placed(
            traffic.source, demand, mix, rate_rps=rate_rps, length_s=scenario.length_s,
            seed=scenario.seed,
        ),
    )


def _read(read: Callable[[], T], problems: list[str]) -> T | None:
    """None where it cannot be, and why added to `problems`."""
    try:
        return read()
    except InvalidInput as error:
        problems += error.problems
        return None


def _sites(file: str | None) -> tuple[PlacedSite, ...]:
    path = Path(file) if file else DATA / "sites" / "fleet_1100.csv"
    return parse_sites(_text(path), str(path))


def _plan(order: FleetOrder) -> FleetPlan:
    """With the row of the table that was measured, where there is one."""
    rows = [
        each for each in load_engine_rates()
        if (each.hardware, each.model, each.gpus) == (order.hardware, order.model, order.gpus)
    ]
    engine = min(rows, key=lambda each: (each.table == "derived", each.engine != "vllm"))
    return FleetPlan(
        engine=engine, engine_sites=order.engine_sites, replicas=order.replicas,
        sharing=order.sharing, apart_km=order.apart_km, slots=order.slots,
        chunk_tokens=order.chunk_tokens,
    )


def _measured(file: str | None) -> Measured:
    path = Path(file) if file else DATA / "network" / "azure_region_rtt.csv"
    positions = load_region_positions()
    pairs = parse_round_trips(_text(path), str(path))
    unknown = sorted({name for pair in pairs for name in pair if name not in positions})
    if len(unknown) == len({name for pair in pairs for name in pair}):
        raise InvalidInput(
            [f"{path}: none of its regions has a known position, as {', '.join(unknown[:3])}"]
        )
    return measured_of(pairs, positions)


def parse_round_trips(text: str, source: str) -> dict[tuple[str, str], float]:
    """CSV with src, dst and one of `RTT_COLUMNS`. Raises InvalidInput with all problems."""
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or ()
    column = next((each for each in RTT_COLUMNS if each in columns), None)
    if column is None or "src" not in columns or "dst" not in columns:
        raise InvalidInput([
            f"{source}: no table of round trips; expected the columns src, dst and one of "
            + ", ".join(RTT_COLUMNS)
        ])
    found: dict[tuple[str, str], float] = {}
    problems: list[str] = []
    for row in reader:
        try:
            rtt_ms = float(row[column])
        except (TypeError, ValueError):
            rtt_ms = -1.0
        if not 0.0 <= rtt_ms < 10_000.0:
            problems.append(
                f"{source}, line {reader.line_num}: {column} is {row[column]!r}; expected "
                "milliseconds from 0 to 10000"
            )
            continue
        found[row["src"], row["dst"]] = rtt_ms
    if problems:
        raise InvalidInput(problems[:MOST_TOLD])
    return found


def _traffic(workload: Workload) -> _Traffic:
    if workload.kind == "recorded":
        return _recorded(Path(workload.files[0]) if workload.files else bundled_trace(SAMPLE_TRACE))
    folder = DATA / "workloads"
    files = tuple(Path(each) for each in workload.files) or tuple(
        folder / each for each in SAMPLES[workload.kind]
    )
    if workload.kind == "coding":
        sessions = parse_sessions(_text(files[0]), str(files[0]))
        prompts = [turn.prompt_tokens for each in sessions for turn in each.turns]
        return _Traffic(
            source=lambda rate, seed: coding_asks(sessions, rate, seed),
            prompt_tokens=sum(prompts) / len(prompts), output_tokens=mean_output_tokens(sessions),
        )
    rates, lengths = (_text(each) for each in files)
    if workload.kind == "servegen":
        clients, period_s = parse_client_rates(rates, str(files[0]))
        tokens = parse_length_histogram(lengths, str(files[1]))
        prompt, output = tokens.get("input_tokens"), tokens.get("output_tokens")
    else:
        windows, period_s = parse_rate_curve(rates, str(files[0]))
        clients = (windows,)
        tokens = parse_length_percentiles(lengths, str(files[1]))
        prompt, output = tokens.get("context_tokens"), tokens.get("generated_tokens")
    if prompt is None or output is None:
        raise InvalidInput([f"{files[1]}: has no lengths of prompts and of answers"])
    fit = Fitted(clients=clients, period_s=period_s, prompt=prompt, output=output)
    return _Traffic(
        source=lambda rate, seed: fitted_asks(fit, rate, seed), prompt_tokens=prompt.mean,
        output_tokens=output.mean,
    )


def _recorded(path: Path) -> _Traffic:
    trace = parse_trace(_bytes(path), str(path))
    if len(trace.rows) < 2 or trace.rows[-1].at_s <= trace.rows[0].at_s:
        raise InvalidInput([f"{path}: has no two requests at different times, so no rate"])
    recorded = Recorded(block_tokens=trace.block_tokens, rows=tuple(
        RecordedRow(
            at_s=row.at_s, prompt_tokens=row.input_tokens, output_tokens=row.output_tokens,
            blocks=row.blocks,
        )
        for row in trace.rows
    ))
    return _Traffic(
        source=lambda rate, seed: recorded_asks(recorded, rate, seed),
        prompt_tokens=sum(row.input_tokens for row in trace.rows) / len(trace.rows),
        output_tokens=recorded.mean_output_tokens,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read ({error.strerror})"]) from error


def _text(path: Path) -> str:
    data = _bytes(path)
    try:
        plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        return plain.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidInput([f"{path}: is no text ({error})"]) from error
