"""Replay: traces are read, fitted and turned into prompts; reports are held against the book."""

import asyncio
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from isochrone.adapters.packaged import bundled_trace
from isochrone.cli.replay import keep, new_run
from isochrone.core.errors import InvalidInput, NotFound, Unavailable
from isochrone.replay.client import Sent
from isochrone.replay.prompts import Calibration, Prompts, calibrate
from isochrone.replay.report import read_report, summarise
from isochrone.replay.scale import fit
from isochrone.replay.trace import Trace, parse_trace
from isochrone.replay.verify import BookedRow, verify

AZURE = b"""t_s,timestamp_utc,context_tokens,generated_tokens
0.0,x,374,44
4.5,x,396,109
2.0,x,1,1
"""
MOONCAKE = b"""{"timestamp": 0, "input_length": 1000, "output_length": 50, "hash_ids": [0, 1]}
{"timestamp": 1500, "input_length": 1500, "output_length": 9, "hash_ids": [0, 1, 2]}
"""


def bundled(name: str) -> Trace:
    path = bundled_trace(name)
    return parse_trace(path.read_bytes(), path.name)


def test_both_formats_are_recognised_plain_and_compressed() -> None:
    azure = parse_trace(AZURE, "a.csv")
    assert azure.format == "azure"
    assert [(r.at_s, r.input_tokens, r.output_tokens) for r in azure.rows] == [
        (0.0, 374, 44), (2.0, 1, 1), (4.5, 396, 109)
    ]
    mooncake = parse_trace(gzip.compress(MOONCAKE), "m.jsonl.gz")
    assert mooncake.format == "mooncake"
    assert mooncake.rows[1].at_s == 1.5
    assert mooncake.rows[1].blocks == (0, 1, 2)


def test_bad_rows_are_listed_and_left_out() -> None:
    trace = parse_trace(AZURE + b"5,x,12,\n6,x,0,5\nnan,x,3,4\n", "a.csv")
    assert len(trace.rows) == 3
    assert [problem.partition(":")[0] for problem in trace.bad] == [
        "a.csv, row 5", "a.csv, row 6", "a.csv, row 7"
    ]
    short = b'{"timestamp": 0, "input_length": 2000, "output_length": 5, "hash_ids": [1]}\n{oops\n'
    trace = parse_trace(MOONCAKE + short, "m.jsonl")
    assert len(trace.bad) == 2
    assert "1 block ids, but 2000 tokens" in trace.bad[0]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a,b\n1,2\n", "no known trace"),
        (b"", "no known trace"),
        (b"\xff\xfe", "no text"),
        (b"\x1f\x8bnonsense", "damaged gzip"),
        (b"t_s,context_tokens,generated_tokens\nx,y,z\n", "row 2"),
    ],
)
def test_what_is_no_trace_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        parse_trace(data, "file")


def test_a_window_starts_at_zero() -> None:
    window = parse_trace(AZURE, "a").window(start=1, limit=2)
    assert [row.at_s for row in window.rows] == [0.0, 2.5]
    with pytest.raises(InvalidInput, match="has 3 rows"):
        parse_trace(AZURE, "a").window(start=3)


def test_one_factor_fits_the_longest_row() -> None:
    trace = bundled("mooncake-conv-sample")
    scaled = fit(trace, context_tokens=2048, overhead_tokens=9)
    longest = max(row.input_tokens + row.output_tokens for row in trace.rows)
    assert scaled.factor == pytest.approx(2048 * 0.96 / longest, rel=1e-3)
    assert all(row.input_tokens + row.output_tokens <= 2048 for row in scaled.rows)
    assert scaled.clipped == ()
    assert all(row.block_ends[-1] <= row.input_tokens for row in scaled.rows)
    untouched = fit(parse_trace(AZURE, "a"), context_tokens=100_000)
    assert untouched.factor == 1.0
    assert untouched.lifted == untouched.clipped == ()


def test_rows_that_a_given_factor_does_not_fit_are_clipped_and_told() -> None:
    trace = parse_trace(AZURE, "a")
    scaled = fit(trace, context_tokens=400, factor=1.0, overhead_tokens=8)
    assert scaled.clipped == (2, 3)
    assert scaled.lifted == (4,)
    assert all(row.input_tokens + row.output_tokens <= 400 for row in scaled.rows)
    with pytest.raises(InvalidInput, match="too short"):
        fit(trace, context_tokens=5, overhead_tokens=8)


def test_prompts_share_what_was_recorded_and_nothing_else() -> None:
    trace = bundled("mooncake-conv-sample").window(limit=60)
    scaled = fit(trace, context_tokens=65_536, overhead_tokens=9)
    prompts = Prompts(Calibration(tokens_per_word=1.3, overhead_tokens=9))
    texts = [prompts.text(row).split() for row in scaled.rows]
    for text, row in zip(texts, scaled.rows, strict=True):
        assert len(text) == pytest.approx((row.input_tokens - 9) / 1.3, abs=1)
    for i, one in enumerate(scaled.rows):
        for j in range(i):
            other = scaled.rows[j]
            shared = 0
            for a, b in zip(one.blocks, other.blocks, strict=False):
                if a != b:
                    break
                shared += 1
            common = next(
                (k for k, (x, y) in enumerate(zip(texts[i], texts[j], strict=False)) if x != y),
                min(len(texts[i]), len(texts[j])),
            )
            ends = min(one.block_ends[shared - 1], other.block_ends[shared - 1]) if shared else 0
            assert common >= (ends - 9) / 1.3 - 1
            assert common <= ends / 1.3 + 12  # a few equal words by chance


def test_prompts_are_the_same_every_time_and_unique_without_blocks() -> None:
    scaled = fit(bundled("azure-conv-sample").window(limit=30), context_tokens=4096)
    calibration = Calibration(tokens_per_word=1.0, overhead_tokens=0)
    texts = [Prompts(calibration).text(row) for row in scaled.rows]
    assert texts == [Prompts(calibration).text(row) for row in scaled.rows]
    assert len({text[:100] for text in texts}) == len(texts)
    assert texts != [Prompts(calibration, seed=1).text(row) for row in scaled.rows]


def test_calibration_finds_tokens_a_word_and_the_template() -> None:
    async def count(text: str) -> int:
        return 11 + round(1.25 * len(text.split()))

    found = asyncio.run(calibrate(count))
    assert found == Calibration(tokens_per_word=1.25, overhead_tokens=11)

    async def stuck(text: str) -> int:
        return 7

    with pytest.raises(Unavailable, match="cannot be calibrated"):
        asyncio.run(calibrate(stuck))


def test_unknown_bundled_traces_are_named() -> None:
    with pytest.raises(NotFound, match="azure-conv, mooncake-conv-sample, mooncake-conv"):
        bundled_trace("nothing")


def a_sent(row: int, **changes: object) -> Sent:
    sent = Sent(
        row=row, client_request_id=f"replay-x-{row}", sent=True, ingress="sydney",
        request_id=f"id-{row}", site="sydney", country="AU", status=200, error=None, at_s=0.0,
        late_ms=0.1, ttft_ms=10.0 * row, total_ms=20.0 * row, wanted_input_tokens=10,
        wanted_output_tokens=5, input_tokens=10, cached_tokens=4, output_tokens=5,
    )
    return replace(sent, **changes)  # type: ignore[arg-type]


def booked(row: int, **changes: object) -> BookedRow:
    fields: dict[str, object] = {
        "id": f"id-{row}", "client_request_id": f"replay-x-{row}", "input_uncached": 6,
        "input_cached": 4, "output": 5,
    }
    return BookedRow(**(fields | changes))  # type: ignore[arg-type]


def test_reports_count_and_come_back_from_json() -> None:
    trace = parse_trace(AZURE, "a")
    sent = [
        a_sent(1), a_sent(2, site="frankfurt"),
        a_sent(3, error="status_503:no_ready_replica", site=None, status=503),
    ]
    scaled = fit(trace, context_tokens=4096)
    report = summarise(
        sent, run="x", trace=trace, scaled=scaled, model="m", speed=1.0, wall_s=2.0
    )
    assert report.errors == {"status_503:no_ready_replica": 1}
    assert (report.whole.requests, report.whole.finished) == (3, 2)
    assert report.whole.ttft_ms.p50 == 15.0
    assert [(g.name, g.requests) for g in report.by_site] == [
        ("-", 1), ("frankfurt", 1), ("sydney", 1)
    ]
    assert report.whole.output_tok_s == 7.5
    assert report.cached_share == 0.4
    assert read_report(report.json()) == report


def test_the_book_is_compared_request_by_request() -> None:
    trace = parse_trace(AZURE, "a")
    sent = [
        a_sent(1), a_sent(2), a_sent(3),
        a_sent(4, error="lost", request_id=None, status=0),
        a_sent(5, error="lost", request_id=None, status=0),
        a_sent(6, error="no_ingress", sent=False, request_id=None, status=0),
        a_sent(7),
        a_sent(8, error="status_503:starting", status=503),
    ]
    report = summarise(
        sent, run="x", trace=trace, scaled=fit(trace, context_tokens=4096), model="m",
        speed=1.0, wall_s=2.0,
    )
    rows = [
        booked(1), booked(2), booked(2, id="other"), booked(3, output=6), booked(4),
        booked(9), booked(0, client_request_id="replay-x-probe"),
        booked(0, id="foreign", client_request_id="somebody-else"),
    ]
    verdict = verify(report, rows)
    assert not verdict.agrees
    assert verdict.lost == ("replay-x-7",)
    assert verdict.double == ("replay-x-2",)
    assert verdict.unlike == ("replay-x-3",)
    assert verdict.unheard == ("replay-x-5",)
    assert verdict.turned_away == ("replay-x-8",)
    assert verdict.unknown == ("replay-x-9",)
    good = summarise(
        sent[:1], run="x", trace=trace, scaled=fit(trace, context_tokens=4096), model="m",
        speed=1.0, wall_s=2.0,
    )
    assert verify(good, rows[:1]).agrees


def test_requests_whose_own_id_the_book_may_not_have_are_found_by_the_answers_id() -> None:
    trace = parse_trace(AZURE, "a")
    report = summarise(
        [a_sent(1), a_sent(2), a_sent(3)], run="x", trace=trace,
        scaled=fit(trace, context_tokens=4096), model="m", speed=1.0, wall_s=2.0,
    )
    rows = [booked(row, client_request_id=None) for row in (1, 2, 3)]
    assert verify(report, rows).agrees
    wrong = verify(report, [rows[0], rows[0], booked(2, client_request_id=None, output=6)])
    assert (wrong.double, wrong.unlike, wrong.lost) == (
        ("replay-x-1",), ("replay-x-2",), ("replay-x-3",)
    )
    assert wrong.unknown == ()


def test_a_result_that_cannot_be_written_is_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = parse_trace(AZURE, "a")
    report = summarise(
        [a_sent(1)], run="x", trace=trace, scaled=fit(trace, context_tokens=4096), model="m",
        speed=1.0, wall_s=2.0,
    )
    with pytest.raises(InvalidInput, match="cannot be written: File name too long"):
        keep(report, tmp_path / ("x" * 250), as_json=False)
    shown = capsys.readouterr().out
    assert "sydney" in shown
    assert "written to" not in shown
    with pytest.raises(InvalidInput):
        keep(report, tmp_path / ("x" * 250), as_json=True)
    assert read_report(capsys.readouterr().out.encode()) == report
    keep(report, tmp_path / "good.json", as_json=False)
    assert read_report((tmp_path / "good.json").read_bytes()) == report


def test_two_replays_that_begin_at_once_have_names_of_their_own() -> None:
    assert len({new_run() for _ in range(20)}) == 20
