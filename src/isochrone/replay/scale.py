"""Fits recorded lengths into a model's context by one factor, so that proportions stay.

Prompts, answers and prefix blocks are scaled alike. A row is *altered* when the factor alone cannot
be kept for it: it was clipped to the context, or lifted to the least that a request can have.
"""

from dataclasses import dataclass

from isochrone.core.errors import InvalidInput
from isochrone.replay.trace import Trace, TraceRow

LEAST_PROMPT_TOKENS = 1  # beyond what the chat template takes
LEAST_OUTPUT_TOKENS = 1
MARGIN = 0.04  # prompts come out at the wanted length within a few percent


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledRow:
    """One request to send. `block_ends` are the places, in tokens of the prompt, where its blocks
    end; `blocks` are their ids, empty where the prompt shares nothing."""

    number: int
    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    block_ends: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Rows that fit. `factor` is what recorded lengths were multiplied by; `clipped` and `lifted`
    are the numbers of the rows that were altered beyond it."""

    rows: tuple[ScaledRow, ...]
    factor: float
    clipped: tuple[int, ...]
    lifted: tuple[int, ...]


def fit(
    trace: Trace, *, context_tokens: int, overhead_tokens: int = 0, factor: float | None = None
) -> Scaled:
    """Scale all rows so that the longest fits, or by `factor` (rows that then do not fit are
    clipped). `overhead_tokens` is what the chat template adds to a text.

    Raises InvalidInput when the context cannot hold the shortest request.
    """
    usable = int(context_tokens * (1 - MARGIN))
    least_prompt = overhead_tokens + LEAST_PROMPT_TOKENS
    if usable < least_prompt + LEAST_OUTPUT_TOKENS:
        raise InvalidInput([f"a context of {context_tokens} tokens is too short to replay into"])
    longest = max(row.input_tokens + row.output_tokens for row in trace.rows)
    chosen = min(1.0, usable / longest) if factor is None else factor
    rows: list[ScaledRow] = []
    clipped: list[int] = []
    lifted: list[int] = []
    for row in trace.rows:
        wanted_input, wanted_output = (
            int(row.input_tokens * chosen), int(row.output_tokens * chosen)
        )
        input_tokens = max(wanted_input, least_prompt)
        output_tokens = max(wanted_output, LEAST_OUTPUT_TOKENS)
        if input_tokens > wanted_input or output_tokens > wanted_output:
            lifted.append(row.number)
        if input_tokens + output_tokens > usable:
            output_tokens = max(min(output_tokens, usable - input_tokens), LEAST_OUTPUT_TOKENS)
            input_tokens = min(input_tokens, usable - output_tokens)
            clipped.append(row.number)
        rows.append(
            ScaledRow(
                number=row.number, at_s=row.at_s, input_tokens=input_tokens,
                output_tokens=output_tokens, blocks=row.blocks,
                block_ends=_block_ends(row, trace.block_tokens * chosen, input_tokens),
            )
        )
    return Scaled(
        rows=tuple(rows), factor=chosen, clipped=tuple(clipped), lifted=tuple(lifted)
    )


def _block_ends(row: TraceRow, block_tokens: float, input_tokens: int) -> tuple[int, ...]:
    """Ends depend on the place of a block only, so that equal ids get text of equal length in all
    prompts that hold them whole. The last block of a prompt may be cut."""
    return tuple(
        min(int((place + 1) * block_tokens), input_tokens) for place in range(len(row.blocks))
    )
