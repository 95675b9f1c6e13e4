"""Time in an engine: how long a queue takes to drain, a prompt to prefill, an answer to decode.

All results are milliseconds >= 0. Work is counted in tokens, not in requests: one prompt of 8,000
tokens is more work than fifty of 20. See docs/routing.md for the formulas.

Rates, work and servers are made for each model of each digest that a gateway hears, so they have
constructors of their own: those of data classes take eight times as long where this is compiled.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(slots=True, init=False)
class Rates:
    """What one replica does for one stream: tokens/s prefilled and tokens/s decoded, both > 0."""

    prefill_tok_s: Final[float]
    decode_tok_s: Final[float]

    def __init__(self, *, prefill_tok_s: float, decode_tok_s: float) -> None:
        self.prefill_tok_s = prefill_tok_s
        self.decode_tok_s = decode_tok_s


@dataclass(slots=True, init=False)
class Work:
    """Requests and their tokens that wait or run somewhere; all >= 0. Counted in place."""

    requests: int
    prompt_tokens: int
    output_tokens: int

    def __init__(
        self, *, requests: int = 0, prompt_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        self.requests = requests
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens


@dataclass(slots=True, init=False)
class Servers:
    """The ready replicas of one model at one site: how many, their slots in sum, their rates."""

    ready: Final[int]
    slots: Final[int]
    rates: Final[Rates]

    def __init__(self, *, ready: int, slots: int, rates: Rates) -> None:
        self.ready = ready
        self.slots = slots
        self.rates = rates


def prefill_ms(prompt_tokens: int, rates: Rates) -> float:
    """Time to read a prompt, nothing of it cached."""
    return 1000.0 * prompt_tokens / rates.prefill_tok_s


def decode_ms(output_tokens: int, rates: Rates) -> float:
    """Time to write an answer on one stream."""
    return 1000.0 * output_tokens / rates.decode_tok_s


def queue_ms(servers: Servers, ahead: Work) -> float:
    """Expected wait before a newcomer's prompt is read, with `ahead` queued or running.

    Prompts ahead are prefilled first, spread over the replicas: P / (ready * prefill). A newcomer
    must also wait for a slot when none is free: of the n requests ahead, n + 1 - slots have to end,
    and the slots together decode the O tokens ahead in O / (slots * decode), so the wait is the
    share (n + 1 - slots) / n of that. Never falls when any part of `ahead` grows.
    """
    wait_s = ahead.prompt_tokens / (servers.ready * servers.rates.prefill_tok_s)
    return 1000.0 * (wait_s + slot_s(servers, ahead))


def opening_ms(
    servers: Servers, ahead: Work, openings: int, soonest_ms: float, sent: int, sent_tokens: int
) -> float:
    """The same where the site says how its replicas stand: `openings` of them begin another prompt
    at once, and the one that is soonest done takes `soonest_ms` for that. Of `ahead`, `sent`
    requests with `sent_tokens` came since.

    Those take the openings first; of m that came since, m + 1 - openings have to be read before a
    newcomer, spread over the replicas. A mean over all replicas would make one long prompt keep a
    newcomer that another replica takes at once.
    """
    tokens, behind = 0.0, sent + 1 - openings
    if sent > 0 and behind > 0 and sent_tokens > 0:
        tokens = sent_tokens * min(behind / sent, 1.0) / servers.ready
    wait_s = tokens / servers.rates.prefill_tok_s + slot_s(servers, ahead)
    return soonest_ms + 1000.0 * wait_s


def slot_s(servers: Servers, ahead: Work) -> float:
    """The part of a wait that is for a slot, in seconds; see `queue_ms`."""
    must_end = ahead.requests + 1 - servers.slots
    if must_end <= 0 or ahead.requests <= 0:
        return 0.0
    drain_s = ahead.output_tokens / (servers.slots * servers.rates.decode_tok_s)
    return drain_s * must_end / ahead.requests


def busy_s(servers: Servers, prompt_tokens: float, output_tokens: float) -> float:
    """For how long this work keeps all replicas together busy, with all slots in use."""
    rates = servers.rates
    prefill_s = prompt_tokens / (servers.ready * rates.prefill_tok_s)
    return prefill_s + output_tokens / (servers.slots * rates.decode_tok_s)
