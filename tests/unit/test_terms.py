"""How long keys last: ends, overlaps, renewed terms, retention."""

import pytest

from isochrone.core.tenancy.terms import (
    DAY_NS,
    SECOND_NS,
    check_end,
    check_overlap,
    end_of_rotated,
    is_over,
    renewed_end,
)

NOW = 1_760_000_000 * SECOND_NS


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (None, []), (NOW + 1, []), (NOW + 3_650 * DAY_NS, []),
        (NOW, ["expires_at: lies in the past"]), (NOW - 1, ["expires_at: lies in the past"]),
        (NOW + 3_650 * DAY_NS + 1,
         ["expires_at: more than 3650 days away; leave it out for no end"]),
    ],
)
def test_an_end_lies_ahead_and_within_ten_years(end: int | None, said: list[str]) -> None:
    assert check_end(end, now=NOW) == said


def test_an_overlap_is_at_most_thirty_days() -> None:
    assert check_overlap(0) == check_overlap(2_592_000) == []
    for wrong in (-1, 2_592_001):
        assert len(check_overlap(wrong)) == 1


def test_a_key_is_over_at_its_end_and_not_before() -> None:
    assert [is_over(NOW, now=now) for now in (NOW - 1, NOW, NOW + 1)] == [False, True, True]
    assert not is_over(None, now=NOW)


def test_a_rotated_key_stops_after_the_overlap_and_never_later_than_it_would() -> None:
    assert end_of_rotated(None, now=NOW, overlap_s=60) == NOW + 60 * SECOND_NS
    assert end_of_rotated(NOW + 5, now=NOW, overlap_s=60) == NOW + 5
    assert end_of_rotated(NOW + DAY_NS, now=NOW, overlap_s=0) == NOW


def test_the_new_key_gets_as_long_a_term() -> None:
    assert renewed_end(NOW - DAY_NS, None, now=NOW) is None
    assert renewed_end(NOW - DAY_NS, NOW + DAY_NS, now=NOW) == NOW + 2 * DAY_NS
