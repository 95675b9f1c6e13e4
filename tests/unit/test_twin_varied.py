"""Experiments in which more than the load is varied: each point is judged, and told from others."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from isochrone.adapters.parquet.tables import read_parquet
from isochrone.cli.twin_shown import print_rows
from isochrone.twin.experiments.experiment import (
    Cell,
    Outcome,
    Place,
    Point,
    Results,
    View,
)
from isochrone.twin.experiments.findings import findings_of
from isochrone.twin.fast.rows import Row
from isochrone.twin.report.page import page_of
from isochrone.twin.report.words import columns_of, markdown_of, rows_of
from isochrone.wiring.twin_comparison import Played
from isochrone.wiring.twin_report import write_table

RINGS = [[0.0, 0.0, 1.0, 1.0]]


def outcome(
    policy: str, varied: Mapping[str, Cell], *, case: str = "", load: float = 0.8,
    p99: float | None = 1000.0, in_time: float = 1.0, tenant: str = "",
) -> Outcome:
    return Outcome(
        point=Point(case=case, varied=varied), tenant=tenant, requests=5_000,
        row=Row(
            workload="w", load=load, policy=policy, ttft_ms_mean=p99, ttft_ms_p50=p99,
            ttft_ms_p90=p99, ttft_ms_p99=p99, slo_attainment=in_time, goodput_rps=1.0, hit_rate=0.5,
            cross_border_bytes=None, gpus_for_slo=None,
        ),
    )


def results(view: View, *outcomes: Outcome) -> Results:
    return Results(
        name="x", title="Title", question="Why?", view=view, command="isochrone twin x",
        commit="abc", requests=10, outcomes=outcomes,
    )


def texts(view: View, *outcomes: Outcome) -> list[str]:
    return [each.text for each in findings_of(results(view, *outcomes))]


FLEETS = [
    outcome(policy, {"fleet.replicas": replicas, "workload.load": 0.8}, p99=p99)
    for replicas, ours_ms in ((8, 2000.0), (16, 500.0))
    for policy, p99 in (("ours", ours_ms), ("nearest", 1000.0))
]


def test_who_never_answers_misses_for_a_reason_as_well() -> None:
    """The bound was played, although there is no share of it to be told."""
    played = [
        outcome("ours", {}, p99=None), outcome("nearest", {}), outcome("bound", {}, p99=100.0),
    ]
    text = texts("loads", *played)[0]
    assert text.endswith("; what no policy can beat is 0.10 x, the best that any reached 1.00 x")
    text = texts("loads", *played, outcome("all_seeing", {}, p99=200.0))[0]
    assert "; who sees every engine at every instant has 0.20 x" in text


def test_each_point_is_judged_whatever_else_is_varied() -> None:
    few, many, worse = texts("loads", *FLEETS)
    assert few.startswith("w, fleet.replicas=8 at load 0.8: p99 2,000 ms")
    assert many.startswith("w, fleet.replicas=16 at load 0.8: p99 500 ms")
    assert "in 2 of 4 comparisons" in worse, "the mean and the p99 of the small fleet"
    assert "w, fleet.replicas=8 at 0.8 (p99, nearest, 2.00 x)" in worse


def test_rows_charts_and_documents_say_what_was_varied() -> None:
    found = results("loads", *FLEETS)
    columns = columns_of(found)
    at = [column.title for column in columns].index("fleet.replicas")
    assert [cells[at] for _, cells in rows_of(found, columns)] == ["8", "8", "16", "16"]
    assert "workload.load" not in [column.title for column in columns], "each row has its load"
    assert "| fleet.replicas |" in markdown_of(found)
    page = page_of([found], RINGS, ["Map: x."])
    for replicas, p99 in ((8, "2,000"), (16, "500")):
        assert f"<title>fleet.replicas={replicas}, ours: {p99}</title>" in page
    loads = results("loads", *FLEETS, *(replace(
        each, row=replace(each.row, load=0.4),
        point=Point(case="", varied={**each.point.varied, "workload.load": 0.4}),
    ) for each in FLEETS))
    page = page_of([loads], RINGS, ["Map: x."])
    for replicas in (8, 16):
        assert f"<h3>w, fleet.replicas={replicas}: within the objective</h3>" in page


def test_a_map_says_what_its_circles_are() -> None:
    def heading(*outcomes: Outcome) -> str:
        place = Place(name="a", country="DE", latitude_deg=50.0, longitude_deg=9.0, replicas=3)
        page = page_of([replace(results("loads", *outcomes), places=(place,))], RINGS, ["Map: x."])
        return page[page.index("Where it runs"):].partition("</h3>")[0]

    ours, other = (replace(outcome(name, {}), by_site=(7,)) for name in ("ours", "nearest"))
    assert "by what they served" in heading(other, ours)
    assert "by their replicas" in heading(other), "only ours is drawn"


def test_a_case_is_set_beside_the_one_that_differs_in_nothing_else() -> None:
    found = texts("cases", *(
        outcome("ours", {"seed": seed}, case=case, p99=p99)
        for case, of_seed in (("nothing", (100.0, 200.0)), ("lost", (300.0, 400.0)))
        for seed, p99 in zip((1, 2), of_seed, strict=True)
    ))
    assert found[0].startswith("lost, seed=1, ours:")
    assert found[1].startswith("lost, seed=2, ours:")
    assert "p99 300 ms (100 ms)" in found[0]
    assert "p99 400 ms (200 ms)" in found[1]


def test_a_page_has_each_tenant_at_each_load() -> None:
    page = page_of([results("tenants", *(
        outcome("ours", {"workload.load": load}, case="law", load=load, in_time=load, tenant=tenant)
        for load in (0.4, 0.8) for tenant in ("bound", "free", "")
    ))], RINGS, ["Map: x."])
    assert "<title>law load 0.4, bound: 40</title>" in page
    assert "<title>law load 0.8, bound: 80</title>" in page


def test_what_nobody_counts_of_a_tenant_is_not_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_table(results("tenants", outcome("ours", {}), outcome("ours", {}, tenant="a")), path)
    whole, own = read_parquet(path)
    assert (whole["goodput_rps"], whole["hit_rate"]) == (1.0, 0.5)
    assert (own["goodput_rps"], own["hit_rate"]) == (None, None)
    assert own["slo_attainment"] == 1.0


def test_never_is_later_than_any_time_beside_a_campus() -> None:
    def verdict(*points: tuple[float | None, float | None]) -> str:
        found = texts("campus", *(
            outcome(policy, {}, load=place / 10, p99=p99)
            for place, pair in enumerate(points, start=1)
            for policy, p99 in zip(("ours", "campus"), pair, strict=True)
        ))
        return next(text for text in found if "p99 of" in text)

    assert "none of the two is sooner at any load" in verdict((None, None), (None, None))
    assert "distributed is sooner at 0.2, and none" in verdict((None, None), (1.0, None))
    assert "distributed is sooner at every load" in verdict((1.0, 2.0), (1.0, None))
    beaten = verdict((2.0, 1.0), (2.0, None))
    assert "LOSES at every load" not in beaten
    assert "distributed loses at 0.1" in beaten
    assert "LOSES at every load" in verdict((2.0, 1.0), (None, 1.0))


def test_charts_say_never_where_nothing_ever_came() -> None:
    page = page_of([results("cases", *(
        outcome(policy, {}, case=case, p99=p99)
        for case, policy, p99 in (
            ("nothing", "ours", 100.0), ("nothing", "campus", 90.0), ("lost", "ours", None)
        )
    ))], RINGS, ["Map: x."])
    assert "<title>nothing, ours: 100</title>" in page
    assert "<title>lost, ours: never</title></rect><text" in page
    assert "lost, campus" not in page, "it was not played there"
    page = page_of([results("loads", *(
        outcome("ours", {}, load=load, p99=p99) for load, p99 in ((0.4, 10.0), (0.9, None))
    ))], RINGS, ["Map: x."])
    assert "<title>ours at 0.9: never</title></path>" in page
    gone = page_of([results("cases", outcome("ours", {}, p99=None))], RINGS, ["Map: x."])
    assert "Nothing to draw: never, all of them." in gone


def test_gpus_that_were_looked_for_and_not_found_are_told(
    capsys: pytest.CaptureFixture[str]
) -> None:
    found = results("cases", outcome("ours", {}))
    assert "GPUs for SLO" not in [each.title for each in columns_of(found)]
    sought = replace(found, slo_share=0.95)
    columns = columns_of(sought)
    assert columns[-1].title == "GPUs for SLO"
    assert rows_of(sought, columns)[0][1][-1] == "none found"
    played = [Played(row=found.outcomes[0].row, summary=None)]
    print_rows(played)
    assert "GPUs for SLO" not in " ".join(capsys.readouterr().out.split())
    print_rows(played, sized=True)
    shown = capsys.readouterr().out
    assert "GPUs for SLO" in " ".join(shown.split())
    assert "none found" in shown


def test_what_is_nearly_all_is_not_called_all(capsys: pytest.CaptureFixture[str]) -> None:
    nearly = results("cases", outcome("ours", {}, case="a"), outcome(
        "ours", {}, case="b", in_time=0.9996
    ))
    assert "in time > 99.9 % (without: 100.0 %)" in findings_of(nearly)[0].text
    told = [cells for _, cells in rows_of(nearly, columns_of(nearly))]
    assert ["100.0 %" in told[0], "100.0 %" in told[1]] == [True, False]
    assert "> 99.9 %" in told[1]
    print_rows([Played(row=nearly.outcomes[1].row, summary=None)])
    shown = capsys.readouterr().out
    assert "> 99.9 %" in shown
    assert "100.0 %" not in shown
