"""All judges in one list: what a record of any gear is put before."""

from collections.abc import Callable, Iterator

from isochrone.twin.checks import answers, booked, ledger, residency
from isochrone.twin.checks.record import Record

Check = Callable[[Record], Iterator[str]]


def nothing_is_stuck(record: Record) -> Iterator[str]:
    """When everything should have been quiet, nothing was open, reserved or waiting."""
    yield from record.stuck


def nothing_was_seen(record: Record) -> Iterator[str]:
    """What was looked at while the run went on never was wrong."""
    yield from record.broken


CHECKS: tuple[tuple[str, Check], ...] = (
    ("every request ends", answers.ended),
    ("answered or told why", answers.answered_or_told),
    ("service recovers", answers.recovered),
    ("booked once", booked.once),
    ("booked under its tenant", booked.under_its_tenant),
    ("booked with its tokens", booked.with_its_tokens),
    ("residency", residency.kept),
    ("the ledger sums to zero", ledger.sums_to_zero),
    ("charged what was used", ledger.charges_what_was_used),
    ("nothing is stuck", nothing_is_stuck),
    ("always", nothing_was_seen),
)


def judge(record: Record) -> list[str]:
    """Everything that is wrong with a run, each with the check that says so; none when all is
    well."""
    return [f"{name}: {problem}" for name, check in CHECKS for problem in check(record)]
