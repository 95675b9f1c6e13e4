"""The committed fit of engines against a committed excerpt of what was measured."""

import csv
from pathlib import Path
from statistics import median

import pytest

from isochrone.adapters.packaged import load_engine_rates
from isochrone.core.estimate.engine_rates_table import (
    EngineRates,
    decode_s,
    described,
    prefill_s,
    row_of,
)

EXCERPT = Path(__file__).parent / "excerpts" / "engine_measurements.csv"
TABLE = load_engine_rates()
MEASURED = [each for each in TABLE if each.table != "derived"]


def points() -> dict[tuple[str, str, str, int], list[dict[str, str]]]:
    found: dict[tuple[str, str, str, int], list[dict[str, str]]] = {}
    with EXCERPT.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            key = (row["table"], row["hardware"], row["model"], int(row["gpus"]))
            found.setdefault(key, []).append(row)
    return found


def judged(key: tuple[str, str, str, int]) -> EngineRates:
    return next(
        each for each in TABLE
        if (each.table, each.hardware, each.model, each.gpus) == key and each.engine == "vllm"
    )


def errors(fit: EngineRates, rows: list[dict[str, str]], what: str) -> list[float]:
    found = []
    for row in rows:
        prompt, batch, output = int(row["prompt"]), int(row["batch"]), int(row["output"])
        if row["what"] != what or (what == "prefill" and batch > 1):
            continue
        seconds = prefill_s(fit, prompt, batch) if what != "decode" else 0.0
        seconds += decode_s(fit, prompt, batch, output) if what != "prefill" else 0.0
        found.append(abs(seconds / float(row["seconds"]) - 1.0))
    return found


@pytest.mark.parametrize("key", sorted(points()), ids=lambda key: "-".join(map(str, key)))
def test_the_fit_meets_the_measurements_as_closely_as_it_says(
    key: tuple[str, str, str, int]
) -> None:
    fit, rows = judged(key), points()[key]
    assert fit.decode_error is not None
    writing = errors(fit, rows, "decode") or errors(fit, rows, "whole")
    assert len(writing) >= 4
    assert median(writing) < fit.decode_error + 0.02
    if fit.prefill_error is not None:
        reading = errors(fit, rows, "prefill")
        assert len(reading) >= 4
        assert median(reading) < fit.prefill_error + 0.06


def test_every_table_states_its_error_and_none_is_useless() -> None:
    assert len(MEASURED) > 60
    for each in MEASURED:
        assert each.decode_error is not None
        assert max(each.decode_error, each.prefill_error or 0.0) <= 0.3
    for table, most in (("splitwise", 0.05), ("sageserve", 0.03), ("llm-inference-bench", 0.15)):
        of_table = [each for each in MEASURED if each.table == table]
        assert median(each.decode_error or 0.0 for each in of_table) < most


def test_a_newer_chip_is_faster_and_more_of_them_too() -> None:
    derived = {
        (each.hardware, each.model, each.gpus): each for each in TABLE if each.table == "derived"
    }
    old, new = (
        derived[chip, "llama3-8b", 1] for chip in ("A100-SXM4-80GB", "B200-SXM-180GB")
    )
    assert new.prefill_tok_s > 3 * old.prefill_tok_s
    assert new.step_ms < old.step_ms / 3
    four, eight = (derived["H100-SXM5-80GB", "llama3-70b", gpus] for gpus in (4, 8))
    assert eight.step_ms == pytest.approx(four.step_ms / 2, rel=0.01)
    physics = eight.physics(slots=64)
    assert physics.kv_tokens == eight.kv_tokens > four.kv_tokens
    assert physics.decode_step_s(1, 0) == pytest.approx(1 / eight.stated.decode_tok_s)


def test_a_row_says_how_well_it_is_known() -> None:
    def told(hardware: str, precision: str) -> str:
        row = row_of(TABLE, hardware, "llama3-8b", 1, precision)
        assert row is not None
        return described(row)

    assert told("H100-SXM5-80GB", "bf16") == (
        "vllm with llama3-8b on 1 x H100-SXM5-80GB in bf16: by llm-inference-bench, "
        "fitted within 1.3%"
    )
    assert told("H100-SXM5-80GB", "fp8").endswith(
        "by mlperf, fitted within 0.0%, predicted without it within 16.4%"
    )
    assert "nobody measured it" in told("H200-SXM-141GB", "bf16")


def test_a_prompt_takes_longer_the_more_of_it_was_read() -> None:
    row = row_of(TABLE, "B200-SXM-180GB", "llama3-70b", 1, "fp4")
    assert row is not None
    one, two = prefill_s(row, 16_384, 1), prefill_s(row, 32_768, 1)
    assert one == pytest.approx(
        16_384 / row.prefill_tok_s + row.prefill_context_us / 1e6 * 16_384**2 / 2
    )
    assert two > 2.2 * one
    physics = row.physics(slots=8)
    assert physics.read_tokens(32_768, 0) / physics.prefill_tok_s == pytest.approx(two)
