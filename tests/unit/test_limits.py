"""Limits of a key: the decision, and how long it says to wait."""

import pytest

from isochrone.core.admission.limits import (
    BUCKET_NS,
    BUCKETS,
    RUNNING_WAIT_S,
    Admitted,
    Refused,
    Use,
    admit,
    wait_s,
)
from isochrone.core.world.tenant import Limits
from tests.builders import SECOND_NS

NOW_NS = 20 * BUCKET_NS + 2 * SECOND_NS  # two seconds into bucket 20


def a_use(
    requests: dict[int, int] | None = None,
    tokens: dict[int, int] | None = None,
    held_tokens: int = 0,
    running: int = 0,
) -> Use:
    """Counts by age in buckets; 0 is the present one."""

    def ring(by_age: dict[int, int] | None) -> list[int]:
        return [(by_age or {}).get(age, 0) for age in range(BUCKETS - 1, -1, -1)]

    return Use(
        requests=ring(requests), tokens=ring(tokens), held_tokens=held_tokens, running=running
    )


def test_what_is_left_counts_the_request_itself() -> None:
    limits = Limits(requests_per_min=10, tokens_per_min=1000, concurrent=3)
    use = a_use({0: 2, 11: 1}, {3: 100}, held_tokens=200, running=1)
    assert admit(limits, use, 300, NOW_NS) == Admitted(requests=6, tokens=400, concurrent=1)


def test_no_limit_leaves_nothing_to_say() -> None:
    use = a_use({0: 10**6}, {0: 10**9}, running=10**4)
    assert admit(Limits(), use, 10**6, NOW_NS) == Admitted(
        requests=None, tokens=None, concurrent=None
    )


@pytest.mark.parametrize(
    ("limits", "use", "estimate", "refused"),
    [
        # Three requests in the bucket of 55 s ago: it leaves at the end of this bucket, in 3 s.
        (Limits(requests_per_min=3), a_use({11: 3}), 0, ("rate_limit_requests", 3.0)),
        (Limits(requests_per_min=3), a_use({11: 1, 5: 2}), 0, ("rate_limit_requests", 3.0)),
        (Limits(requests_per_min=3), a_use({5: 3}), 0, ("rate_limit_requests", 33.0)),
        (Limits(requests_per_min=3), a_use({0: 3}), 0, ("rate_limit_requests", 58.0)),
        (Limits(requests_per_min=0), a_use(), 0, ("rate_limit_requests", None)),
        # 1,000 tokens, 900 used: 300 more fit when 200 have left, not when 150 have.
        (
            Limits(tokens_per_min=1000), a_use(tokens={10: 150, 7: 100, 2: 650}), 300,
            ("rate_limit_tokens", 23.0),
        ),
        (Limits(tokens_per_min=1000), a_use(), 1001, ("rate_limit_tokens", None)),
        (
            Limits(tokens_per_min=1000), a_use(held_tokens=900), 200,
            ("rate_limit_tokens", RUNNING_WAIT_S),
        ),
        (Limits(concurrent=2), a_use(running=2), 0, ("concurrency", RUNNING_WAIT_S)),
        (Limits(concurrent=0), a_use(), 0, ("concurrency", None)),
    ],
)
def test_a_refusal_names_its_limit_and_when_it_fits(
    limits: Limits, use: Use, estimate: int, refused: tuple[str, float | None]
) -> None:
    decision = admit(limits, use, estimate, NOW_NS)
    assert isinstance(decision, Refused)
    assert (decision.limit, decision.retry_after_s) == refused


def test_nothing_over_the_limit_is_no_wait() -> None:
    assert wait_s([1, 2], 0, NOW_NS) == 0.0
    assert wait_s([1, 2], 4, NOW_NS) is None
