"""Engines as they were measured in public: the physics of a model on some GPUs, and its error.

The table is data (`isochrone/data/engine_rates.csv`), fitted by `tools/calibrate`. One row is one
replica: an engine with a model on `gpus` of a kind.
"""

from dataclasses import dataclass

from isochrone.core.estimate.batching import Physics
from isochrone.core.estimate.service import Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRates:
    """`table` is where the measurements are from, `derived` for none of this very pair. Errors are
    the median of |fitted / measured - 1| over the table's points; None where nothing was measured.
    `kv_tokens`: what its memory holds beside the weights."""

    table: str
    hardware: str
    engine: str
    model: str
    gpus: int
    prefill_tok_s: float
    step_ms: float
    stream_ms: float
    context_token_us: float
    kv_tokens: int
    prefill_error: float | None
    decode_error: float | None

    def physics(self, *, slots: int, chunk_tokens: int = 2048) -> Physics:
        """A replica of this kind that runs at most `slots` streams."""
        return Physics(
            step_s=self.step_ms / 1e3, stream_s=self.stream_ms / 1e3,
            context_token_s=self.context_token_us / 1e6, prefill_tok_s=self.prefill_tok_s,
            chunk_tokens=chunk_tokens, slots=slots, kv_tokens=self.kv_tokens,
        )

    @property
    def stated(self) -> Rates:
        """What one stream alone gets, as a table of hardware would have it."""
        return Rates(
            prefill_tok_s=self.prefill_tok_s,
            decode_tok_s=1000.0 / (self.step_ms + self.stream_ms),
        )


def prefill_s(rates: EngineRates, prompt_tokens: int, batch: int) -> float:
    """To read `batch` prompts of one length, by the fit."""
    return batch * prompt_tokens / rates.prefill_tok_s


def decode_s(rates: EngineRates, prompt_tokens: int, batch: int, output_tokens: int) -> float:
    """To write `output_tokens` for each of `batch` such prompts, by the fit: the context is that of
    the middle of the answer."""
    context = batch * (prompt_tokens + output_tokens / 2)
    step_ms = rates.step_ms + rates.stream_ms * batch + rates.context_token_us / 1e3 * context
    return output_tokens * step_ms / 1e3
