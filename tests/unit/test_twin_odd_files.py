"""Files and numbers for the twin that nobody means: a line that says so, no traceback, no hang."""

import gzip
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from isochrone.core.errors import InvalidInput
from isochrone.replay.trace import parse_trace
from isochrone.twin.scenario import Scenario
from isochrone.twin.workloads.fitted import (
    Fitted,
    Lengths,
    fitted_asks,
    parse_client_rates,
    parse_length_percentiles,
)
from isochrone.twin.workloads.steady import parse_lengths
from isochrone.twin.world.sites_table import parse_sites
from isochrone.wiring.twin_choice import Changes, chosen_scenario
from isochrone.wiring.twin_comparison import games, ground_of
from isochrone.wiring.twin_experiment import content_of, file_of, read_experiment
from isochrone.wiring.twin_files import bytes_of, text_of
from isochrone.wiring.twin_places import entries_of, ways_of
from isochrone.wiring.twin_world import twin_world

RATES = "client,window_s,rate_rps,cv,dist,p1\n"


def written(folder: Path, text: str) -> str:
    path = folder / "x.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_round_trip_needs_both_ends(tmp_path: Path) -> None:
    cut_off = written(tmp_path, "rtt_ms,src,dst\n9,West Europe,UK South\n8\n7,West Europe\n")
    with pytest.raises(InvalidInput) as raised:
        ways_of(cut_off)
    assert [each.partition(", ")[2] for each in raised.value.problems] == [
        "line 3: src or dst is blank", "line 4: src or dst is blank"
    ]


def test_round_trips_by_distance_need_a_distance(tmp_path: Path) -> None:
    nowhere = written(tmp_path, "km_mean,p10,p50,p90,p99\n0,1,2,3,4\n0,1,2,3,5\n")
    with pytest.raises(InvalidInput, match="one of them above 0 km"):
        ways_of(nowhere)


def test_blank_lines_before_the_columns_are_passed_over() -> None:
    text = "\n\r\nt_s,context_tokens,generated_tokens\n0,5,6\nx,1,1\n"
    trace = parse_trace(text.encode(), "x")
    assert [(row.number, row.input_tokens) for row in trace.rows] == [(4, 5)]
    assert trace.bad[0].startswith("x, row 5:")


def test_prompts_that_no_model_takes_are_told() -> None:
    scenario = read_experiment(
        {"fleet": {}, "workload": {
            "kind": "exponential", "prompt_tokens": 200_000, "load": 0.5,
        }}, source="x", change=lambda each: each,
    ).settings[0].scenario
    with pytest.raises(InvalidInput, match="expected at most 131072 together"):
        twin_world(scenario)


@contextmanager
def within_s(seconds: float) -> Iterator[None]:
    def too_late(*_: object) -> None:
        raise AssertionError(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def fitted(text: str) -> Fitted:
    """The clients of a rate file, whose prompts and answers have ten tokens."""
    clients, period_s = parse_client_rates(text, "x")
    lengths = Lengths(shares=(0.0, 1.0), tokens=(10.0, 10.0))
    return Fitted(clients=clients, period_s=period_s, prompt=lengths, output=lengths)


def test_a_client_that_hardly_ever_asks_holds_up_nobody() -> None:
    text = RATES + "a,0,1000,1,Gamma,1\nb,0,1e-9,1,Gamma,1\n"
    fit = fitted(text)
    with within_s(5.0):
        asks = list(islice(fitted_asks(fit, 1.0, 1), 1000))
    assert asks[-1].at_s == pytest.approx(1000.0, rel=0.15)
    with pytest.raises(InvalidInput, match="rate_rps from 1e-09 on"):
        parse_client_rates(RATES + "a,0,1e-300,1,Gamma,1\n", "x")


def test_a_rare_client_asks_as_often_as_it_says() -> None:
    """Also where it passes over thousands of turns of the file at once."""
    text = RATES + "a,0,1e-6,1,Gamma,1\nb,600,1e-6,1,Gamma,1\n"
    fit = fitted(text)
    with within_s(5.0):
        asks = list(islice(fitted_asks(fit, 1e-8, 1), 2000))
    assert asks[-1].at_s == pytest.approx(2000 / 1e-8, rel=0.1)
    halves = [ask.at_s % fit.period_s < 600.0 for ask in asks]
    assert sum(halves) == pytest.approx(1000, rel=0.15), "each within its own window"


def calls_at(folder: Path, times: str) -> Scenario:
    """A trace of short calls at these instants."""
    path = folder / "calls.csv"
    rows = [f"{at_s},500,50\n" for at_s in times.split()]
    path.write_text("t_s,context_tokens,generated_tokens\n" + "".join(rows), encoding="utf-8")
    return chosen_scenario("eight-sites", Changes(trace=(str(path),)))


def test_a_recording_in_another_unit_begins_as_soon_as_others(tmp_path: Path) -> None:
    """Tens of thousands of copies of these weeks, which were half an hour, make the rate."""
    scenario = calls_at(tmp_path, " ".join(str(number * 100) for number in range(20_000)))
    with within_s(8.0):
        ground = ground_of(scenario, 2000)
        requests = [row for chunk in ground.arrivals() for row in chunk.rows()]
    assert ground.world.rate_rps > 10_000 * 0.01, "copies of it, or it would show nothing"
    assert len(requests) / requests[-1].at_s == pytest.approx(ground.world.rate_rps, rel=0.1)


def test_a_wrong_time_that_leaves_hardly_any_requests_is_told(tmp_path: Path) -> None:
    scenario = calls_at(tmp_path, "0 1 2 2e6")
    with within_s(8.0), pytest.raises(InvalidInput, match="more than a million copies") as raised:
        games(scenario, ["nearest"], [0.001, 0.6], 10)
    assert len(raised.value.problems) == 1
    assert games(scenario, ["nearest"], [0.001], 10)


def test_folders_of_whom_nobody_knows_are_told(tmp_path: Path) -> None:
    unknown = "~nobody-of-this-name/x.toml"
    for read in (
        lambda: chosen_scenario(unknown, Changes()), lambda: file_of(unknown),
        lambda: chosen_scenario("eight-sites", Changes(trace=(unknown,), rtt=unknown)),
        lambda: ways_of(unknown),
    ):
        with pytest.raises(InvalidInput, match=unknown):
            read()


def test_ones_own_folder_may_be_named_in_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell puts it in place of the `~` of `--rtt=~/x.csv`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.csv").write_text("t_s,context_tokens,generated_tokens\n0,5,6\n")
    read = chosen_scenario(
        "eight-sites", Changes(trace=("~/x.csv",), rtt="~/x.csv", sites="~/x.csv")
    )
    assert read.workload.kind == "recorded"


def test_round_trips_by_distance_may_be_in_quotation_marks(tmp_path: Path) -> None:
    plain = "km_mean,p10,p50,p90,p99\n100,1,2,3,4\n5000,60,70,90,200\n"
    marked = "".join(
        ",".join(f'"{each}"' for each in line.split(",")) + "\r\n" for line in plain.splitlines()
    )
    found = [ways_of(written(tmp_path, text))[1].rtt_ms.tolist() for text in (plain, marked)]
    assert found[0] == found[1]


def test_a_trace_with_blank_lines_first_is_known_by_the_next(tmp_path: Path) -> None:
    trace = written(tmp_path, "\n\nt_s,context_tokens,generated_tokens\n0,5,6\n1,5,6\n")
    assert chosen_scenario("eight-sites", Changes(trace=(trace,))).workload.kind == "recorded"
    with pytest.raises(InvalidInput, match="no known traffic"):
        chosen_scenario("eight-sites", Changes(trace=(written(tmp_path, "\n" * 10_000),)))


def test_tables_with_blank_lines_first_have_their_columns_in_the_next(tmp_path: Path) -> None:
    for before in ("\n", "\r\n \n\n"):
        lengths = before + "num_prefill_tokens,num_decode_tokens\n5,6\n"
        assert parse_lengths(lengths, "x") == ((5, 6),)
        assert parse_client_rates(before + RATES + "a,0,1,1,Gamma,1\n", "x")[1] == 600.0
        sites = before + "site_id,country_iso2,lat,lon\na,DE,50,9\n"
        assert [each.name for each in parse_sites(sites, "x")] == ["a"]
        ways = before + "km_mean,p10,p50,p90,p99\n100,1,2,3,4\n900,9,10,11,12\n"
        assert len(ways_of(written(tmp_path, ways))[1].km) == 3
    with pytest.raises(InvalidInput, match="x, line 4: invalid literal"):
        parse_lengths("\n\nnum_prefill_tokens,num_decode_tokens\nx,6\n", "x")
    with pytest.raises(InvalidInput, match="no column num_prefill_tokens"):
        parse_lengths("\n\n", "x")


def test_percentiles_of_two_traces_in_one_table_are_told() -> None:
    table = "trace,field,percentile,tokens\n" + "".join(
        f"{trace},context_tokens,{percentile},{tokens}\n" for trace, percentile, tokens in (
            ("conv", 10, 400), ("conv", 50, 900), ("code", 20, 100), ("code", 60, 2000)
        )
    )
    with pytest.raises(InvalidInput) as raised:
        parse_length_percentiles(table, "x")
    assert raised.value.problems == (
        "x: context_tokens has 100 tokens at percentile 20, less than at 10; expected those of "
        "one trace",
    )


def test_entries_of_a_country_that_is_none_are_told(tmp_path: Path) -> None:
    head = "country_iso2,sampled_requests\nGB,5\n"
    assert entries_of(written(tmp_path, head)) == {"GB": 5.0}
    with pytest.raises(InvalidInput, match="line 3: UK, 7; expected a known place"):
        entries_of(written(tmp_path, head + "UK,7\n"))


STRAY = """t_s,context_tokens,generated_tokens
0,100,10
1,"100,10
2,x,10
3,100,10
"""


def test_a_stray_quotation_mark_costs_its_own_row_alone(tmp_path: Path) -> None:
    trace = parse_trace(STRAY.encode(), "x.csv")
    assert [row.number for row in trace.rows] == [2, 5]
    assert [each.partition(":")[0] for each in trace.bad] == ["x.csv, row 3", "x.csv, row 4"]
    sites = "site_id,country_iso2,lat,lon\n" + "".join(
        f'{quote}{number},DE,50.0,9.{number}\n' for number, quote in enumerate(('', '"', '', '"'))
    )
    with pytest.raises(InvalidInput) as raised:
        parse_sites(sites, "x.csv")
    assert [each.partition(":")[0] for each in raised.value.problems] == [
        "x.csv, line 3", "x.csv, line 5"
    ]
    assert max(map(len, raised.value.problems)) < 200
    table = "num_prefill_tokens,num_decode_tokens\r\n5,6\r\n" + '"5",7\r\n'
    assert parse_lengths(table, "x.csv") == ((5, 6), (5, 7))


@pytest.mark.parametrize("read", [
    content_of, lambda file: chosen_scenario(file, Changes()),
    lambda file: bytes_of(Path(file), most=5_000_000),
])
def test_a_file_without_an_end_is_not_read_for_ever(read: Callable[[str], object]) -> None:
    with within_s(20.0), pytest.raises(InvalidInput, match=r"/dev/zero: has more than .* MB"):
        read("/dev/zero")


def test_what_unpacks_to_more_than_is_read_is_told(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(3_000_000)))
    assert len(text_of(bomb, most=3_000_000)) == 3_000_000
    with pytest.raises(InvalidInput, match=r"bomb\.gz: has more than 2 MB"):
        text_of(bomb, most=2_000_000)


def test_a_pipe_that_ends_is_read_as_a_file_and_a_folder_is_told(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as writer, within_s(20.0):
        written_all = writer.submit(pipe.write_bytes, b"x" * 200_000)
        assert bytes_of(pipe, most=200_000) == b"x" * 200_000
        written_all.result()
    with pytest.raises(InvalidInput, match="directory"):
        bytes_of(tmp_path)
