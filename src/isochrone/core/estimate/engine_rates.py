"""Learns how fast a model's replicas are and how long its requests, from the engines' counters.

Rates are token counts over seconds, both fading with the work done since: a burst of new evidence
replaces old evidence, an idle hour changes nothing. All functions are pure.
"""

from dataclasses import dataclass, replace

from isochrone.core.estimate.service import Rates
from isochrone.core.world.engine_load import EngineLoad

PREFILL_MEMORY_TOKENS = 8_000.0
DECODE_MEMORY_TOKENS = 2_000.0
SEED_TOKENS = 200.0      # evidence that a seed is worth: a little work replaces it
MEMORY_SAMPLES = 30.0
USUAL_OUTPUT_TOKENS = 128.0
USUAL_PROMPT_TOKENS = 512.0
ARRIVED_SHARE = 0.7      # of the last reading in what came lately


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What is known about one model at this site. Pairs of sums whose quotient is the estimate."""

    prefill_tokens: float
    prefill_s: float
    decode_tokens: float
    decode_s: float
    output_tokens: float = USUAL_OUTPUT_TOKENS   # of one request
    prompt_tokens: float = USUAL_PROMPT_TOKENS   # of one request, uncached

    @property
    def rates(self) -> Rates:
        return Rates(
            prefill_tok_s=self.prefill_tokens / self.prefill_s,
            decode_tok_s=self.decode_tokens / self.decode_s,
        )


def seeded(rates: Rates) -> Learned:
    """The state before any work: the seed's rates, easily replaced."""
    return Learned(
        prefill_tokens=SEED_TOKENS,
        prefill_s=SEED_TOKENS / rates.prefill_tok_s,
        decode_tokens=SEED_TOKENS,
        decode_s=SEED_TOKENS / rates.decode_tok_s,
    )


def learn(known: Learned, before: EngineLoad, after: EngineLoad) -> Learned:
    """Take in two successive readings of one engine."""
    known = _learn_rates(known, before, after)
    return _learn_lengths(known, before, after)


def _grown(before: int | None, after: int | None) -> int:
    """Growth of a counter; 0 when unknown or when the engine started anew."""
    return 0 if before is None or after is None else max(0, after - before)


def _learn_rates(known: Learned, before: EngineLoad, after: EngineLoad) -> Learned:
    tokens = _grown(before.prompt_tokens_total, after.prompt_tokens_total)
    if tokens and after.prefill_tok_s:
        keep = PREFILL_MEMORY_TOKENS / (PREFILL_MEMORY_TOKENS + tokens)
        known = replace(
            known,
            prefill_tokens=keep * known.prefill_tokens + tokens,
            prefill_s=keep * known.prefill_s + tokens / after.prefill_tok_s,
        )
    tokens = _grown(before.output_tokens_total, after.output_tokens_total)
    if tokens and after.decode_tok_s:
        keep = DECODE_MEMORY_TOKENS / (DECODE_MEMORY_TOKENS + tokens)
        known = replace(
            known,
            decode_tokens=keep * known.decode_tokens + tokens,
            decode_s=keep * known.decode_s + tokens / after.decode_tok_s,
        )
    return known


def _learn_lengths(known: Learned, before: EngineLoad, after: EngineLoad) -> Learned:
    """Mean lengths from request counts, or else from the ages of running requests.

    A request met at a random instant has, on average, as much before it as behind it, so the mean
    of what running requests have decoded estimates what each of them still has to decode.
    """
    requests = _grown(before.requests_total, after.requests_total)
    if requests:
        output = _grown(before.output_tokens_total, after.output_tokens_total) / requests
        prompt = _grown(before.prompt_tokens_total, after.prompt_tokens_total) / requests
        return replace(
            known,
            output_tokens=_towards(known.output_tokens, output, requests),
            prompt_tokens=_towards(known.prompt_tokens, prompt, requests),
        )
    if after.running and after.running_output_tokens:
        age = after.running_output_tokens / after.running
        output = _towards(known.output_tokens, age, after.running)
        return replace(known, output_tokens=max(1.0, output))
    return known


def arrived(
    lately: float | None, before: EngineLoad, after: EngineLoad, known: Learned, *, elapsed_s: float
) -> float | None:
    """Requests a second that came to an engine, from two successive readings `elapsed_s` apart:
    those that ended, and those by which more are there. `lately` is what was found before; None
    where the engine does not count."""
    if before.running is None or after.running is None or elapsed_s <= 0:
        return None
    if after.requests_total is not None:
        ended = float(_grown(before.requests_total, after.requests_total))
    elif after.output_tokens_total is not None:
        tokens = _grown(before.output_tokens_total, after.output_tokens_total)
        ended = tokens / max(known.output_tokens, 1.0)
    else:
        return None
    more = after.running + (after.waiting or 0) - before.running - (before.waiting or 0)
    return came_lately(lately, max(ended + more, 0.0), elapsed_s)


def came_lately(lately: float | None, count: float, elapsed_s: float) -> float:
    """Requests a second, of which `count` came in the last `elapsed_s` > 0."""
    found = count / elapsed_s
    return found if lately is None else lately + ARRIVED_SHARE * (found - lately)


def _towards(known: float, sample: float, weight: float) -> float:
    share = weight / (MEMORY_SAMPLES + weight)
    return known + share * (sample - known)


def pending_prompt_tokens(known: Learned, load: EngineLoad) -> float:
    """Prompt tokens still to be prefilled by what runs or waits."""
    return (load.running_prompt_tokens or 0) + (load.waiting or 0) * known.prompt_tokens


def pending_output_tokens(known: Learned, load: EngineLoad) -> float:
    """Output tokens still to be decoded by what runs or waits."""
    return ((load.running or 0) + (load.waiting or 0)) * known.output_tokens
