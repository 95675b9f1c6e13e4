"""Rates that a gateway learns, and how far its predictions are off; docs/rates.md."""

from math import inf, nan

import pytest

from isochrone.core.estimate.calibration import Calibration
from isochrone.core.estimate.learned import LearnedRates
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName

MODEL = ModelName("tiny")
SEED = Rates(prefill_tok_s=1000.0, decode_tok_s=100.0)
HOUR_NS = 3_600_000_000_000


def test_the_table_counts_until_something_was_seen() -> None:
    assert LearnedRates().rates(MODEL, "h100", SEED) is SEED


def test_worked_example() -> None:
    """The table says 100 tokens/s; answers come at 50."""
    learned, seen = LearnedRates(), []
    for _ in range(40):
        learned.saw_decode(MODEL, "h100", SEED, 50.0)
        seen.append(round(learned.rates(MODEL, "h100", SEED).decode_tok_s, 1))
    assert seen[:3] == [90.5, 81.9, 74.2]
    assert seen[-1] == 50.0
    learned.fade(0)
    learned.fade(HOUR_NS)
    assert learned.rates(MODEL, "h100", SEED).decode_tok_s == pytest.approx(70.7, abs=0.1)
    assert learned.rates(MODEL, "h100", SEED).prefill_tok_s == 1000.0


def test_models_and_kinds_of_hardware_are_apart() -> None:
    learned = LearnedRates()
    learned.saw_prefill(MODEL, "h100", SEED, 5000.0)
    assert learned.rates(MODEL, "h100", SEED).prefill_tok_s > 1000.0
    assert learned.rates(MODEL, "a100", SEED) is SEED
    assert learned.rates(ModelName("other"), "h100", SEED) is SEED


def test_one_sample_moves_little_and_all_together_stay_within_a_factor() -> None:
    learned = LearnedRates()
    learned.saw_decode(MODEL, "h100", SEED, 1e12)
    assert learned.rates(MODEL, "h100", SEED).decode_tok_s == pytest.approx(110.5, abs=0.1)
    for _ in range(200):
        learned.saw_decode(MODEL, "h100", SEED, 1e12)
    assert learned.rates(MODEL, "h100", SEED).decode_tok_s == pytest.approx(800.0)
    for _ in range(400):
        learned.saw_decode(MODEL, "h100", SEED, 1e-12)
    assert learned.rates(MODEL, "h100", SEED).decode_tok_s == pytest.approx(12.5)


@pytest.mark.parametrize("tok_s", [0.0, -1.0, inf, nan])
def test_what_nothing_can_have_teaches_nothing(tok_s: float) -> None:
    learned = LearnedRates()
    learned.saw_prefill(MODEL, "h100", SEED, tok_s)
    assert learned.rates(MODEL, "h100", SEED) is SEED


def test_calibration_is_a_factor_and_a_side() -> None:
    calibration = Calibration()
    assert (calibration.error, calibration.bias) == (0.0, 0.0)
    for _ in range(10):
        calibration.saw(100.0, 200.0)
        calibration.saw(200.0, 100.0)
    assert calibration.error == pytest.approx(1.0)  # by a factor of 2
    assert calibration.bias == pytest.approx(0.0, abs=0.01)
    for _ in range(2000):
        calibration.saw(100.0, 125.0)
    assert calibration.error == pytest.approx(0.25, abs=0.01)
    assert calibration.bias == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("predicted", "actual"), [(0.0, 5.0), (5.0, 0.0), (nan, 5.0), (5.0, inf)])
def test_calibration_ignores_what_says_nothing(predicted: float, actual: float) -> None:
    calibration = Calibration()
    calibration.saw(predicted, actual)
    assert calibration.count == 0
