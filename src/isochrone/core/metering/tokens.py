"""Decides the token classes of one request from what its engine said and what the gateway counted.

Sources, best first, and the largest error of each (see docs/metering.md):

- `engine`: the engine's final usage. Taken as it is; no error of ours. For n > 1 some engines
  count one choice only, so the output is never below what was counted over all choices. For
  several prompts the input is each prompt once: one usage covers all, or each choice has its own.
- `running`: the last running count before the stream broke. Low by at most the tokens that the
  engine made after the last event that arrived whole, none of which reached the client.
- `counted`: events that carried text, one token each. Never high where an engine sends at least one
  token an event; low by (tokens an event - 1) where it packs several. The prompt is its bytes / 4:
  at most 4 times low (a token covers at least one byte, markers of the chat template aside), high
  by the factor (mean bytes a token) / 4.
- `none`: nothing came from an engine, so nothing is counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from isochrone.core.metering.event import Tokens, TokenSource

BYTES_PER_TOKEN = 4
LARGEST_COUNT = 2**31 - 1


class Reported(NamedTuple):
    """Counts in an engine's words: `prompt` includes `cached`."""

    prompt: int
    cached: int
    output: int

    @property
    def plausible(self) -> bool:
        """False for counts that no request can have; they are then treated as not sent."""
        return (
            0 <= self.prompt <= LARGEST_COUNT
            and 0 <= self.cached <= LARGEST_COUNT
            and 0 <= self.output <= LARGEST_COUNT
        )


def of_choices(counts: Sequence[Reported | None], prompts: int) -> Reported | None:
    """What the choices of `prompts` prompts were reported with, each apart, put together.

    Choices lie prompt by prompt, the same number for each. A prompt counts once however many
    choices it has: as the largest that one of them reports. None when nothing was reported.
    """
    share = max(len(counts) // max(prompts, 1), 1)
    known = [count for count in counts if count is not None]
    if not known:
        return None
    prompt = cached = 0
    for begin in range(0, len(counts), share):
        one = [count for count in counts[begin : begin + share] if count is not None]
        if one:
            prompt += max(count.prompt for count in one)
            cached += min(count.cached for count in one)
    return Reported(prompt=prompt, cached=cached, output=sum(count.output for count in known))


def of_answers(finals: Sequence[Reported], choices: int, prompts: int) -> Reported | None:
    """Final usages that name no choice, put together.

    One alone covers the whole request, all prompts and choices. Of several, each covers a choice;
    of several prompts each is then told once for every of its choices.
    """
    if choices <= 1 or len(finals) <= 1:
        return finals[-1] if finals else None
    output = sum(count.output for count in finals)
    if prompts <= 1:
        prompt = max(count.prompt for count in finals)
        return Reported(
            prompt=prompt, cached=min(count.cached for count in finals), output=output
        )
    share = max(choices // prompts, 1)
    return Reported(
        prompt=-(-sum(count.prompt for count in finals) // share),
        cached=sum(count.cached for count in finals) // share,
        output=output,
    )


def tokens_of(input_uncached: int, input_cached: int, output: int, source: TokenSource) -> Tokens:
    """Tokens of these counts, in less than half the time that their constructor takes."""
    tokens = object.__new__(Tokens)
    tokens.input_uncached, tokens.input_cached = input_uncached, input_cached
    tokens.output, tokens.source = output, source
    return tokens


def settle(
    final: Reported | None,
    running: Reported | None,
    *,
    counted: int,
    prompt_bytes: int,
    n_choices: int = 1,
) -> Tokens:
    """Disjoint classes of one request.

    `counted` is the output counted by the gateway over all choices (for each choice the larger of
    its running count and its events with text); `prompt_bytes` is the UTF-8 length of the prompt.
    """
    floor = counted if n_choices > 1 else 0
    if final is not None and final.plausible:
        cached = min(final.cached, final.prompt)
        return Tokens(
            input_uncached=final.prompt - cached,
            input_cached=cached,
            output=max(final.output, floor),
            source="engine",
        )
    if running is not None and running.plausible:
        cached = min(running.cached, running.prompt)
        return Tokens(
            input_uncached=running.prompt - cached,
            input_cached=cached,
            output=max(running.output, floor),
            source="running",
        )
    if counted <= 0:
        return Tokens()
    prompt = -(-max(prompt_bytes, 0) // BYTES_PER_TOKEN)
    return Tokens(input_uncached=prompt, output=counted, source="counted")


def settle_begun(begun: Reported | None, *, counted: int, prompt_bytes: int) -> Tokens:
    """Classes of a request whose engine stated the prompt when it began and then broke off.

    `begun` has the prompt and the engine's last word on the output; the gateway counted `counted`
    events with text. The source is that of the output, which is the larger of the two.
    """
    if begun is None or not begun.plausible or not begun.prompt:
        return settle(None, None, counted=counted, prompt_bytes=prompt_bytes)
    cached = min(begun.cached, begun.prompt)
    return Tokens(
        input_uncached=begun.prompt - cached,
        input_cached=cached,
        output=max(begun.output, counted),
        source="running" if begun.output >= counted else "counted",
    )
