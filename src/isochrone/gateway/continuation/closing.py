"""Counts of a run that took several attempts, and the events that end its answer from our side."""

from dataclasses import dataclass

from isochrone.core.metering.event import Tokens
from isochrone.core.metering.tokens import Reported
from isochrone.gateway.continuation.events import DONE, Fields, raw, render, with_identity
from isochrone.gateway.continuation.retained import Delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What is known of a run before its present attempt: `output` tokens delivered, and the prompt
    with its cached part as the first attempt counted them, None where it did not."""

    output: int
    prompt: int | None
    cached: int = 0

    def with_counts(self, counts: Reported | None, *, repeats: bool) -> Reported:
        """The whole run, with what the present attempt says of itself.

        One that continues counts the delivered tokens as prompt, one that repeats counts them as
        its own output again. Neither is charged twice.
        """
        if counts is None:
            return Reported(prompt=self.prompt or 0, cached=self.cached, output=self.output)
        if repeats:
            output, prompt = max(counts.output, self.output), counts.prompt
        else:
            output, prompt = self.output + counts.output, max(counts.prompt - self.output, 0)
        if self.prompt is not None:
            return Reported(prompt=self.prompt, cached=self.cached, output=output)
        return Reported(prompt=prompt, cached=min(counts.cached, prompt), output=output)


def closing(
    delivered: Delivered, *, reason: str | None, tokens: Tokens, client_gets_usage: bool
) -> bytes:
    """The rest of an answer that needs no engine any more: finish reason, usage, [DONE], each only
    if it has not been sent. Usage that nobody counted is not made up."""
    if delivered.done:
        return b""
    out = b""
    chat = delivered.identity is None or delivered.identity.object != "text_completion"
    if reason is not None:
        choice: Fields = {"index": raw(0), "finish_reason": raw(reason)}
        if chat:
            choice["delta"] = raw({})
        else:
            choice["text"] = raw("")
        out += render(with_identity({"choices": raw([choice])}, delivered.identity))
    unreported = delivered.unreported
    lacks_usage = not delivered.usage_sent or unreported is not None
    if client_gets_usage and lacks_usage and tokens.source != "none":
        prompt = tokens.input_uncached + tokens.input_cached
        output = tokens.output if unreported is None else unreported
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": tokens.input_cached},
        }
        last: Fields = {"choices": raw([]), "usage": raw(usage)}
        out += render(with_identity(last, delivered.identity))
    return out + DONE
