"""How many requests an engine takes at once, by its slots and by what its memory holds."""

from dataclasses import replace

import pytest

from isochrone.core.estimate.engine_rates import seeded
from isochrone.core.estimate.room import room, usual_by_model, usual_tokens
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.world.digest import ReplicaLoad
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from tests.builders import MODEL


def engine(
    running: int | None = 0, *, waiting: int = 0, kept: int | None = 10_000, held: int | None = 0
) -> EngineLoad:
    return replace(
        UNKNOWN_LOAD, running=running, waiting=waiting, kept_tokens=kept, held_tokens=held
    )


@pytest.mark.parametrize(("load", "usual", "takes"), [
    (engine(0), 1_000.0, 10),
    (engine(3, held=3_000), 1_000.0, 10),    # as many as before, while they are usual
    (engine(3, held=9_500), 1_000.0, 3),     # three long ones: none fits beside them
    (engine(3, held=3_000), 100.0, 16),      # slots are fewer than memory holds
    (engine(0, held=10_000), 1_000.0, 1),    # somebody has to try
    (engine(2, held=12_000), 1_000.0, 2),    # what cannot be: more than there is
    (engine(None, held=3_000), 1_000.0, 7),  # nobody says how many run
    (engine(3, kept=None, held=3_000), 1_000.0, 16),
    (engine(3, held=None), 1_000.0, 16),
    (engine(3, held=9_500), 0.0, 16),        # nobody knows what one takes
])
def test_memory_holds_what_is_free_over_what_one_takes(
    load: EngineLoad, usual: float, takes: int
) -> None:
    assert room(16, load, usual) == takes


def test_a_few_large_ones_are_no_rule_beside_a_guess() -> None:
    one, many = engine(1, held=9_000), engine(36, held=36 * 2_000)
    assert usual_tokens([one]) == 9_000.0
    assert usual_tokens([one], 500.0) == (4 * 500 + 9_000) / 5
    assert usual_tokens([one, many], 500.0) == (4 * 500 + 9_000 + 72_000) / 41
    assert usual_tokens([engine(0), engine(4, held=None)]) == 0.0
    assert usual_tokens([], 500.0) == 500.0


def test_models_of_a_site_are_of_their_own_size() -> None:
    def said(model: str, running: int, held: int) -> ReplicaLoad:
        return ReplicaLoad(
            id=f"{model}{running}", model=ModelName(model), generation=1, state="ready", pid=None,
            running=running, waiting=0, restarts=0, prompt_tokens_total=None,
            cached_tokens_total=None, output_tokens_total=None, kept_tokens=10_000,
            held_tokens=held,
        )

    loads = [said("a", 1, 400), said("a", 3, 800), said("b", 2, 4_000), said("c", 0, 0)]
    assert usual_by_model(loads) == {"a": 300.0, "b": 2_000.0, "c": 0.0}


def test_a_digest_has_no_more_slots_than_memory_holds() -> None:
    """Two replicas of 64 slots; each has memory for ten requests of 1,000 tokens."""
    known = seeded(Rates(prefill_tok_s=2_000.0, decode_tok_s=50.0))  # 640 tokens are usual
    half = replace(engine(5, held=5_000), running_prompt_tokens=0)
    full = replace(engine(10, held=9_990), running_prompt_tokens=0)
    usual = (4 * 640 + 14_990) / 19

    def said(*loads: EngineLoad) -> tuple[int, int | None]:
        found = load_of(MODEL, [Reading(slots=64, load=each, arrived=1.0) for each in loads], known)
        return found.slots, found.free

    assert said(half, full) == (5 + int(5_000 / usual) + 10, 1)
    untold = replace(full, held_tokens=None)
    assert said(half, untold)[0] > 64
