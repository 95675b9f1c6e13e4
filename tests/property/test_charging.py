"""What is charged is what `rate` makes of the period, however and whenever its usage came."""

import os
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.billing.charging import (
    Charge,
    HourUsage,
    Payer,
    changes,
    charges_of,
)
from isochrone.core.billing.ledger import Posting, balances, problems_of
from isochrone.core.billing.period import hour_of, month_named, month_of, name_of, part_over
from isochrone.core.billing.rate import Quantity, rate
from isochrone.core.billing.sheet import (
    HOUR_NS,
    Adjustment,
    Fee,
    PriceSheet,
    Recurring,
    When,
    applying,
)
from isochrone.core.ids import OrgId, ProjectId
from isochrone.wire.prices import sheet_of, sheet_text_of, text_of
from tests.property.test_rating import HOURS, PERIOD, QUANTITIES, in_pieces, sheets

PAYER = Payer(org_id=OrgId("org"), project_id=ProjectId("project"))
EXAMPLES = int(os.environ.get("ISOCHRONE_EXAMPLES", "100"))


class Till:
    """Usage that comes in, the charges that stand, and every posting."""

    def __init__(self, priced: list[PriceSheet]) -> None:
        self.sheets = priced
        self.usage: list[Quantity] = []
        self.standing: dict[tuple[str, int], Charge] = {}
        self.postings: list[Posting] = []

    def charge(self, first: int, until: int, *, is_over: bool = False) -> int:
        """As the store does: charge the hours from `first` until before `until` anew."""
        by_hour: defaultdict[int, list[Quantity]] = defaultdict(list)
        for each in self.usage:
            if first <= each.hour_at < until:
                by_hour[each.hour_at].append(each)
        hours = [
            HourUsage(hour_at=hour_at, quantities=tuple(used), digest=str(len(used)))
            for hour_at, used in by_hour.items()
        ]
        earlier = [each for each in self.usage if each.hour_at < first]
        right = charges_of(PAYER, earlier, hours, self.sheets, PERIOD, is_over=is_over)
        known = {
            place: each for place, each in self.standing.items() if first <= place[1] < until
        }
        found = changes(known, right)
        for change in found:
            assert change.charge.key not in {posting.key for posting in self.postings}
            self.postings += change.postings()
            self.standing[change.charge.item, change.charge.hour_at] = change.charge
        return len(found)


@settings(max_examples=EXAMPLES)
@given(st.data(), sheets(), st.lists(QUANTITIES, max_size=8))
def test_charges_add_up_to_the_rating_of_the_period(
    data: st.DataObject, priced: list[PriceSheet], usage: list[Quantity]
) -> None:
    till = Till(priced)
    dirty = HOURS * HOUR_NS
    for each in data.draw(in_pieces(usage)):
        till.usage.append(each)
        dirty = min(dirty, each.hour_at)
        until = data.draw(st.integers(0, HOURS)) * HOUR_NS
        if dirty < until:
            # All later hours that were charged too, as the store sees to.
            last = max((place[1] for place in till.standing), default=0) + HOUR_NS
            until = max(until, last)
            till.charge(dirty, until)
            dirty = min(
                (one.hour_at for one in till.usage if one.hour_at >= until), default=PERIOD.end
            )
        assert sum(balances(till.postings).values()) == 0
    till.charge(min(dirty, PERIOD.end), PERIOD.end)
    till.charge(0, PERIOD.end)
    whole = rate(usage, priced, PERIOD)
    assert sum(each.amount_pico for each in till.standing.values()) == whole.total_pico
    assert sum(each.quantity for each in till.standing.values()) == sum(
        line.quantity for line in whole.lines
    )
    revenue = sum(
        amount for (account, _), amount in balances(till.postings).items()
        if account.kind == "revenue"
    )
    assert revenue == whole.total_pico
    assert all(not problems_of(posting) for posting in till.postings)
    assert till.charge(0, PERIOD.end) == 0, "what is right is left alone"


@settings(max_examples=EXAMPLES)
@given(sheets(), st.lists(QUANTITIES, max_size=8), st.integers(0, 10**13))
def test_what_is_once_a_period_comes_at_its_end(
    priced: list[PriceSheet], usage: list[Quantity], amount: int
) -> None:
    fee = Fee(name="fee", of=frozenset(), basis_points=250)
    flat = Recurring(name="flat", amount_pico=amount)
    till = Till([replace(sheet, recurring=(flat,), fees=(fee,)) for sheet in priced])
    till.usage = usage
    till.charge(0, PERIOD.end)
    till.charge(0, PERIOD.end, is_over=True)
    whole = rate(usage, till.sheets, PERIOD)
    assert sum(each.amount_pico for each in till.standing.values()) == whole.total_pico


@given(sheets(), st.integers(-10_000, 10_000))
def test_a_sheet_reads_back_as_it_was_written(priced: list[PriceSheet], points: int) -> None:
    for sheet in priced:
        full = replace(
            sheet,
            adjustments=(
                *sheet.adjustments,
                Adjustment(name="x", when=When(bound=True), basis_points=points),
            ),
            recurring=(Recurring(name="r", amount_pico=7),),
            fees=(Fee(name="f", of=frozenset((sheet.prices[0].name,)), basis_points=3),),
        )
        text = sheet_text_of(msgspec.to_builtins(text_of(full)))
        assert sheet_of(text, version=full.version, valid_from=full.valid_from) == full


@given(sheets(), sheets())
def test_an_own_sheet_ends_the_general_ones(
    general: list[PriceSheet], own: list[PriceSheet]
) -> None:
    assert applying(general, []) == general
    later = [replace(sheet, valid_from=sheet.valid_from + HOUR_NS, id="own") for sheet in own]
    both = applying(general, later)
    assert both == [*(each for each in general if each.valid_from < HOUR_NS), *later]


@given(st.integers(0, 4 * 10**18))
def test_a_period_is_the_month_of_its_instants(at: int) -> None:
    period = month_of(at)
    moment = datetime.fromtimestamp(at // 10**9, UTC)
    assert name_of(period) == f"{moment:%Y-%m}"
    assert month_named(name_of(period)) == period
    assert datetime.fromtimestamp(period.begin // 10**9, UTC).day == 1
    assert period.begin <= hour_of(at) <= at < period.end
    assert month_of(period.begin) == period == month_of(period.end - 1)
    assert month_of(period.end).begin == period.end
    assert (period.end - period.begin) // HOUR_NS in (28 * 24, 29 * 24, 30 * 24, 31 * 24)
    assert 0 <= part_over(period, at) < 1 == part_over(period, period.end)
