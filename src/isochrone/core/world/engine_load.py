"""EngineLoad: what an engine says of its own work, as its counters are read about once a second."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """Gauges and counters as the engine reports them; None is unknown, never zero.

    Totals count since the engine's start; `prompt_tokens_total` is without cached tokens. Rates are
    what one stream saw since the last reading, None when there was no work. `running_prompt_tokens`
    are still to be prefilled by the running requests, `running_output_tokens` they have decoded.
    `kept_tokens`: how many the engine's cache has room for. `held_tokens`: how many of these the
    running requests take.
    """

    running: int | None
    waiting: int | None
    prompt_tokens_total: int | None
    cached_tokens_total: int | None
    output_tokens_total: int | None
    prefill_tok_s: float | None
    decode_tok_s: float | None
    requests_total: int | None = None
    running_prompt_tokens: int | None = None
    running_output_tokens: int | None = None
    kept_tokens: int | None = None
    held_tokens: int | None = None


UNKNOWN_LOAD = EngineLoad(
    running=None,
    waiting=None,
    prompt_tokens_total=None,
    cached_tokens_total=None,
    output_tokens_total=None,
    prefill_tok_s=None,
    decode_tok_s=None,
)
