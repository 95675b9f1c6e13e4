"""What a site says of one model in its digest: the sums over what its engines' counters told."""

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

from isochrone.core.estimate.engine_rates import (
    Learned,
    pending_output_tokens,
    pending_prompt_tokens,
)
from isochrone.core.estimate.room import room, usual_tokens
from isochrone.core.estimate.service import Rates, Servers, Work, prefill_ms
from isochrone.core.ids import ModelName
from isochrone.core.routing.credits import spare_requests
from isochrone.core.world.digest import DeploymentLoad
from isochrone.core.world.engine_load import EngineLoad
from isochrone.core.world.model import COMMON_ENDPOINTS, Endpoint

MOST: Final = 2.0**53  # tokens or ms that are told; more is no engine's work
LITTLE: Final = 0.1  # of a usual prompt: less than this still to be read keeps nobody waiting


class Reading(NamedTuple):
    """One ready replica: how many requests it takes at once, what its counters said last, and how
    many requests a second came to it lately (None where they do not tell)."""

    slots: int
    load: EngineLoad
    arrived: float | None


def load_of(
    model: ModelName, ready: Sequence[Reading], known: Learned, *, revision: str | None = None,
    endpoints: tuple[Endpoint, ...] = COMMON_ENDPOINTS, queued: Work | None = None,
    pushed: float = 0.0,
) -> DeploymentLoad:
    """Sum over the ready replicas of one model, and what is `queued` for them at the site's
    gateways. What an engine does not state counts as 0: the ingress corrects by its own dispatches.
    `pushed`: requests a second that came past a nearer site.
    """
    if queued is None:
        queued = Work()
    prompt_tokens = queued.prompt_tokens + round(
        min(sum([pending_prompt_tokens(known, each.load) for each in ready]), MOST)
    )
    output_tokens = queued.output_tokens + round(
        min(sum([pending_output_tokens(known, each.load) for each in ready]), MOST)
    )
    usual = usual_tokens([each.load for each in ready], known.prompt_tokens + known.output_tokens)
    rooms = [_room(each, usual) for each in ready]
    slots = sum(rooms)
    rates = known.rates
    openings, soonest_tokens = _openings(ready, rooms, known)
    if queued.requests:
        openings = 0
        soonest_tokens = max(soonest_tokens, queued.prompt_tokens // max(len(ready), 1))
    arrived = spare = None
    counts = [each.arrived for each in ready if each.arrived is not None]
    if counts and len(counts) == len(ready):
        arrived = sum(counts)
        spare = spare_requests(
            Servers(ready=len(ready), slots=max(slots, 1), rates=rates),
            Work(prompt_tokens=prompt_tokens, output_tokens=output_tokens),
            prompt_tokens=known.prompt_tokens, output_tokens=known.output_tokens, arrived=arrived,
        )
        arrived, spare = round(arrived, 3), round(spare, 3)
    return DeploymentLoad(
        model=model,
        revision=revision,
        ready=len(ready),
        slots=slots,
        running=sum([each.load.running or 0 for each in ready]),
        waiting=queued.requests + sum([each.load.waiting or 0 for each in ready]),
        pending_prompt_tokens=prompt_tokens,
        pending_output_tokens=output_tokens,
        prefill_tok_s=rates.prefill_tok_s,
        decode_tok_s=rates.decode_tok_s,
        endpoints=endpoints,
        arrived=arrived,
        spare=spare,
        pushed=round(pushed, 3),
        free=openings if rates.prefill_tok_s > 0.0 else None,
        due_ms=_due_ms(soonest_tokens, rates),
    )


def _openings(
    ready: Sequence[Reading], rooms: Sequence[int], known: Learned
) -> tuple[int, int]:
    """How many replicas have room and next to nothing to read, and what the one has to read that
    has least."""
    openings, soonest_tokens = 0, inf
    for each, most in zip(ready, rooms, strict=True):
        unread = pending_prompt_tokens(known, each.load)
        is_full = each.load.waiting or (each.load.running or 0) >= most
        if not is_full and unread < LITTLE * known.prompt_tokens:
            openings += 1
        soonest_tokens = min(soonest_tokens, unread)
    return openings, round(soonest_tokens) if ready else 0


def _due_ms(prompt_tokens: int, rates: Rates) -> int:
    if rates.prefill_tok_s <= 0.0:
        return 0
    return round(min(prefill_ms(prompt_tokens, rates), MOST))


def _room(reading: Reading, usual: float) -> int:
    """How many requests a replica takes at once: while it lets some wait, as many as it runs,
    whatever it says, for its memory is full."""
    load = reading.load
    most = room(reading.slots, load, usual)
    return min(load.running, most) if load.running and load.waiting else most
