"""The retry budget: what a request brings, what a second brings, and what is lost."""

from isochrone.core.admission.retry_budget import RetryBudget
from tests.builders import SECOND_NS


def spend(budget: RetryBudget, now_ns: int, tries: int = 10_000) -> int:
    """How many retries it gives at once."""
    given = 0
    while given < tries and budget.try_spend(now_ns):
        given += 1
    return given


def test_a_share_of_the_requests_and_some_a_second() -> None:
    budget = RetryBudget(ratio=0.1, min_per_s=2.0)
    assert spend(budget, 0) == 20  # ten seconds of two
    for _ in range(50):
        budget.deposit(0)
    assert spend(budget, 0) == 5
    assert spend(budget, SECOND_NS) == 2
    assert (budget.spent, budget.refused) == (27, 3)


def test_credit_is_lost_after_ten_seconds() -> None:
    budget = RetryBudget(ratio=0.5, min_per_s=0.0)
    for _ in range(100):
        budget.deposit(0)
    budget.deposit(5 * SECOND_NS)
    budget.deposit(5 * SECOND_NS)
    assert spend(budget, 9 * SECOND_NS, tries=20) == 20
    assert spend(budget, 10 * SECOND_NS) == 1  # of second 5; the rest of second 0 is gone
    assert spend(budget, 10 * SECOND_NS) == 0


def test_the_oldest_credit_is_spent_first() -> None:
    budget = RetryBudget(ratio=1.0, min_per_s=0.0)
    budget.deposit(0)
    budget.deposit(9 * SECOND_NS)
    assert spend(budget, 9 * SECOND_NS, tries=1) == 1
    assert spend(budget, 18 * SECOND_NS) == 1


def test_a_long_silence_saves_nothing_up() -> None:
    budget = RetryBudget(ratio=0.1, min_per_s=1.0)
    spend(budget, 0)
    assert spend(budget, 86_400 * SECOND_NS) == 10


def test_a_second_that_is_over_brings_nothing_again() -> None:
    budget = RetryBudget(ratio=0.1, min_per_s=10.0)
    now_ns = 1000 * SECOND_NS
    assert spend(budget, now_ns) == 100
    budget.deposit(now_ns - 8 * SECOND_NS)
    assert budget.left(now_ns) == 0.1
    assert not budget.try_spend(now_ns - 3 * SECOND_NS)
    for _ in range(9):
        budget.deposit(now_ns - 2 * SECOND_NS)
    assert spend(budget, now_ns) == 1
