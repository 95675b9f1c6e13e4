"""How many requests an engine takes at once: its slots, or what its memory holds, if that is less.

Long answers fill the memory of an engine long before its slots. Then it lets requests wait, for
seconds, although slots are free; so they are better kept from it, or sent elsewhere, before.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from isochrone.core.ids import ModelName
from isochrone.core.world.digest import ReplicaLoad
from isochrone.core.world.engine_load import EngineLoad

GUESSED: Final = 4.0  # requests, that what is guessed of one's size is worth beside those that run


def usual_tokens(loads: Iterable[EngineLoad | ReplicaLoad], guess_tokens: float = 0.0) -> float:
    """What a request holds of the memory of these engines, in the mean of those that run; a few
    large ones are no rule beside a guess. 0 while nothing is known."""
    requests = GUESSED if guess_tokens > 0.0 else 0.0
    tokens = requests * guess_tokens
    for load in loads:
        if load.running and load.held_tokens:
            requests += load.running
            tokens += load.held_tokens
    return tokens / requests if requests > 0.0 else 0.0


def usual_by_model(loads: Sequence[ReplicaLoad]) -> dict[ModelName, float]:
    """The same for each model of a site, as far as its digest says."""
    models = {load.model for load in loads}
    return {
        model: usual_tokens([load for load in loads if load.model == model]) for model in models
    }


def room(slots: int, load: EngineLoad | ReplicaLoad, usual: float) -> int:
    """How many requests it takes at once, those that run included, if each more holds `usual`
    tokens of its memory; `slots` where it does not say how full that is. At least 1."""
    if not load.kept_tokens or load.held_tokens is None or usual <= 0.0:
        return slots
    free_tokens = max(load.kept_tokens - load.held_tokens, 0)
    return max(min((load.running or 0) + int(free_tokens / usual), slots), 1)
