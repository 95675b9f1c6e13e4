"""Decides whether a key may send one more request now, and if not, after what wait it may.

Time is cut into buckets of five seconds, and a minute is the present bucket and the eleven before
it. So what was admitted counts for 55 to 60 seconds: a steady stream at the limit is never refused,
and no 55 seconds hold more than the limit. Tokens are held, by estimate, while a request runs and
counted, as they were, when it ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from isochrone.core.world.tenant import Limits

BUCKETS = 12
BUCKET_NS = 5_000_000_000
RUNNING_WAIT_S = 2.0  # one of the requests that run must end first, and nobody knows when

LimitName = Literal["rate_limit_requests", "rate_limit_tokens", "concurrency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a key has used in the minute before a decision, the oldest bucket first.

    `requests` and `tokens` have `BUCKETS` items each, the last one for the present bucket; tokens
    are those of requests that ended. `held_tokens` is the estimate of the `running` requests.
    """

    requests: Sequence[int]
    tokens: Sequence[int]
    held_tokens: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The limit that a request would exceed. `retry_after_s`: when it fits, if nothing else is
    sent meanwhile; None when it never does."""

    limit: LimitName
    retry_after_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What is left after this request; None where there is no limit."""

    requests: int | None
    tokens: int | None
    concurrent: int | None


def admit(limits: Limits, use: Use, estimate_tokens: int, now_ns: int) -> Admitted | Refused:
    """The whole decision over a key's use; `exceeded` is its cheap first half."""
    requests, tokens = sum(use.requests), sum(use.tokens) + use.held_tokens
    limit = exceeded(
        limits, estimate_tokens, requests=requests, tokens=tokens, running=use.running
    )
    if limit is not None:
        wait_s = retry_after_s(limits, limit, use, estimate_tokens, now_ns)
        return Refused(limit=limit, retry_after_s=wait_s)
    return Admitted(
        requests=_left(limits.requests_per_min, requests + 1),
        tokens=_left(limits.tokens_per_min, tokens + estimate_tokens),
        concurrent=_left(limits.concurrent, use.running + 1),
    )


def exceeded(
    limits: Limits, estimate_tokens: int, *, requests: int, tokens: int, running: int
) -> LimitName | None:
    """The first limit that one more request of this estimate exceeds, given the use before it.

    `tokens` are the counted and the held ones together.
    """
    most = limits.requests_per_min
    if most is not None and requests >= most:
        return "rate_limit_requests"
    most = limits.tokens_per_min
    if most is not None and tokens + estimate_tokens > most:
        return "rate_limit_tokens"
    most = limits.concurrent
    if most is not None and running >= most:
        return "concurrency"
    return None


def retry_after_s(
    limits: Limits, limit: LimitName, use: Use, estimate_tokens: int, now_ns: int
) -> float | None:
    """How long until this request fits under `limit`; None when it never does."""
    if limit == "concurrency":
        return RUNNING_WAIT_S if limits.concurrent else None
    if limit == "rate_limit_requests":
        most = limits.requests_per_min or 0
        return wait_s(use.requests, sum(use.requests) + 1 - most, now_ns)
    most = limits.tokens_per_min or 0
    if estimate_tokens > most:
        return None
    over = sum(use.tokens) + use.held_tokens + estimate_tokens - most
    counted_s = wait_s(use.tokens, over, now_ns)
    return RUNNING_WAIT_S if counted_s is None else counted_s


def wait_s(counts: Sequence[int], over: int, now_ns: int) -> float | None:
    """Seconds until `over` of what these buckets counted is forgotten, the oldest bucket first;
    None when they hold less than that."""
    if over <= 0:
        return 0.0
    bucket = bucket_of(now_ns) - len(counts) + 1
    for count in counts:
        over -= count
        if over <= 0:
            return forgotten_in_s(bucket, now_ns)
        bucket += 1
    return None


def bucket_of(now_ns: int) -> int:
    """The bucket of a monotonic instant; all processes of a machine agree on it."""
    return now_ns // BUCKET_NS


def forgotten_in_s(bucket: int, now_ns: int) -> float:
    """Seconds until what this bucket counted is forgotten."""
    return ((bucket + BUCKETS) * BUCKET_NS - now_ns) / 1e9


def _left(most: int | None, used: int) -> int | None:
    return None if most is None else max(most - used, 0)
