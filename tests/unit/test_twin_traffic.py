"""What traffic is read from which files: parts, lengths without times, weeks, and what fits."""

from dataclasses import replace
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
from isochrone.twin.world.fleet_plan import CONTEXT_TOKENS
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
    assert mean == pytest.approx(400.0, rel=0.02)
    assert found[-1].at_s == pytest.approx(20_000 / 5.0, rel=0.03)
    assert max(each.output_tokens for each in found) > 5 * 400


@pytest.mark.parametrize("output_tokens", [1.0, 2.0, 100_000.0])
def test_answers_that_are_very_short_or_long_have_the_mean_that_is_told(
    output_tokens: float,
) -> None:
    of = replace(workload("exponential"), prompt_tokens=100.4, output_tokens=output_tokens)
    traffic, found = traffic_of(of), asks(of, 5.0, 20_000)
    assert traffic.prompt_tokens == found[0].prompt_tokens == 100
    mean = sum(each.output_tokens for each in found) / len(found)
    assert mean == pytest.approx(traffic.output_tokens, rel=0.02)
    if output_tokens < 100.0:
        assert traffic.output_tokens == pytest.approx(output_tokens)
    assert max(each.prompt_tokens + each.output_tokens for each in found) <= CONTEXT_TOKENS


def test_lengths_that_do_not_fit_cost_nothing_of_the_rate(tmp_path: Path) -> None:
    rates, lengths = tmp_path / "rates.csv", tmp_path / "lengths.csv"
    rates.write_text("t_s,inv_per_min\n0,60\n600,60\n")
    head = "field,percentile,tokens\ngenerated_tokens,50,1000\n"
    lengths.write_text(
        head + "context_tokens,0,1000\ncontext_tokens,60,50000\ncontext_tokens,100,300000\n"
    )
    of = workload("azure-2024", rates, lengths)
    traffic, found = traffic_of(of), asks(of, 5.0, 20_000)
    assert max(each.prompt_tokens + each.output_tokens for each in found) <= CONTEXT_TOKENS
    mean = sum(each.prompt_tokens for each in found) / len(found)
    assert mean == pytest.approx(traffic.prompt_tokens, rel=0.03)
    assert traffic.output_tokens == 1000.0
    lengths.write_text(
        head + "context_tokens,0.4,1\ncontext_tokens,0.5,130100\ncontext_tokens,100,130100\n"
    )
    with pytest.raises(InvalidInput, match="hardly any request of at most 131072 tokens"):
        traffic_of(replace(of, name="y", part=(0.0, 0.9)))


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


def test_a_later_part_of_a_recording_begins_with_its_first_window(tmp_path: Path) -> None:
    tables: tuple[tuple[WorkloadKind, str, str], ...] = (
        ("servegen", "client,window_s,rate_rps,cv,dist,p1", "{client},{at},1,1,Gamma,1"),
        ("azure-2024", "t_s,inv_per_min", "{at},60"),
        ("azure-2024", "model_family,env,t_s,tokens_per_s_plotted", "A,prod,{at},100"),
    )
    for kind, head, line in tables:
        rates = []
        for first_s in (0, 604_800):
            rates.append(tmp_path / f"{kind}-{first_s}.csv")
            rates[-1].write_text(head + "\n" + "".join(
                line.format(client=client, at=first_s + 600 * at) + "\n"
                for at in range(50) for client in range(2) if kind == "servegen" or not client
            ))
        tokens = tmp_path / "tokens.csv"
        tokens.write_text("field,percentile,tokens\n" + "".join(
            f"{field},{at},{at * 10}\n" for field in ("context_tokens", "generated_tokens")
            for at in (10, 90)
        ))
        lengths = tmp_path / "lengths.csv"
        lengths.write_text("field,bin_lo,requests\ninput_tokens,8,1\noutput_tokens,8,1\n")
        other = lengths if kind == "servegen" else tokens
        first, later = (asks(workload(kind, each, other), 1.0, 200) for each in rates)
        assert later[-1].at_s < 600.0
        assert [each.at_s for each in later] == pytest.approx([each.at_s for each in first])


def test_a_prompt_that_is_told_in_parts_is_all_of_them(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("client,window_s,rate_rps,cv,dist,p1\n0,0,1,1,Gamma,1\n")
    histogram, table = tmp_path / "hist.csv", tmp_path / "lengths.parquet"
    parts = {"text_tokens": 256, "image_tokens": 1024, "output_tokens": 32}
    histogram.write_text("field,day,bin_lo,requests\naudio_tokens,0,1,5\n" + "".join(
        f"{field},0,{low},0\n{field},0,{low + 1},5\n{field},0,{low + 2},0\n"
        for field, low in parts.items()
    ))
    write_parquet(table, [{"requests": 1.0, **{
        f"{field}_{each}": float(low + 1) for field, low in {**parts, "video_tokens": -1}.items()
        for each in POINTS
    }}])
    for lengths in (histogram, table):
        traffic = traffic_of(workload("servegen", rates, lengths))
        assert traffic.prompt_tokens == pytest.approx(256 + 1024, rel=0.003)
        assert traffic.output_tokens == pytest.approx(32, rel=0.05)


@pytest.mark.parametrize(("kind", "rates", "lengths", "told"), [
    ("servegen", "0,0,nan,1,Gamma,1", "input_tokens,8,1", "line 2: expected a time"),
    ("servegen", "0,0,1,inf,Gamma,1", "input_tokens,8,1", "line 2: expected a time"),
    ("servegen", "0,inf,1,1,Gamma,1", "input_tokens,8,1", "line 2: expected a time"),
    ("servegen", "0,0,1e300,1,Gamma,1", "input_tokens,8,1", "line 2: expected a time"),
    ("servegen", "0,0,1,1,Weibull,1e-9", "input_tokens,8,1", "line 2: expected a time"),
    ("servegen", "0,0,1,1,Gamma,1\n0,0,2,1,Gamma,1", "input_tokens,8,1", "two windows at 0 s"),
    ("servegen", "0,0,1,1,Gamma,1\n0,1e9,2,1,Gamma,1", "input_tokens,8,1", "at most 366 days"),
    ("servegen", "0,0,1,1,Gamma,1", "input_tokens,8,-1", "line 2: expected bin_lo and requests"),
    ("servegen", "0,0,1,1,Gamma,1", "input_tokens,nan,1", "line 2: expected bin_lo and requests"),
    ("servegen", "0,0,1,1,Gamma,1", "input_tokens,8,0", "no lengths of prompts"),
    ("servegen", "0,0,1,1,Gamma,1", "input_tokens,1e9,1", "tokens in the mean"),
    ("azure-2024", "0,nan", "context_tokens,50,8", "line 2: expected a time, and a rate"),
    ("azure-2024", "0,-60", "context_tokens,50,8", "line 2: expected a time, and a rate"),
    ("azure-2024", "0,60", "context_tokens,nan,8", "line 2: expected a percentile"),
    ("azure-2024", "0,60", "context_tokens,50,inf", "line 2: expected a percentile"),
])
def test_numbers_that_nobody_can_play_are_told(
    tmp_path: Path, kind: WorkloadKind, rates: str, lengths: str, told: str
) -> None:
    servegen = kind == "servegen"
    first, second = tmp_path / "rates.csv", tmp_path / "lengths.csv"
    first.write_text(
        f"{'client,window_s,rate_rps,cv,dist,p1' if servegen else 't_s,inv_per_min'}\n{rates}\n"
    )
    second.write_text(
        f"field,{'bin_lo,requests' if servegen else 'percentile,tokens'}\n{lengths}\n"
        + ("output_tokens,8,1\n" if servegen else "generated_tokens,50,8\n")
    )
    with pytest.raises(InvalidInput, match=told):
        traffic_of(workload(kind, first, second))


def test_times_that_are_years_apart_are_told(tmp_path: Path) -> None:
    table = tmp_path / "calls.csv"
    table.write_text("t_s,context_tokens,generated_tokens\n0,1,1\n1,1,1\n1e20,1,1\n")
    with pytest.raises(InvalidInput, match="at most 366 days"):
        traffic_of(workload("recorded", table))
