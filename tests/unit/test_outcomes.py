"""What a gateway learns from requests that ended."""

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from isochrone.core.estimate.learned import LearnedRates
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.choice import Foretold
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.table import RoutingTable, compile_table
from isochrone.core.world.site import Hardware
from isochrone.gateway.outcomes import Outcomes
from isochrone.wire.usage import DecisionRecord, UsageRecord
from tests.builders import (
    MODEL,
    a_choice,
    a_digest,
    a_load,
    a_site,
    a_table,
    a_view,
    some_blocs,
)

SEED = Rates(prefill_tok_s=1000.0, decode_tok_s=100.0)


@dataclass
class Viewing:
    """The far site is 50 ms away and has H100s, of which the hardware table says `SEED`."""

    table: RoutingTable


def a_viewing() -> Viewing:
    far = replace(a_site("far"), hardware=(Hardware(kind="h100"),))
    view = a_view([a_site("here"), far], rtt_ms={"far": 50.0})
    return Viewing(compile_table(view, some_blocs(), {"h100": SEED}))


def a_decision(*, queue_ms: float = 0.0, predicted_ms: float = 150.0) -> DecisionRecord:
    return DecisionRecord(
        "g", 0, b"", b"", 100.0, 0.0, 0.0, predicted_ms, 151.0, (), chosen_queue_ms=queue_ms
    )


def a_record(**changed: Any) -> UsageRecord:
    """100 prompt tokens read within 100 ms of a request sent after 1 ms over a way of 50 ms; then
    50 more tokens at 49 a second."""
    fields: dict[str, Any] = {
        "request_id": "r", "org_id": "o", "project_id": "p", "key_id": "k",
        "client_request_id": None, "endpoint": "chat.completions", "stream": True,
        "class_": "on_demand", "model": MODEL, "revision": None, "ingress_site": "here",
        "ingress_country": None, "serving_site": "far", "serving_country": None, "replica": None,
        "received_at": 0, "finished_at": 0, "chosen_ms": 0.5, "sent_ms": 1.0,
        "first_byte_ms": 151.0, "total_ms": 1151.0, "input_uncached": 100, "input_cached": 0,
        "output": 50, "token_source": "engine", "outcome": "finished", "status": 200,
        "reason": None, "reporter": "ingress", "attempts": 1, "decision": a_decision(),
    }
    return UsageRecord(**(fields | changed))


def learned_from(*records: UsageRecord) -> tuple[Rates, Outcomes]:
    learned = LearnedRates()
    outcomes = Outcomes(learned, a_viewing())
    for record in records:
        outcomes.ended(record)
    outcomes.learn(0)
    return learned.rates(MODEL, "h100", SEED), outcomes


def test_rates_are_learned_from_when_bytes_came() -> None:
    rates, _ = learned_from(*[a_record()] * 100)
    assert rates.prefill_tok_s == pytest.approx(1000.0)
    assert rates.decode_tok_s == pytest.approx(49.0, rel=0.01)
    late = a_record(first_byte_ms=251.0, total_ms=1251.0)
    assert learned_from(*[late] * 100)[0].prefill_tok_s == pytest.approx(500.0, rel=0.01)


@pytest.mark.parametrize("changed", [
    {"stream": False}, {"attempts": 2}, {"outcome": "client_gone"}, {"serving_site": None},
    {"serving_site": "elsewhere"}, {"first_byte_ms": None},
])
def test_what_cannot_tell_teaches_nothing(changed: dict[str, Any]) -> None:
    assert learned_from(a_record(**changed))[0] == SEED


def test_answers_that_are_written_at_once_do_not_say_how_fast_one_is() -> None:
    learned = LearnedRates()
    outcomes = Outcomes(learned, a_viewing())
    for _ in range(100):
        outcomes.ended(a_record(output=4 * 50), 4)
    outcomes.learn(0)
    assert learned.rates(MODEL, "h100", SEED) == SEED


def test_a_queue_a_short_prompt_and_a_short_answer_say_nothing_of_rates() -> None:
    late: dict[str, Any] = {"first_byte_ms": 900.0, "total_ms": 1900.0}
    queued, _ = learned_from(a_record(decision=a_decision(queue_ms=5.0), **late))
    assert (queued.prefill_tok_s, queued.decode_tok_s < 100.0) == (1000.0, True)
    assert learned_from(a_record(input_uncached=63, **late))[0].prefill_tok_s == 1000.0
    assert learned_from(a_record(output=15))[0].decode_tok_s == 100.0


def test_a_wait_at_another_sites_queue_is_not_taken_for_reading_or_writing() -> None:
    late: dict[str, Any] = {"first_byte_ms": 900.0, "total_ms": 1900.0}
    waited = msgspec.structs.replace(a_decision(), queued_ms=749.0)
    rates, _ = learned_from(a_record(decision=waited, **late))
    assert (rates.prefill_tok_s, rates.decode_tok_s < 100.0) == (1000.0, True)
    # What waited here was over when the request was sent.
    own = a_record(decision=waited, ingress_site="far", **late)
    assert learned_from(own)[0].prefill_tok_s < 1000.0
    # A stream of this class may have been stopped in its middle, and nobody says so here.
    paused = {"class_": "batch", "total_ms": 30_151.0}
    assert learned_from(a_record(**paused))[0].decode_tok_s == 100.0
    assert learned_from(a_record(ingress_site="far", **paused))[0].decode_tok_s < 100.0


def test_how_far_predictions_were_off_is_told_by_model() -> None:
    _, outcomes = learned_from(
        a_record(decision=a_decision(predicted_ms=75.5)), a_record(model=ModelName("made up"))
    )
    assert list(outcomes.calibrations) == [MODEL]
    assert outcomes.calibrations[MODEL].error == pytest.approx(1.0)
    assert outcomes.calibrations[MODEL].bias == pytest.approx(1.0)


def test_a_stream_that_went_on_elsewhere_judges_each_sites_prediction_by_its_own_first_token(
) -> None:
    first = Foretold(
        site=SiteName("far"), since_ms=0.0, predicted_ttft_ms=151.0, actual_ttft_ms=151.0
    )
    went_on = msgspec.structs.replace(
        a_decision(predicted_ms=50.0), actual_ttft_ms=100.0, since_ms=900.0, foretold=(first,)
    )
    rates, outcomes = learned_from(a_record(attempts=2, decision=went_on))
    calibration = outcomes.calibrations[MODEL]
    assert calibration.count == 2
    assert calibration.bias == pytest.approx(2**0.5 - 1)  # exactly right, and twice as late
    assert rates == SEED, "no rate follows from it"
    # Of a third try, that failed before its first token, nobody can say what was predicted.
    assert not learned_from(a_record(attempts=3, decision=went_on))[1].calibrations[MODEL].count
    nobody = msgspec.structs.replace(
        went_on, chosen=-1, predicted_ttft_ms=None, actual_ttft_ms=None
    )
    lost = a_record(attempts=1, decision=nobody, outcome="engine_lost")
    assert learned_from(lost)[1].calibrations[MODEL].count == 1


def test_what_was_learned_counts_where_a_digest_has_no_rates() -> None:
    view = a_view([a_site("ingress"), a_site("a"), a_site("b")], serving=["a", "b"])
    table, loads = a_table(view), Loads()
    unmeasured = replace(a_load(), prefill_tok_s=0.0, decode_tok_s=0.0)
    loads.heard(a_digest("a", unmeasured), 0)
    loads.heard(a_digest("b", a_load(prefill_tok_s=400.0)), 0)
    assert a_choice(table, loads, target_ms=0).site == "b"  # of unknown hardware: 200 tokens/s
    seed = next(each.seed for each in table.opens if each.name == "a")
    for _ in range(50):
        loads.learned.saw_prefill(MODEL, "", seed, 1000.0)
    loads.heard(a_digest("a", unmeasured, sequence=2), 0)
    assert a_choice(table, loads, target_ms=0).site == "a"
