"""Requests that come by pure chance at one rate: with lengths of a table, or exponential answers.

For tables of lengths without times, and for results that are known exactly (Erlang): nobody's
traffic is like that. No prefixes; every request is from a place of its own.
"""

from collections.abc import Iterator, Sequence
from math import exp, log1p

from isochrone.core.errors import InvalidInput
from isochrone.core.rng import stream
from isochrone.twin.fast.arrivals import NO_SESSION
from isochrone.twin.table import table_of
from isochrone.twin.workloads.asks import Ask

MOST_TOLD = 20
SURELY = 1e6  # as a rate: the first token is the last


def parse_lengths(text: str, source: str) -> tuple[tuple[int, int], ...]:
    """Vidur's: CSV with num_prefill_tokens and num_decode_tokens; prompt and answer of each
    request. Raises InvalidInput with all problems."""
    reader = table_of(text)
    needed = ("num_prefill_tokens", "num_decode_tokens")
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise InvalidInput(
            [f"{source}: no column {name}; expected {', '.join(needed)}" for name in missing]
        )
    found: list[tuple[int, int]] = []
    problems: list[str] = []
    for row in reader:
        try:
            prompt, output = (int(row[name] or "") for name in needed)
        except ValueError as error:
            problems.append(f"{source}, line {reader.line_num}: {error}")
            continue
        if prompt < 1 or output < 0:
            problems.append(
                f"{source}, line {reader.line_num}: {prompt} and {output} tokens; expected a "
                "prompt of at least 1 and an answer of at least 0"
            )
            continue
        found.append((prompt, max(output, 1)))
    if problems:
        raise InvalidInput(problems[:MOST_TOLD])
    if not found:
        raise InvalidInput([f"{source}: has no rows"])
    return tuple(found)


def drawn_asks(lengths: Sequence[tuple[int, int]], rate_rps: float, seed: int) -> Iterator[Ask]:
    """For ever; each has the lengths of one row."""
    rng = stream(seed, "workload.lengths")
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate_rps)
        prompt, output = rng.choice(lengths)
        yield Ask(at_s, prompt, output, rng.getrandbits(62), NO_SESSION, ())


def exponential_asks(
    prompt_tokens: int, output_tokens: float, most_tokens: int, rate_rps: float, seed: int
) -> Iterator[Ask]:
    """For ever; all prompts are as long, answers exponential in whole tokens, at least 1, of this
    mean. Those that are more than `most_tokens` with the prompt are drawn again."""
    rng = stream(seed, "workload.exponential")
    per_token = _per_token(output_tokens)
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate_rps)
        output = int(rng.expovariate(per_token)) + 1
        while prompt_tokens + output > most_tokens:
            output = int(rng.expovariate(per_token)) + 1
        yield Ask(at_s, prompt_tokens, output, rng.getrandbits(62), NO_SESSION, ())


def exponential_mean(output_tokens: float, most_tokens: int) -> float:
    """Of such answers, the mean of those that have at most so many tokens."""
    longer = exp(-_per_token(output_tokens) * most_tokens)
    return output_tokens - most_tokens * longer / (1.0 - longer)


def _per_token(output_tokens: float) -> float:
    """The rate at which, rounded up, the mean is this: at least 1."""
    return -log1p(-1.0 / output_tokens) if output_tokens > 1.0 else SURELY
