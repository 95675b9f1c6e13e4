"""Engines as they were measured in public: the physics of a model on some GPUs, and its error.

The table is data (`isochrone/data/engine_rates.csv`), fitted by `tools/calibrate`. One row is one
replica: an engine with a model on `gpus` of a kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from isochrone.core.estimate.batching import Physics
from isochrone.core.estimate.service import Rates

PRECISIONS = ("bf16", "fp8", "fp4")  # the widest first


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRates:
    """`table` is where the measurements are from, `derived` for none of this very pair.
    `precision`: what the engine computes in (`bf16`, `fp8`, `fp4`). `prefill_context_us`: more for
    a token of a prompt, for each token before it. Errors are the median of |fitted / measured - 1|
    over the table's points; None where nothing was measured. `left_out_error`: the same of what was
    predicted without the row it is held against, None where that was not tried. `kv_tokens`: what
    its memory holds beside the weights."""

    table: str
    hardware: str
    engine: str
    model: str
    gpus: int
    precision: str
    prefill_tok_s: float
    prefill_context_us: float
    step_ms: float
    stream_ms: float
    context_token_us: float
    kv_tokens: int
    prefill_error: float | None
    decode_error: float | None
    left_out_error: float | None = None

    def physics(self, *, slots: int, chunk_tokens: int = 2048) -> Physics:
        """A replica of this kind that runs at most `slots` streams."""
        return Physics(
            step_s=self.step_ms / 1e3, stream_s=self.stream_ms / 1e3,
            context_token_s=self.context_token_us / 1e6, prefill_tok_s=self.prefill_tok_s,
            prefill_context_s=self.prefill_context_us / 1e6,
            chunk_tokens=chunk_tokens, slots=slots, kv_tokens=self.kv_tokens,
        )

    @property
    def stated(self) -> Rates:
        """What one stream alone gets, as a table of hardware would have it."""
        return Rates(
            prefill_tok_s=self.prefill_tok_s,
            decode_tok_s=1000.0 / (self.step_ms + self.stream_ms),
        )


def row_of(
    table: Sequence[EngineRates], hardware: str, model: str, gpus: int, precision: str | None = None
) -> EngineRates | None:
    """The row of this replica; None where nothing is known of it. Of several, the one of the widest
    precision where none is asked for, then one that was measured, then vLLM's."""
    rows = [
        each for each in table
        if (each.hardware, each.model, each.gpus) == (hardware, model, gpus)
        and precision in (None, each.precision)
    ]
    return min(
        rows, default=None, key=lambda each: (
            PRECISIONS.index(each.precision), each.table == "derived", each.engine != "vllm"
        ),
    )


def described(rates: EngineRates) -> str:
    """What it is and how well it is known, for people."""
    replica = f"{rates.model} on {rates.gpus} x {rates.hardware} in {rates.precision}"
    what = f"{rates.engine} with {replica}"
    if rates.table == "derived":
        return f"{what}: nobody measured it; by the usual shares of the chip's peak and bandwidth"
    told = [f"{what}: by {rates.table}"]
    if rates.decode_error is not None:
        told.append(f"fitted within {rates.decode_error:.1%}")
    if rates.left_out_error is not None:
        told.append(f"predicted without it within {rates.left_out_error:.1%}")
    return ", ".join(told)


def prefill_s(rates: EngineRates, prompt_tokens: int, batch: int) -> float:
    """To read `batch` prompts of one length, by the fit."""
    context_s = rates.prefill_context_us / 1e6 * batch * prompt_tokens * prompt_tokens / 2
    return batch * prompt_tokens / rates.prefill_tok_s + context_s


def decode_s(rates: EngineRates, prompt_tokens: int, batch: int, output_tokens: int) -> float:
    """To write `output_tokens` for each of `batch` such prompts, by the fit: the context is that of
    the middle of the answer."""
    context = batch * (prompt_tokens + output_tokens / 2)
    step_ms = rates.step_ms + rates.stream_ms * batch + rates.context_token_us / 1e3 * context
    return output_tokens * step_ms / 1e3
