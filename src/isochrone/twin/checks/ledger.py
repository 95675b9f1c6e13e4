"""Judges the money: entries sum to zero, and what was booked is charged, no more and no less."""

from collections.abc import Iterator

from isochrone.twin.checks.record import Record


def sums_to_zero(record: Record) -> Iterator[str]:
    if record.money is not None and record.money.sum_pico != 0:
        yield f"the ledger's entries sum to {record.money.sum_pico}"


def charges_what_was_used(record: Record) -> Iterator[str]:
    """Each organisation's charges are what its booked requests cost."""
    money = record.money
    if money is None:
        return
    for org in sorted({*money.charged, *money.used}):
        charged, used = money.charged.get(org, 0), money.used.get(org, 0)
        if charged != used:
            yield f"{org} was charged {charged} for usage of {used} (10^-12)"
    if money.wrong_hours:
        yield f"{money.wrong_hours} sums by hour are not those of the booked requests"
