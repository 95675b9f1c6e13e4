"""What traffic is read from which files: parts, lengths without times, weeks, and what fits."""

from itertools import islice
from pathlib import Path

import pytest

from isochrone.adapters.parquet.tables import read_parquet, write_parquet
from isochrone.core.errors import InvalidInput
from isochrone.twin.scenario import Workload, WorkloadKind
from isochrone.twin.workloads.asks import Ask
from isochrone.twin.workloads.coding_sessions import CodingSession, Turn, fitting
from isochrone.twin.workloads.fitted import pooled_lengths
from isochrone.twin.workloads.steady import parse_lengths
from isochrone.twin.workloads.token_week import parse_token_week
from isochrone.wiring.twin_traffic import traffic_of

POINTS = ("p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99")


def workload(kind: WorkloadKind, *files: Path | str, part: tuple[float, float] = (0.0, 1.0)
             ) -> Workload:
    return Workload(
        name="x", kind=kind, files=tuple(str(each) for each in files), load=0.5, rate_rps=None,
        slo_ms=1.0, slo_token_ms=0.0, reserved=0.0, batch=0.0, part=part, prompt_tokens=100.0,
        output_tokens=400.0,
    )


def asks(of: Workload, rate: float, count: int) -> list[Ask]:
    return list(islice(traffic_of(of).source(rate, 1), count))


def test_exponential_answers_come_by_chance_with_their_mean() -> None:
    found = asks(workload("exponential"), 5.0, 20_000)
    assert {each.prompt_tokens for each in found} == {100}
    mean = sum(each.output_tokens for each in found) / len(found)
    assert mean == pytest.approx(400.5, rel=0.03)  # rounded up
    assert found[-1].at_s == pytest.approx(20_000 / 5.0, rel=0.03)
    assert max(each.output_tokens for each in found) > 5 * 400


def test_lengths_without_times_are_drawn_row_by_row(tmp_path: Path) -> None:
    table = tmp_path / "lengths.csv"
    table.write_text("num_prefill_tokens,num_decode_tokens\n10,2\n30,6\n200000,1\n")
    of = workload("lengths", table)
    assert {(each.prompt_tokens, each.output_tokens) for each in asks(of, 1.0, 100)} == {
        (10, 2), (30, 6)
    }
    traffic = traffic_of(of)
    assert (traffic.prompt_tokens, traffic.output_tokens) == (20.0, 4.0)
    with pytest.raises(InvalidInput) as raised:
        parse_lengths("num_prefill_tokens,num_decode_tokens\n0,1\nx,2\n", "t")
    assert [each.split(":")[0] for each in raised.value.problems] == ["t, line 2", "t, line 3"]


def test_a_part_of_a_recording_is_played_alone(tmp_path: Path) -> None:
    table = tmp_path / "calls.csv"
    table.write_text("t_s,context_tokens,generated_tokens\n" + "".join(
        f"{at},{100 + at},10\n" for at in range(100)
    ))
    for part, prompts in (((0.0, 0.45), range(100, 145)), ((0.5, 1.0), range(150, 200))):
        found = asks(workload("recorded", table, part=part), 1.0, 300)
        assert {each.prompt_tokens for each in found} == set(prompts)


def test_a_part_of_a_week_of_rates_is_played_alone(tmp_path: Path) -> None:
    rates, tokens = tmp_path / "rates.csv", tmp_path / "tokens.csv"
    rates.write_text("t_s,inv_per_min\n" + "".join(
        f"{600 * at},{60 if at < 50 else 600}\n" for at in range(100)
    ))
    tokens.write_text("field,percentile,tokens\n" + "".join(
        f"{field},{at},{at * 10}\n" for field in ("context_tokens", "generated_tokens")
        for at in (10, 50, 90)
    ))
    whole = asks(workload("azure-2024", rates, tokens), 1.0, 200)
    half = asks(workload("azure-2024", rates, tokens, part=(0.5, 1.0)), 1.0, 200)
    assert whole[-1].at_s > 3 * half[-1].at_s  # the quiet half comes first


def test_a_week_of_tokens_gives_its_shape_of_production_alone() -> None:
    head = "model_family,env,t_s,tokens_per_s_plotted\n"
    windows, period_s = parse_token_week(
        head + "A,prod,0,100\nA,dev,0,7\nB,prod,0,9\nA,prod,300,300\nA,prod,600,0\n", "w"
    )
    assert [(each.start_s, each.end_s) for each in windows] == [(0.0, 300.0), (300.0, 600.0)]
    assert windows[1].rate_rps == pytest.approx(3 * windows[0].rate_rps)
    assert period_s == 900.0
    with pytest.raises(InvalidInput, match="no row of env prod"):
        parse_token_week(head + "A,dev,0,7\n", "w")
    with pytest.raises(InvalidInput, match="line 2"):
        parse_token_week(head + "A,prod,x,7\n", "w")


def test_percentiles_of_clients_are_pooled_by_their_requests(tmp_path: Path) -> None:
    rows: list[dict[str, str | int | float | bool | None]] = [
        {"client": 0, "requests": 90.0, **{
            f"{field}_{each}": 10.0 for field in ("input_tokens", "output_tokens")
            for each in POINTS
        }},
        {"client": 1, "requests": 10.0, **{
            f"{field}_{each}": 1000.0 for field in ("input_tokens", "output_tokens")
            for each in POINTS
        }},
    ]
    path = tmp_path / "lengths.parquet"
    write_parquet(path, rows)
    found = pooled_lengths(read_parquet(path), "x")
    assert found["input_tokens"].at(0.5) == 10
    assert found["input_tokens"].at(0.95) == 1000
    assert found["output_tokens"].mean == pytest.approx(0.9 * 10 + 0.1 * 1000, rel=0.05)
    with pytest.raises(InvalidInput, match="no rows"):
        pooled_lengths([{"requests": 1.0}], "x")


def test_a_session_ends_before_its_first_turn_that_does_not_fit() -> None:
    def turn(at_s: float, prompt: int) -> Turn:
        return Turn(at_s=at_s, prompt_tokens=prompt, output_tokens=10, kept=0, new=())

    def session(*turns: Turn) -> CodingSession:
        return CodingSession(kind=(1, 2), shared_tokens=3, block_tokens=64, turns=turns)

    found = fitting(
        [session(turn(0, 50), turn(1, 91), turn(2, 20)), session(turn(0, 500))], 100
    )
    assert [[each.prompt_tokens for each in one.turns] for one in found] == [[50]]


def test_a_table_keeps_numbers_text_and_what_is_missing(tmp_path: Path) -> None:
    rows: list[dict[str, str | int | float | bool | None]] = [
        {"name": "a 'b'", "count": 1, "share": 0.5, "good": True, "none": None},
        {"name": "ü", "count": 2**40, "share": 1, "good": False, "none": None},
    ]
    path = tmp_path / "it's.parquet"
    write_parquet(path, rows)
    assert read_parquet(path) == rows
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_parquet(tmp_path / "none.parquet")
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_parquet(tmp_path / "no" / "x.parquet", rows)
