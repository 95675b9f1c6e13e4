"""Limits of keys at a gateway: several workers over shared rows, settling, headers, room."""

import pytest

from isochrone.core.admission.limits import BUCKET_NS, BUCKETS
from isochrone.core.ids import KeyId, OrgId, PolicyId, ProjectId
from isochrone.core.world.tenant import ApiKey, Limits
from isochrone.gateway.key_counts import (
    HEADER_CELLS,
    MOST_PROBES,
    MOST_TOKENS,
    ROW_CELLS,
    SLOT_CELLS,
)
from isochrone.gateway.limits import KeyLimits, duration_text
from isochrone.twin.fakes.counters import SharedRows
from tests.builders import SECOND_NS

NOW_NS = 1000 * BUCKET_NS
MINUTE_NS = BUCKETS * BUCKET_NS


def a_key(limits: Limits, name: str = "key") -> ApiKey:
    return ApiKey(
        id=KeyId(name), secret_sha256="00", org_id=OrgId("org"), project_id=ProjectId("project"),
        policy_id=PolicyId("anywhere"), limits=limits,
    )


def some_rows(workers: int = 1, slots: int = 256) -> SharedRows:
    return SharedRows(workers=workers, cells=HEADER_CELLS + slots * SLOT_CELLS)


def admitted(limits: KeyLimits, key: ApiKey, now_ns: int = NOW_NS, *, estimate: int = 0) -> int:
    """How many requests in a row are admitted, at most 1,000."""
    return next(n for n in range(1000) if limits.admit(key, estimate, now_ns) is not None)


def test_each_limit_refuses_with_its_reason_and_counts_nothing() -> None:
    limits = KeyLimits(some_rows().open(0))
    for allowed, reason in (
        (Limits(requests_per_min=3), "rate_limit_requests"),
        (Limits(tokens_per_min=30), "rate_limit_tokens"),
        (Limits(concurrent=3), "concurrency"),
    ):
        key = a_key(allowed, reason)
        assert admitted(limits, key, estimate=10) == 3
        refusal = limits.admit(key, 10, NOW_NS)
        assert refusal is not None
        assert (refusal.status, refusal.reason, refusal.code) == (
            429, reason, "rate_limit_exceeded"
        )
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s >= 1
        limits.settle(key, 10, 0, NOW_NS)
        assert (limits.admit(key, 10, NOW_NS) is None) == (reason != "rate_limit_requests")


def test_a_request_that_never_fits_is_told_so() -> None:
    refusal = KeyLimits(some_rows().open(0)).admit(a_key(Limits(tokens_per_min=30)), 31, NOW_NS)
    assert refusal is not None
    assert refusal.retry_after_s is None
    assert "never" in refusal.message


def test_settling_replaces_the_estimate_by_what_was_used() -> None:
    limits, key = KeyLimits(some_rows().open(0)), a_key(Limits(tokens_per_min=1000))
    assert limits.admit(key, 900, NOW_NS) is None
    assert limits.admit(key, 200, NOW_NS) is not None
    limits.settle(key, 900, 100, NOW_NS)
    assert admitted(limits, key, estimate=100) == 9
    assert "x-ratelimit-remaining-tokens: 0\r\n" in limits.headers(key, NOW_NS)


def test_a_hold_lasts_as_long_as_its_request() -> None:
    limits, key = KeyLimits(some_rows().open(0)), a_key(Limits(tokens_per_min=1000))
    assert limits.admit(key, 1000, NOW_NS) is None
    assert limits.admit(key, 1, NOW_NS + 10 * MINUTE_NS) is not None
    limits.settle(key, 1000, 1000, NOW_NS + 10 * MINUTE_NS)
    assert limits.admit(key, 1, NOW_NS + 11 * MINUTE_NS - 1) is not None
    assert limits.admit(key, 1, NOW_NS + 11 * MINUTE_NS) is None


def test_the_wait_of_a_refusal_is_true() -> None:
    limits, key = KeyLimits(some_rows().open(0)), a_key(Limits(requests_per_min=2))
    assert admitted(limits, key) == 2
    refusal = limits.admit(key, 0, NOW_NS + 7 * SECOND_NS)
    assert refusal is not None
    assert refusal.retry_after_s == 53
    assert limits.admit(key, 0, NOW_NS + 59 * SECOND_NS) is not None
    assert limits.admit(key, 0, NOW_NS + 60 * SECOND_NS) is None


def test_workers_share_one_limit() -> None:
    rows = some_rows(workers=3)
    workers = [KeyLimits(rows.open(index)) for index in range(3)]
    key = a_key(Limits(requests_per_min=100, concurrent=7))
    assert [admitted(each, key) for each in workers] == [7, 0, 0]
    for _ in range(7):
        workers[0].settle(key, 0, 0, NOW_NS)
    assert [admitted(each, key) for each in workers[1:]] == [7, 0]
    for worker in workers:
        assert "x-ratelimit-remaining-requests: 86\r\n" in worker.headers(key, NOW_NS)


def test_what_another_worker_counted_long_ago_in_the_minute_still_counts() -> None:
    rows = some_rows(workers=2)
    first, second = KeyLimits(rows.open(0)), KeyLimits(rows.open(1))
    key = a_key(Limits(requests_per_min=10))
    assert second.admit(key, 0, NOW_NS) is None
    for _ in range(6):
        assert first.admit(key, 0, NOW_NS) is None
    assert admitted(second, key, NOW_NS + 30 * SECOND_NS) == 3
    assert admitted(second, key, NOW_NS + 60 * SECOND_NS) == 7


def test_a_dead_worker_holds_nothing_for_ever() -> None:
    rows = some_rows(workers=2)
    first, second = KeyLimits(rows.open(0)), KeyLimits(rows.open(1))
    key = a_key(Limits(requests_per_min=100, tokens_per_min=1000, concurrent=4))
    assert admitted(first, key, estimate=100) == 4
    rows.died(0)
    assert second.admit(key, 100, NOW_NS) is not None
    assert second.sweep(NOW_NS) == 1
    assert "x-ratelimit-remaining-tokens: 1000\r\n" in second.headers(key, NOW_NS)
    assert "x-ratelimit-remaining-requests: 96\r\n" in second.headers(key, NOW_NS)
    assert admitted(second, key) == 4
    assert second.sweep(NOW_NS + MINUTE_NS) == 0


def test_a_successor_begins_with_nothing_running() -> None:
    rows, key = some_rows(), a_key(Limits(concurrent=2, requests_per_min=5))
    assert admitted(KeyLimits(rows.open(0)), key) == 2
    rows.died(0)
    successor = KeyLimits(rows.open(0))
    assert admitted(successor, key) == 2
    assert "x-ratelimit-remaining-requests: 1\r\n" in successor.headers(key, NOW_NS)


@pytest.mark.parametrize("limits", [Limits(), Limits(concurrent=5)])
def test_nothing_is_said_where_there_is_nothing_to_say(limits: Limits) -> None:
    held = KeyLimits(some_rows().open(0))
    key = a_key(limits)
    assert held.admit(key, 10, NOW_NS) is None
    assert held.headers(key, NOW_NS) == ""
    held.settle(key, 10, 10, NOW_NS)


def test_the_headers_are_those_that_clients_know() -> None:
    limits = KeyLimits(some_rows().open(0))
    key = a_key(Limits(requests_per_min=60, tokens_per_min=1000))
    assert limits.headers(key, NOW_NS).count(": 0s\r\n") == 2
    assert limits.admit(key, 100, NOW_NS) is None
    assert limits.headers(key, NOW_NS + 1_500_000_000).split("\r\n") == [
        "x-ratelimit-limit-requests: 60",
        "x-ratelimit-remaining-requests: 59",
        "x-ratelimit-reset-requests: 59s",
        "x-ratelimit-limit-tokens: 1000",
        "x-ratelimit-remaining-tokens: 900",
        "x-ratelimit-reset-tokens: 59s",
        "",
    ]


def test_new_limits_of_a_key_hold_at_once_over_what_was_counted() -> None:
    limits = KeyLimits(some_rows().open(0))
    assert admitted(limits, a_key(Limits(requests_per_min=5))) == 5
    assert admitted(limits, a_key(Limits(requests_per_min=7))) == 2
    assert limits.admit(a_key(Limits(requests_per_min=4)), 0, NOW_NS) is not None


def test_absurd_counts_of_clients_and_engines_do_no_harm() -> None:
    limits = KeyLimits(some_rows().open(0))
    key = a_key(Limits(concurrent=3, tokens_per_min=10**12))
    for used in (-5, 10**30, 10**30):
        assert limits.admit(key, 10**30, NOW_NS) is None
        limits.settle(key, 10**30, used, NOW_NS)
    left = int(limits.headers(key, NOW_NS).split("remaining-tokens: ")[1].split("\r\n")[0])
    assert left == 10**12 - MOST_TOKENS
    assert admitted(limits, key) == 3


def test_ten_thousand_keys_pass_through_few_slots() -> None:
    rows = some_rows(slots=128)
    limits = KeyLimits(rows.open(0))
    for number in range(10_000):
        now_ns = NOW_NS + number * SECOND_NS
        limits.sweep(now_ns)
        key = a_key(Limits(requests_per_min=2), f"key-{number}")
        assert admitted(limits, key, now_ns) == 2
        limits.settle(key, 0, 0, now_ns)
        limits.settle(key, 0, 0, now_ns)
    assert len(limits._known) <= 120


def test_ten_thousand_keys_of_one_minute_have_room() -> None:
    rows = SharedRows(workers=2, cells=ROW_CELLS)
    first, second = KeyLimits(rows.open(0)), KeyLimits(rows.open(1))
    keys = [a_key(Limits(requests_per_min=1), f"key-{number}") for number in range(10_000)]
    assert all(first.admit(key, 0, NOW_NS) is None for key in keys)
    assert not any(second.admit(key, 0, NOW_NS) is None for key in keys)


def test_a_key_without_room_is_counted_by_its_worker_alone() -> None:
    rows = some_rows(workers=2, slots=MOST_PROBES)
    workers = [KeyLimits(rows.open(index)) for index in range(2)]
    for number in range(MOST_PROBES):
        assert workers[0].admit(a_key(Limits(concurrent=9), f"key-{number}"), 0, NOW_NS) is None
    key = a_key(Limits(requests_per_min=3), "one too many")
    assert [admitted(each, key) for each in workers] == [3, 3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.2, "1s"), (59.1, "1m0s"), (360, "6m0s"), (3661, "1h1m1s")],
)
def test_durations_are_written_as_clients_know_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
