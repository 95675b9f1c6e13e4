"""Experiments of the twin: what is read, played and concluded, and the page that says so."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from isochrone.adapters.packaged import load_baseline_parameters
from isochrone.adapters.parquet.tables import read_parquet
from isochrone.cli.app import run
from isochrone.core.errors import InvalidInput
from isochrone.core.lifecycle.experiment import ExperimentProgress, ExperimentResults
from isochrone.twin.baselines.catalogue import EVERY, NAMES, routers
from isochrone.twin.bound.lower_bound import Least
from isochrone.twin.experiments.erlang import attainable_utilisation, waiting_probability
from isochrone.twin.experiments.experiment import Outcome, Point, Results, View
from isochrone.twin.experiments.findings import findings_of, load_for
from isochrone.twin.fast.plan import Outage
from isochrone.twin.fast.rows import Row
from isochrone.twin.report.page import DARK, LIGHT, page_of
from isochrone.twin.report.words import markdown_of
from isochrone.twin.scenario import OutagePlan
from isochrone.wire.experiments import decoded
from isochrone.wiring.twin_comparison import ALL_SEEING, POLICIES, Game, games, ground_of, play
from isochrone.wiring.twin_experiment import (
    Experiment,
    content_of,
    packaged_experiments,
    read_experiment,
    varied_by,
    with_values,
    work_of,
)
from isochrone.wiring.twin_outages import outages_of
from isochrone.wiring.twin_plan import need_packaged, plan_of
from isochrone.wiring.twin_pool import play_all
from isochrone.wiring.twin_sizing import least_replicas

EXPERIMENT = """
[experiment]
title = "Small & quick"
view = "cases"
policies = ["ours", "nearest"]
[scenario]
length_s = 20.0
hours = false
[scenario.fleet]
engine_sites = 3
replicas = 4
[scenario.workload]
load = 0.5
[[case]]
name = "nothing"
[[case]]
name = "largest site"
[[case.set.outage]]
what = "site"
begin = 0.3
end = 0.9
"""


def row(policy: str, *, load: float = 0.8, mean: float | None = 100.0, p99: float | None = 1000.0,
        in_time: float = 1.0, gpus: int | None = None) -> Row:
    return Row(
        workload="w", load=load, policy=policy, ttft_ms_mean=mean, ttft_ms_p50=mean,
        ttft_ms_p90=p99, ttft_ms_p99=p99, slo_attainment=in_time, goodput_rps=1.0, hit_rate=0.5,
        cross_border_bytes=None, gpus_for_slo=gpus,
    )


def results(view: View, *rows: Row, gpus: int | None = None, case: str = "") -> Results:
    return Results(
        name="x", title="Title <b>", question="Why?", view=view, command="isochrone twin x",
        commit="abc", requests=10, slo_share=0.95,
        outcomes=[Outcome(point=Point(case=case, varied={}), row=each, gpus=gpus) for each in rows],
    )


def texts(found: Results) -> list[tuple[str, bool | None]]:
    return [(each.text, each.good) for each in findings_of(found)]


def test_erlang_gives_the_known_table() -> None:
    """Utilisation with one in twenty waiting, in percent, by servers."""
    known = {8: 48, 16: 61, 32: 72, 64: 80, 128: 85, 572: 93, 4569: 97}
    for servers, percent in known.items():
        assert 100 * attainable_utilisation(servers, 0.05) == pytest.approx(percent, abs=0.6)
    assert waiting_probability(1, 0.7) == pytest.approx(0.7)  # of M/M/1 it is the utilisation
    assert waiting_probability(2, 0.5) == pytest.approx(1 / 3)  # 2 u^2 / (1 + u)


def test_every_packaged_experiment_can_be_read_and_names_known_policies() -> None:
    assert set(packaged_experiments()) == {
        "policies", "campus", "losses", "residency", "entitlements", "pooling"
    }
    for name in packaged_experiments():
        read = read_experiment(content_of(name), source=name, change=lambda each: each)
        assert read.settings
        assert read.question
        for setting in read.settings:
            assert set(setting.policies) <= {*POLICIES, ALL_SEEING}
            # Baselines were tuned on what lies before 45 % of each recording.
            files = "".join(setting.scenario.workload.files)
            assert setting.scenario.workload.part[0] >= 0.5 or not files


def test_a_target_that_is_missed_says_why() -> None:
    """By what was played: the bound, and who sees everything, each beside the best baseline."""

    def why(bound: float | None, seeing: float | None) -> str:
        rows = [row("ours", p99=1000.0), row("nearest", p99=1100.0)]
        rows += [] if bound is None else [row("bound", p99=bound)]
        rows += [] if seeing is None else [row("all_seeing", p99=seeing)]
        text, good = texts(results("loads", *rows))[0]
        assert not good
        return text.partition("(target 0.8 x)")[2]

    assert why(900.0, 950.0) == "; nobody can reach it: what no policy can beat is 0.82 x"
    assert why(500.0, 950.0).startswith("; not even who sees every engine at every instant")
    assert "(0.86 x)" in why(500.0, 950.0)
    assert why(500.0, 800.0).startswith("; who sees every engine at every instant has 0.73 x")
    assert why(500.0, None) == (
        "; what no policy can beat is 0.45 x, the best that any reached 0.91 x"
    )
    assert "neither the bound nor the yardstick was played" in why(None, None)
    missed = texts(results(
        "loads", row("ours", mean=200.0), row("nearest"), row("bound", mean=100.0),
        row("all_seeing", mean=150.0),
    ))
    assert any("not even who sees every engine" in text and "mean" in text for text, _ in missed)
    met = texts(results("loads", row("ours", p99=500.0), row("nearest"), row("bound", p99=400.0)))
    assert met[0] == (
        "w at load 0.8: p99 500 ms, the best baseline (nearest) 1,000 ms: 0.50 x (target 0.8 x)",
        True,
    )


def test_a_p99_of_few_requests_is_said_to_be_one() -> None:
    few = results("loads", row("ours", p99=1100.0), row("nearest"))
    few = replace(few, outcomes=[replace(each, requests=375) for each in few.outcomes])
    text = texts(few)[-1][0]
    assert "of 375 requests 3 are later" in text
    assert "mean" not in text.partition("comparisons of mean and p99:")[2]
    many = replace(few, outcomes=[replace(each, requests=5_000) for each in few.outcomes])
    assert "are later" not in texts(many)[-1][0]


def test_development_windows_end_before_test_windows_begin() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "baselines"
    windows = sorted(folder.glob("*.toml"))
    assert windows
    for path in windows:
        read = read_experiment(content_of(str(path)), source=str(path), change=lambda each: each)
        assert read.settings[0].scenario.workload.part[1] <= 0.45


def test_the_parameters_of_record_are_those_of_the_policies_and_are_played() -> None:
    found = load_baseline_parameters()
    assert set(found) == {"conversations", "coding", "calls"}
    for of_nature in found.values():
        assert set(of_nature) <= set(NAMES)
        routers(of_nature)  # every parameter is known to its policy
    told = {"nearest_then_spill": {"waiting": 0.5}}
    made = {each.name: each for each in EVERY}["nearest_then_spill"]
    assert replace(made.default, **told["nearest_then_spill"]) != made.default
    assert set(routers(told)) == set(NAMES)


def test_all_that_is_wrong_with_an_experiment_is_told() -> None:
    with pytest.raises(InvalidInput) as raised:
        read_experiment(
            {"experiment": {"titel": "x", "view": "plot"}, "scenario": {}, "vary": [{"key": "a"}]},
            source="x", change=lambda each: each,
        )
    text = "\n".join(raised.value.problems)
    for part in ('"titel"; did you mean "title"?', "view is", "values is None"):
        assert part in text
    with pytest.raises(InvalidInput) as raised:
        read_experiment(
            {"experiment": {}, "scenario": {"fleet": {}, "workload": {}},
             "case": [{"name": "one", "set": {"fleet.replica": 1}},
                      {"name": "two", "set": {"workload.load": 9}}]},
            source="x", change=lambda each: each,
        )
    text = "\n".join(raised.value.problems)
    assert '[one]: fleet: unknown key "replica"' in text
    assert "load is 9" in text
    with pytest.raises(InvalidInput, match="packaged: campus"):
        content_of("no-such")


def test_values_are_set_by_key_and_all_combinations_are_played() -> None:
    assert varied_by(["fleet.replicas=8,16", "hours=true"]) == {
        "fleet.replicas": (8, 16), "hours": (True,)
    }
    with pytest.raises(InvalidInput, match="expected a key"):
        varied_by(["fleet"])
    base = {"fleet": {"replicas": 1}, "workload": {"rate_rps": 2.0}}
    assert with_values(base, {"fleet.replicas": 3, "workload.load": 0.5}) == {
        "fleet": {"replicas": 3}, "workload": {"load": 0.5}
    }
    assert with_values({"workload": {"load": 0.6}}, {"workload.rate_rps": 3.0}) == {
        "workload": {"rate_rps": 3.0}
    }
    assert base["fleet"] == {"replicas": 1}
    read = read_experiment(
        content_of("eight-sites"), source="eight-sites", change=lambda each: each,
        vary={"workload.load": (0.3, 0.6), "fleet.replicas": (8, 16)},
    )
    assert [each.point.varied["fleet.replicas"] for each in read.settings] == [8, 16, 8, 16]
    assert len(work_of(read, 10)) == 4 * len(POLICIES)
    with pytest.raises(InvalidInput, match="only one can be varied"):
        read_experiment(
            content_of("eight-sites"), source="eight-sites", change=lambda each: each,
            vary={"workload.load": (0.3,), "workload.rate_rps": (8.0,)},
        )


def test_rates_are_varied_of_a_scenario_that_states_a_load() -> None:
    read = read_experiment(
        content_of("eight-sites"), source="eight-sites", change=lambda each: each,
        vary={"workload.rate_rps": (5, 10)},
    )
    assert [each.scenario.workload.rate_rps for each in read.settings] == [5.0, 10.0]


def test_an_experiment_is_played_and_its_page_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, page = tmp_path / "small.toml", tmp_path / "page.html"
    wanted.write_text(EXPERIMENT, encoding="utf-8")
    table, far, found = (tmp_path / name for name in ("rows.parquet", "far.json", "found.json"))
    monkeypatch.setattr(sys, "argv", [
        "isochrone", "twin", "report", str(wanted), "--requests", "150", "--jobs", "1",
        "--out", str(page), "--parquet", str(table), "--progress-json", str(far),
        "--json", str(found),
    ])
    assert run() == 0
    assert decoded(ExperimentProgress, far.read_bytes(), "progress") == ExperimentProgress(
        done=4, of=4, what="runs"
    )
    told = decoded(ExperimentResults, found.read_bytes(), "results")
    assert told.title == "Small & quick"
    assert [row[told.columns.index("policy")] for row in told.rows] == ["ours", "nearest"] * 2
    assert told.findings
    rows = read_parquet(table)
    assert [(each["case"], each["policy"]) for each in rows] == [
        ("nothing", "ours"), ("nothing", "nearest"),
        ("largest site", "ours"), ("largest site", "nearest"),
    ]
    ours, lost = rows[0], rows[2]
    assert ours["broken"] == 0
    assert float(lost["slo_attainment"] or 0.0) < float(ours["slo_attainment"] or 0.0)
    text = page.read_text(encoding="utf-8")
    assert "Small &amp; quick" in text
    assert "<svg" in text
    assert "Reproduce" in text
    seen = _Asked()
    seen.feed(text)
    assert seen.asked == []
    assert "url(" not in text
    assert "@import" not in text
    printed = capsys.readouterr().out
    assert "largest site, ours" in printed


class _Asked(HTMLParser):
    """What a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked += [
            f"{tag} {name}" for name, value in attrs
            if name in ("src", "href", "srcset", "action") or "url(" in (value or "")
        ]
        if tag in ("script", "link", "img", "iframe", "object"):
            self.asked.append(tag)


def test_missed_and_met_targets_are_told_against_the_best_baseline() -> None:
    found = texts(results(
        "loads", row("ours", mean=130.0, p99=700.0), row("nearest", mean=200.0, p99=2000.0),
        row("llm_d", mean=120.0, p99=1000.0), row("campus", mean=1.0, p99=1.0),
        row("bound", mean=100.0, p99=500.0),
    ))
    assert [good for _, good in found] == [True, False, False]
    assert "the best baseline (llm_d) 1,000 ms: 0.70 x" in found[0][0]  # not the campus
    assert "1.30 x" in found[1][0]
    assert "w at 0.8 (mean, llm_d, 1.08 x)" in found[2][0]
    assert "p99" not in found[2][0].split("comparisons of mean and p99:")[1]


def test_the_way_alone_is_told_beside_the_bound() -> None:
    """At the speed of light; it is no target, so nothing is met or missed."""
    ours, bound = row("ours", mean=130.0, p99=700.0), row("bound", mean=100.0, p99=500.0)
    told = results("loads", ours, bound)
    light = Least(mean_ms=26.0, p50_ms=20.0, p90_ms=50.0, p99_ms=140.0)
    with_light = replace(told, outcomes=[
        replace(each, light=light if each.row.policy == "bound" else None)
        for each in told.outcomes
    ])
    (text, good), = [each for each in texts(with_light) if each not in texts(told)]
    assert good is None
    assert "26.0 ms in the mean and 140 ms at p99" in text
    assert "ours is 5.00 x and 5.00 x of that" in text


def test_fewer_gpus_meet_the_target_as_well_and_never_is_no_number() -> None:
    met = texts(results(
        "loads", row("ours", p99=990.0, gpus=8), row("nearest", p99=1000.0, gpus=10),
    ))
    assert met[0][1] is True
    unmet = texts(results("loads", row("ours", p99=None), row("nearest", p99=1000.0)))
    assert unmet[0][1] is False
    assert "p99 never" in unmet[0][0]
    assert unmet[-1][1] is False


def test_each_second_case_is_set_beside_the_one_before_it() -> None:
    outcomes = [
        Outcome(point=Point(case=case, varied={}), row=row("ours", mean=mean))
        for case, mean in (("a", 100.0), ("a, law", 200.0), ("b", 300.0), ("b, law", 400.0))
    ]
    found = texts(replace(results("pairs"), outcomes=outcomes))
    assert [text.split(",")[0] for text, _ in found] == ["a", "b"]
    assert "mean 400 ms (300 ms)" in found[1][0]
    every = texts(replace(results("cases"), outcomes=outcomes))
    assert "mean 400 ms (100 ms)" in every[-1][0]


def test_break_even_with_a_campus_lies_where_the_lines_cross() -> None:
    rows = []
    for load, ours, campus in ((0.4, 50.0, 100.0), (0.8, 150.0, 100.0)):
        rows += [
            row("ours", load=load, mean=ours, p99=10.0), row("campus", load=load, mean=campus)
        ]
    found = texts(results("campus", *rows))
    mean = next(text for text, _ in found if "mean of" in text)
    assert "break even at a load of about 0.60" in mean
    assert "distributed loses at 0.8" in mean
    assert any("sooner at every load" in text for text, _ in found if "p99 of" in text)


def test_the_load_for_a_share_lies_between_those_that_were_played() -> None:
    assert load_for([(0.4, 1.0), (0.6, 0.9)], 0.95) == pytest.approx(0.5)
    assert load_for([(0.4, 0.9)], 0.95) is None
    assert load_for([(0.4, 1.0), (0.6, 0.99)], 0.95) == 0.6


def test_the_smallest_fleet_is_found_from_any_beginning() -> None:
    asked: list[int] = []

    def keeps(replicas: int) -> bool:
        asked.append(replicas)
        return replicas >= 37

    for begin in (1, 36, 37, 64, 500):
        asked.clear()
        found = least_replicas(keeps, begin)
        if begin == 1:
            assert found is None  # eight times one are not enough
            continue
        assert found is not None
        assert 37 <= found <= 38
        assert len(asked) == len(set(asked)) <= 14
    assert least_replicas(lambda _: True, 5) == 1


def test_gpus_for_the_objective_are_fewer_where_more_are_there_than_needed() -> None:
    scenario = read_experiment(
        content_of("eight-sites"), source="eight-sites", change=lambda each: each
    ).settings[0].scenario
    [game] = games(scenario, ["least_outstanding"], [0.2], 150, 0.9)
    gpus = play(game).row.gpus_for_slo
    assert gpus is not None
    assert gpus < 16
    [harder] = games(scenario, ["least_outstanding"], [0.6], 150, 0.9)
    more = play(harder).row.gpus_for_slo
    assert more is None or more > gpus


def test_a_cluster_needs_ray_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r"isochrone\[ray\]"):
        play_all([], 1, lambda _: None, "auto")


def test_tenants_keep_to_their_countries_and_classes() -> None:
    read = read_experiment(
        {"experiment": {}, "scenario": {
            "hours": False, "fleet": {"engine_sites": 8, "replicas": 16}, "workload": {"load": 0.5},
            "tenant": [
                {"name": "free", "share": 0.5, "class": "batch"},
                {"name": "german", "share": 0.5, "clients": ["DE"], "class": "reserved",
                 "sold": 0.5},
            ],
        }}, source="x", change=lambda each: each,
    )
    game = Game(scenario=read.settings[0].scenario, policy="nearest", requests=300)
    ground = ground_of(game.scenario, game.requests)
    fleet = ground.world.fleet
    seen = set()
    for chunk in ground.arrivals():
        for each in chunk.rows():
            seen.add((each.tenant, each.class_))
            if each.tenant == 1:
                assert fleet.ingresses[each.ingress].country == "DE"
    assert seen == {(0, 2), (1, 0)}
    assert set(fleet.tenants[1].sold_tok_s) == set(range(8))
    assert not fleet.tenants[0].sold_tok_s
    summary = play(game).summary
    assert summary is not None
    assert sum(each.requests for each in summary.by_tenant) == summary.requests


def test_a_plan_is_what_is_played_then() -> None:
    read = read_experiment(content_of("losses"), source="losses", change=lambda each: each)
    plan = plan_of(read, "losses", 500)
    assert (plan.points, plan.runs, plan.requests) == (4, 20, 10_000)
    assert plan.runs == len(work_of(read, 500))
    assert (plan.loads, plan.policies[0]) == ((0.6,), "ours")
    assert "[experiment]" in plan.content
    small = plan_of(replace(read, settings=read.settings[:1]), "losses", 500)
    assert 0 < small.about_s < plan.about_s
    by_length = read_experiment(content_of("eight-sites"), source="x", change=lambda each: each)
    assert plan_of(by_length, "eight-sites", None).requests > 1000, "its rate for its length"


@pytest.mark.parametrize("key", ["workload.files", "sites", "rtt", "entries"])
def test_what_somebody_else_wrote_may_name_packaged_files_only(key: str) -> None:
    def read(file: str) -> Experiment:
        return read_experiment(
            content_of("eight-sites"), source="x", change=lambda each: each,
            vary={key: ([file] if key == "workload.files" else file,)},  # type: ignore[dict-item]
        )

    need_packaged(read("mooncake-conv.jsonl.gz"))
    for file in ("/etc/passwd", "../mooncake-conv.jsonl.gz", "nowhere.csv"):
        with pytest.raises(InvalidInput, match="is no packaged file"):
            need_packaged(read(file))


def test_a_document_and_a_page_have_the_same_findings() -> None:
    found = results("loads", row("ours"), row("nearest", p99=2000.0), row("bound", mean=90.0))
    document, page = markdown_of(found), page_of([found], [[0.0, 0.0, 1.0, 1.0]], ["Map: x."])
    assert "**Met.** w at load 0.8: p99 1,000 ms" in document
    assert "w at load 0.8: p99 1,000 ms" in page
    assert "Title &lt;b&gt;" in page
    assert json.dumps("| w | 0.80 | ours |")[1:-1] in document


def test_every_colour_of_a_page_is_said_for_light_and_for_dark() -> None:
    found = results("loads", row("ours"), row("nearest", p99=2000.0), row("bound", mean=90.0))
    page = page_of([found], [[0.0, 0.0, 1.0, 1.0]], ["Map: x."])
    used = set(re.findall(r"var\((--[a-z]+)\)", page))
    assert {"--text", "--own", "--bound"} <= used
    for colours in (LIGHT, DARK):
        assert used == set(re.findall(r"(--[a-z]+):#", colours))
    dark = page.count(DARK)
    assert dark == 2, "by the system, and by whoever shows it"


def test_what_is_lost_is_said_of_the_fleet_that_is_played() -> None:
    read = read_experiment(
        content_of("eight-sites"), source="eight-sites", change=lambda each: each
    )
    fleet = ground_of(read.settings[0].scenario, 10).world.fleet
    countries = [site.country for site in fleet.sites]
    some = countries[0] or ""

    def lost(plan: OutagePlan) -> tuple[Outage, ...]:
        return outages_of([plan], fleet, 100.0, 200.0)

    [site] = lost(OutagePlan(what="site", begin=0.4, end=0.7))
    counts = [sum(len(each) for each in models) for models in fleet.at]
    assert counts[site.number] == max(counts)
    assert (site.from_s, site.until_s) == (140.0, 170.0)
    assert lost(OutagePlan(what="site", begin=0.0, end=1.0, rank=99)) == ()
    country = lost(OutagePlan(what="country", begin=0.0, end=1.0, here=(some,)))
    assert [each.number for each in country] == [
        number for number, at in enumerate(countries) if at == some
    ]
    cut = {
        (each.ingress, each.number)
        for each in lost(OutagePlan(what="cable", begin=0.0, end=1.0, here=(some,)))
    }
    for ingress, at in enumerate(fleet.ingresses):
        for number, there in enumerate(countries):
            assert ((ingress, number) in cut) == ((at.country == some) != (there == some))
