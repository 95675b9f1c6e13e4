"""`isochrone twin`: rows of a comparison, what replaces parts of a scenario, and bad input."""

import gzip
import json
import os
from pathlib import Path
from re import findall
from typing import Any

import pytest

from isochrone.twin.baselines.catalogue import routers
from isochrone.twin.fast.policy import Router
from isochrone.wiring import twin_comparison
from isochrone.wiring.twin_choice import Changes, chosen_scenario
from isochrone.wiring.twin_comparison import POLICIES, Game, Played, games, play
from isochrone.wiring.twin_pool import play_all
from tests.fixtures.twin_command import SMALL

FEW = ("--requests", "120", "--jobs", "1")
COLUMNS = [
    "workload", "load", "policy", "ttft_ms_mean", "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p99",
    "slo_attainment", "goodput_rps", "hit_rate", "cross_border_bytes", "gpus_for_slo",
]
TIMES = COLUMNS[3:7]
BUCKET = 1.006  # quantiles of a run are within half a percent

SITES = """site_id,country_iso2,lat,lon
berlin,DE,52.5,13.4
paris,FR,48.9,2.4
london,GB,51.5,-0.1
"""
RTT = """src,dst,rtt_ms
West Europe,France Central,9
France Central,West Europe,9
West Europe,UK South,12
UK South,West Europe,12
"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, list)
    return found


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_for_each_policy_and_load_with_the_bound_below_all(
    twin_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    names = "ours,llm_d,campus,bound"
    assert twin_command(
        "compare", "eight-sites", "--policies", names, "--loads", "0.3,0.7", *FEW, "--json", out
    ) == 0
    rows = rows_of(out)
    assert [list(row) for row in rows] == [COLUMNS] * 8
    assert [(row["load"], row["policy"]) for row in rows] == [
        (load, name) for load in (0.3, 0.7) for name in names.split(",")
    ]
    assert {row["workload"] for row in rows} == {"conversations"}
    for at in (0, 4):
        *played, bound = rows[at:at + 4]
        ours, llm_d, campus = played
        assert bound["cross_border_bytes"] is None
        assert None not in (*(ours[name] for name in TIMES), *(llm_d[name] for name in TIMES))
        # Its one site is not in Europe, so a fifth is refused: the slowest tenth is never answered.
        assert campus["ttft_ms_p90"] is campus["ttft_ms_p99"] is None
        for row in played:
            for name in TIMES:
                assert row[name] is None or 0.0 < bound[name] <= row[name] * BUCKET
            assert 0.0 < row["slo_attainment"] <= bound["slo_attainment"] <= 1.0
            assert 0.0 < row["goodput_rps"] <= bound["goodput_rps"]
            assert 0.0 <= row["hit_rate"] <= bound["hit_rate"] < 1.0
            assert row["gpus_for_slo"] is None
    # Load is what differs: the same requests come faster.
    assert rows[7]["goodput_rps"] > 1.5 * rows[3]["goodput_rps"]
    printed = capsys.readouterr().out
    assert "at load 0.3" in printed
    assert "p99 / bound" in printed
    told = findall(r"takes ([0-9.]+) ms in the mean and ([0-9.]+) ms at p99 at the speed", printed)
    assert len(told) == 2, "once a load"
    assert 0.0 < float(told[0][0]) < rows[3]["ttft_ms_mean"]
    assert 0.0 < float(told[0][1]) < rows[3]["ttft_ms_p99"]
    assert list(tmp_path.iterdir()) == [out]


def test_the_same_seed_gives_the_same_file_whatever_the_processes(
    twin_command: Any, tmp_path: Path
) -> None:
    files = []
    for name, jobs, seed in (("a", 1, 7), ("b", 2, 7), ("c", 1, 8)):
        files.append(tmp_path / name)
        assert twin_command(
            "compare", "eight-sites", "--policies", "ours,bound", "--requests", 60,
            "--jobs", jobs, "--seed", seed, "--json", files[-1],
        ) == 0
    one, two, other = (each.read_bytes() for each in files)
    assert one == two
    assert one != other


def test_rows_come_in_the_order_of_the_work_whoever_is_done_first() -> None:
    scenario = chosen_scenario("eight-sites", Changes())
    work = [
        Game(scenario=scenario, policy="ours", requests=4_000),
        Game(scenario=scenario, policy="nearest", requests=3),
    ]
    done: list[Played] = []
    played = play_all(work, 2, done.append)
    assert [each.row.policy for each in played] == ["ours", "nearest"]
    assert [each.row.policy for each in done] == ["nearest", "ours"]


def test_all_policies_get_the_same_requests(
    twin_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever's name a policy has, the same decisions give the same row."""

    def twice(_: object) -> dict[str, Router]:
        return {name: routers()["nearest"] for name in ("nearest", "llm_d")}

    monkeypatch.setattr(twin_comparison, "routers", twice)
    out = tmp_path / "out.json"
    assert twin_command(
        "compare", "eight-sites", "--policies", "nearest,llm_d", *FEW, "--json", out
    ) == 0
    one, other = rows_of(out)
    assert {**one, "policy": ""} == {**other, "policy": ""}


def test_files_replace_what_the_scenario_names(twin_command: Any, tmp_path: Path) -> None:
    scenario = written(tmp_path, "s.toml", SMALL + 'name = "x"\nfiles = ["gone"]\n')
    sites, rtt = written(tmp_path, "sites.csv", SITES), written(tmp_path, "rtt.csv", RTT)
    trace = tmp_path / "calls.csv.gz"
    trace.write_bytes(gzip.compress(b"t_s,context_tokens,generated_tokens\n" + b"".join(
        b"%d,%d,%d\n" % (at, 300 + at % 7, 20 + at % 5) for at in range(300)
    )))
    out = tmp_path / "out.json"
    assert twin_command(
        "compare", scenario, "--trace", trace, "--sites", sites, "--rtt", rtt, "--policies",
        "ours,bound", *FEW, "--json", out,
    ) == 0
    ours, bound = rows_of(out)
    assert ours["workload"] == "calls"
    assert ours["hit_rate"] == bound["hit_rate"] == 0.0  # no prefixes are in such a trace
    assert ours["ttft_ms_p99"] < 500.0  # all three are near each other, and prompts are short


def test_rows_that_are_no_requests_are_told(
    twin_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "t_s,context_tokens,generated_tokens\n"
    good = "".join(f"{at},100,10\n" for at in range(30))
    trace = written(tmp_path, "calls.csv", head + good + "nan,1,1\n31,-5,1\n")
    scenario = written(tmp_path, "s.toml", f'{SMALL}files = ["{trace}"]\n')
    told = f"2 rows of the trace, as {trace}, row 32: arrival nan is no time"
    for words in (("compare", scenario, "--policies", "nearest"), ("sweep", scenario, "--policies",
                  "nearest"), ("run", scenario, "--policy", "nearest")):
        assert twin_command(*words, "--requests", 20) == 0
        assert told in capsys.readouterr().out
    other = written(tmp_path, "good.csv", head + good)
    once = ("run", scenario, "--trace", other, "--policy", "nearest", "--requests", 20)
    assert twin_command(*once) == 0
    assert "Left out" not in capsys.readouterr().out


def test_what_was_played_is_shown_although_it_cannot_be_written(
    twin_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = written(tmp_path, "s.toml", SMALL)
    full = tmp_path / ("x" * 250)  # its name is good, that of what is written beside it too long
    for words in (("compare", scenario, "--policies", "nearest", *FEW, "--json", full),
                  ("run", scenario, "--policy", "nearest", *FEW[:2], "--json", full),
                  ("sweep", scenario, "--policies", "nearest", *FEW, "--json", full),
                  ("report", scenario, "--policies", "nearest", *FEW, "--out", full)):
        assert twin_command(*words) == 2
        shown = capsys.readouterr()
        assert "cannot be written: File name too long" in shown.err
        assert "nearest" in shown.out
        assert "written to" not in shown.out
    if not os.geteuid():
        return  # root may write anywhere
    tmp_path.chmod(0o500)
    assert twin_command("compare", scenario, "--policies", "nearest", "--json", tmp_path / "x") == 2
    shown = capsys.readouterr()
    assert f"the folder {tmp_path} cannot be written to" in shown.err
    assert "nearest" not in shown.out


def test_a_table_with_an_open_quotation_is_told(
    twin_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_ = '"' + "x" * 140_000
    sites = written(tmp_path, "sites.csv", SITES + open_)
    rtt = written(tmp_path, "rtt.csv", RTT + open_)
    trace = written(tmp_path, "t.csv", "num_prefill_tokens,num_decode_tokens\n5,5\n" + open_)
    calls = written(tmp_path, "c.csv", "t_s,context_tokens,generated_tokens\n0,5,5\n" + open_)
    assert twin_command(
        "compare", "eight-sites", "--sites", sites, "--rtt", rtt, "--trace", trace
    ) == 2
    told = capsys.readouterr().err
    for file in (sites, rtt, trace):
        assert f"{file}: is no table with commas between (field larger" in told
    assert twin_command("compare", "eight-sites", "--trace", calls) == 2
    assert f"{calls}: is no table with commas" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first_line", "kind"),
    [
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [0]}', "recorded"),
        ("t_s,timestamp_utc,context_tokens,generated_tokens", "recorded"),
        ('{"id":"a","block_size":64,"tool_tokens":1,"system_tokens":1,"requests":[]}', "coding"),
        ("client,window_s,rate_rps,cv,dist,p1,p2", "servegen"),
        ("trace,t_s,utc,inv_per_min,inv_per_min_lo,inv_per_min_hi", "azure-2024"),
        ("model_family,env,t_s,tokens_per_s_plotted", "azure-2024"),
        ("num_prefill_tokens,num_decode_tokens", "lengths"),
    ],
)
def test_the_kind_of_a_trace_is_told_by_its_first_line(
    tmp_path: Path, first_line: str, kind: str
) -> None:
    trace = str(written(tmp_path, "x", first_line + "\n"))
    workload = chosen_scenario("eight-sites", Changes(trace=(trace,))).workload
    assert workload.kind == kind
    assert workload.files[0] == trace
    assert len(workload.files) == (2 if kind in ("servegen", "azure-2024") else 1)


@pytest.mark.parametrize(
    ("first_line", "kind"),
    [
        ("field,day,bin_lo,requests", "servegen"),
        ("trace,field,percentile,tokens", "azure-2024"),
        ("PAR1", "servegen"),
    ],
)
def test_lengths_alone_or_first_find_their_rates(
    tmp_path: Path, first_line: str, kind: str
) -> None:
    lengths = str(written(tmp_path, "lengths", first_line + "\n"))
    alone = chosen_scenario("eight-sites", Changes(trace=(lengths,))).workload
    assert alone.kind == kind
    assert alone.files[1] == lengths
    rates = str(written(tmp_path, "rates", {
        "servegen": "client,window_s,rate_rps,cv,dist,p1\n", "azure-2024": "t_s,inv_per_min\n",
    }[kind]))
    both = chosen_scenario("eight-sites", Changes(trace=(lengths, rates))).workload
    assert both.files == (rates, lengths)


def test_the_load_of_a_stated_rate_is_its_part_of_what_the_fleet_does(
    twin_command: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    rates = []
    for text in (SMALL, SMALL.replace("load = 0.5", "rate_rps = 2.0")):
        scenario = written(tmp_path, "s.toml", text)
        assert twin_command("run", scenario, "--requests", 50, "--json", out) == 0
        rates.append(rows_of(out)[0]["load"])
    assert rates[0] == 0.5
    assert 0.0 < rates[1] != 0.5


def test_no_file_that_is_played_is_written_over(
    twin_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = written(tmp_path, "s.toml", SMALL)
    trace = written(tmp_path, "t.csv", "t_s,context_tokens,generated_tokens\n0,5,6\n1,5,6\n")
    other = tmp_path / "other.csv"
    other.symlink_to(trace)
    for out in (scenario, other):
        assert twin_command("run", scenario, "--trace", trace, "--requests", 5, "--json", out) == 2
        assert "is read here, and would be lost" in capsys.readouterr().err
    assert Path(trace).read_text().startswith("t_s,")


def test_everything_that_is_wrong_is_told_and_nothing_is_written(
    twin_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = written(tmp_path, "bad.csv", "x,y\n1,2\n")
    scenario = written(tmp_path, "s.toml", "sed = 1\n[fleet]\nreplicas = 0\n")
    kept = written(tmp_path, "out.json", "before")

    def told(*words: object) -> str:
        before = sorted(tmp_path.iterdir())
        assert twin_command("compare", *words, "--json", kept) == 2
        assert sorted(tmp_path.iterdir()) == before
        assert kept.read_text(encoding="utf-8") == "before"
        return capsys.readouterr().err

    text = told(scenario, "--trace", bad, "--rtt", tmp_path / "none", "--loads", "0.5,much,9,0.5")
    for part in ("sed", "replicas", "[workload]", "no known traffic", "--rtt", '"much"', '"9"',
                 "0.5 is named twice"):
        assert part in text
    text = told("eight-sites", "--rtt", bad, "--sites", bad, "--policies", "ours,best,ours")
    for part in ("src, dst", "no column lat", "no policy best", *POLICIES, "ours is named twice"):
        assert part in text
    far = SMALL + '[[outage]]\nrank = 4\n[[outage]]\nwhat = "site"\nrank = 3\n'
    text = told(written(tmp_path, "far.toml", far), "--sites", written(tmp_path, "s.csv", SITES))
    assert "outage 1: rank is 4, and engines are at 3 sites" in text
    assert "outage 2" not in text
    assert twin_command("run", "eight-sites", "--load", "0.5,0.6") == 2
    assert 'load "0.5,0.6": expected one' in capsys.readouterr().err
    assert "packaged: eight-sites" in told("nine-sites")
    damaged = tmp_path / "trace.gz"
    damaged.write_bytes(b"\x1f\x8bno")
    assert "damaged gzip" in told("eight-sites", "--trace", damaged)
    assert twin_command("compare", "eight-sites", "--json", tmp_path / "no" / "out.json") == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_packaged_scenario_is_good_for_every_policy(twin_command: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert twin_command("compare", "eight-sites", "--requests", 40, "--jobs", 1, "--json", out) == 0
    assert [row["policy"] for row in rows_of(out)] == list(POLICIES)


def test_our_own_policy_shares_a_quiet_fleet_as_well_as_the_others() -> None:
    """Many gateways with few long requests each: what is spare elsewhere is used."""
    scenario = chosen_scenario("eight-sites", Changes())
    work = games(scenario, ["ours", "least_outstanding", "nearest"], [0.4], 800)
    means = {row.policy: row.ttft_ms_mean or 0.0 for row in (play(game).row for game in work)}
    assert 0 < means["ours"] < 1.5 * means["least_outstanding"]
    assert means["ours"] < 0.3 * means["nearest"]
