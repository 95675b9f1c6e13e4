"""Holds each key to its limits at this gateway: admits, refuses, settles, and tells clients.

A request is claimed first and judged after, over the counters of all workers: two workers that take
the last place at once both see it taken, so a limit is never passed.
"""

import math

from isochrone.core.admission.limits import (
    BUCKETS,
    LimitName,
    bucket_of,
    exceeded,
    forgotten_in_s,
    retry_after_s,
)
from isochrone.core.ids import KeyId
from isochrone.core.world.tenant import NO_LIMITS, ApiKey, Limits
from isochrone.gateway.key_counts import MOST_TOKENS, KeyCounts, KeyTable
from isochrone.gateway.replies import Refusal
from isochrone.ports.counters import Counters

SECOND_NS = 1_000_000_000


class KeyLimits:
    """Mutable, owned by the event loop. A request that `admit` let in must be settled once, with
    the same key and estimate. Keys without limits are neither counted nor slowed down."""

    def __init__(self, counters: Counters) -> None:
        self._table = KeyTable(counters)
        self._known: dict[KeyId, _Limited] = {}
        self._swept_bucket = 0
        self._reset_second = -1
        self._reset = ""

    def admit(self, key: ApiKey, estimate_tokens: int, now_ns: int) -> Refusal | None:
        """Count the request and hold its tokens; or say why it is refused, and count nothing.

        `estimate_tokens`: of the prompt, and the most that the answer may have.
        """
        limits = key.limits
        if limits is NO_LIMITS:
            return None
        known = self._limited(key.id, limits)
        if known.template is None:
            return None
        if estimate_tokens > MOST_TOKENS:
            estimate_tokens = MOST_TOKENS  # a client may ask for any number
        counts, bucket = known.counts, bucket_of(now_ns)
        counts.claim(bucket, estimate_tokens)
        requests, tokens, running = counts.used(bucket)
        limit = exceeded(
            limits, estimate_tokens,
            requests=requests - 1, tokens=tokens - estimate_tokens, running=running - 1,
        )
        if limit is None:
            return None
        counts.unclaim(bucket, estimate_tokens)
        wait_s = retry_after_s(limits, limit, counts.use(bucket), estimate_tokens, now_ns)
        return _refusal(limits, limit, estimate_tokens, wait_s)

    def settle(self, key: ApiKey, estimate_tokens: int, actual_tokens: int, now_ns: int) -> None:
        """A request that was admitted ended, in whatever way: count what it used."""
        limits = key.limits
        if limits is NO_LIMITS:
            return
        known = self._limited(key.id, limits)
        if known.template is not None:
            held = min(estimate_tokens, MOST_TOKENS)
            used = min(max(actual_tokens, 0), MOST_TOKENS)
            known.counts.end(bucket_of(now_ns), held, used)

    def headers(self, key: ApiKey, now_ns: int) -> str:
        """Lines for the head of an answer, each with its CRLF; none for a key without limits."""
        limits = key.limits
        if limits is NO_LIMITS:
            return ""
        known = self._limited(key.id, limits)
        if not known.template:
            return ""
        requests, tokens, _ = known.counts.used(bucket_of(now_ns))
        reset = self._reset_text(now_ns)
        values: tuple[int | str, ...] = ()
        if limits.requests_per_min is not None:
            left = max(limits.requests_per_min - requests, 0)
            values = (left, reset if requests else "0s")
        if limits.tokens_per_min is not None:
            left = max(limits.tokens_per_min - tokens, 0)
            values = (*values, left, reset if tokens else "0s")
        return known.template % values

    def sweep(self, now_ns: int) -> int:
        """Now and then: forget idle keys, and what dead workers had running; returns how many
        workers were found dead."""
        bucket = bucket_of(now_ns)
        if bucket == self._swept_bucket:
            return 0
        new_minute = bucket // BUCKETS != self._swept_bucket // BUCKETS
        self._swept_bucket = bucket
        if new_minute:
            idle = [id_ for id_, known in self._known.items() if known.counts.is_idle(bucket)]
            for id_ in idle:
                del self._known[id_]
        return self._table.sweep_dead()

    def _limited(self, key_id: KeyId, limits: Limits) -> "_Limited":
        known = self._known.get(key_id)
        if known is None:
            known = _Limited(KeyCounts(self._table, key_id), limits)
            self._known[key_id] = known
        elif known.limits is not limits:
            known.set_limits(limits)
        return known

    def _reset_text(self, now_ns: int) -> str:
        """When everything that was used until now is forgotten; the same text for a second."""
        second = now_ns // SECOND_NS
        if second != self._reset_second:
            self._reset_second = second
            wait_s = forgotten_in_s(bucket_of(now_ns), second * SECOND_NS)
            self._reset = duration_text(wait_s)
        return self._reset


class _Limited:
    """A key that has limits. `template` has the header lines with places for what is left and when
    it is whole again; empty when no limit has headers, None when nothing is limited at all."""

    __slots__ = ("counts", "limits", "template")

    def __init__(self, counts: KeyCounts, limits: Limits) -> None:
        self.counts = counts
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        self.limits = limits
        lines = [
            f"x-ratelimit-limit-{what}: {most}\r\n"
            f"x-ratelimit-remaining-{what}: %d\r\nx-ratelimit-reset-{what}: %s\r\n"
            for what, most in (
                ("requests", limits.requests_per_min), ("tokens", limits.tokens_per_min)
            )
            if most is not None
        ]
        self.template = None if limits == NO_LIMITS else "".join(lines)


def duration_text(seconds: float) -> str:
    """As OpenAI writes it: `7s`, `6m0s`, `1h0m0s`; rounded up to whole seconds."""
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    if minutes == 0:
        return f"{rest_s}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest_s}s" if hours else f"{minutes}m{rest_s}s"


def _refusal(
    limits: Limits, limit: LimitName, estimate_tokens: int, wait_s: float | None
) -> Refusal:
    if limit == "rate_limit_requests":
        what = f"{limits.requests_per_min} requests per minute"
    elif limit == "rate_limit_tokens":
        what = f"{limits.tokens_per_min} tokens per minute; this request needs {estimate_tokens}"
    else:
        what = f"{limits.concurrent} requests at a time"
    advice = (
        "It can never fit: ask for less at once."
        if wait_s is None
        else f"Try again in {duration_text(wait_s)}."
    )
    return Refusal(
        status=429,
        reason=limit,
        code="rate_limit_exceeded",
        message=f"This key may use {what}. {advice}",
        retry_after_s=None if wait_s is None else max(math.ceil(wait_s), 1),
    )
