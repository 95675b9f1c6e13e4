"""Decides what has to be charged: for each meter and hour of a project, by how much its usage made
the period dearer.

An hour's charge is what `rate` makes of the period until the end of that hour, less what it makes
of the period until its start. So the charges of a period add up to `rate` of the whole to the last
digit, whatever the charge model, and are a function of what was used and not of when it was told.
What is once a period (bounds, recurring amounts, fees) is charged when the period is over.

A charge that stands and is no longer right is never changed: its posting is unwound as it was
recorded, and the right one is made under the next revision.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from isochrone.core.billing.ledger import Account, Entry, Posting, unwinding
from isochrone.core.billing.rate import Period, Quantity, Rated, rate
from isochrone.core.billing.sheet import HOUR_NS, Facts, PriceSheet, in_force
from isochrone.core.ids import OrgId, ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """Who is charged."""

    org_id: OrgId
    project_id: ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one item of a project came to in the hour that begins at `hour_at` (wall ns).

    `item` is a meter, or kind, sheet and name of what is once a period, at its last hour. `digest`
    is that of the project's events of the hour. The highest `revision` stands.
    """

    payer: Payer
    item: str
    hour_at: int
    quantity: int
    amount_pico: int
    currency: str
    sheet: str
    digest: str
    revision: int = 0

    @property
    def key(self) -> str:
        """The idempotency key of its posting."""
        return f"charge/{self.payer.project_id}/{self.item}/{self.hour_at}/{self.revision}"

    def posting(self) -> Posting | None:
        """None for what costs nothing, which is charged all the same."""
        if not self.amount_pico:
            return None
        org, project = self.payer.org_id, self.payer.project_id
        owed = Account(kind="owed", org_id=org, project_id=project)
        revenue = Account(kind="revenue", org_id=org)
        return Posting(
            org_id=org, key=self.key, kind="charge", at=self.hour_at, currency=self.currency,
            about=f"{self.item}/{self.hour_at}/{self.digest}",
            entries=(
                Entry(account=owed, amount_pico=-self.amount_pico),
                Entry(account=revenue, amount_pico=self.amount_pico),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HourUsage:
    """All that a project used in one hour, and the digest of the events behind it."""

    hour_at: int
    quantities: tuple[Quantity, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A charge to be recorded, and the standing one that it replaces."""

    charge: Charge
    replaces: Charge | None

    def postings(self) -> list[Posting]:
        """The correction first."""
        made = []
        before = None if self.replaces is None else self.replaces.posting()
        if before is not None:
            made.append(
                unwinding(
                    before, key=f"{before.key}/unwound", at=before.at, about=self.charge.key
                )
            )
        after = self.charge.posting()
        return made if after is None else [*made, after]


def charges_of(
    payer: Payer,
    earlier: Sequence[Quantity],
    hours: Sequence[HourUsage],
    sheets: Sequence[PriceSheet],
    period: Period,
    *,
    is_over: bool,
) -> list[Charge]:
    """The charges of `hours`, in their order; `earlier` is all usage of the period before them.

    With `is_over` also what is once a period; `hours` then reach to its end. Usage that has no
    price makes no charge: `rate` tells it.
    """
    used: defaultdict[tuple[Facts, int], int] = defaultdict(int)
    for each in earlier:
        used[each.facts, each.hour_at] += each.amount
    before = _by_meter(_rated(used, sheets, period))
    made: list[Charge] = []
    for hour in sorted(hours, key=lambda each: each.hour_at):
        _take_in(used, hour.quantities, sheets)
        after = _by_meter(_rated(used, sheets, period))
        sheet = in_force(sheets, hour.hour_at)
        for meter in sorted(after):
            quantity = after[meter][0] - before.get(meter, (0, 0))[0]
            amount = after[meter][1] - before.get(meter, (0, 0))[1]
            if sheet is not None and (quantity or amount):
                made.append(
                    Charge(
                        payer=payer, item=meter, hour_at=hour.hour_at, quantity=quantity,
                        amount_pico=amount, currency=sheet.currency,
                        sheet=f"{sheet.id}/{sheet.version}", digest=hour.digest,
                    )
                )
        before = after
    if is_over:
        made += _once(payer, _rated(used, sheets, period), period)
    return made


def changes(standing: Mapping[tuple[str, int], Charge], right: Sequence[Charge]) -> list[Change]:
    """What makes the charges that stand, by item and hour, those that are right."""
    found: list[Change] = []
    wanted = {(charge.item, charge.hour_at): charge for charge in right}
    for place, charge in wanted.items():
        known = standing.get(place)
        if known is None:
            found.append(Change(charge=charge, replaces=None))
        elif replace(charge, revision=known.revision) != known:
            found.append(
                Change(charge=replace(charge, revision=known.revision + 1), replaces=known)
            )
    for place, known in standing.items():
        if place not in wanted and (known.quantity or known.amount_pico):
            nothing = replace(known, quantity=0, amount_pico=0, revision=known.revision + 1)
            found.append(Change(charge=nothing, replaces=known))
    return found


def _take_in(
    used: defaultdict[tuple[Facts, int], int],
    quantities: Sequence[Quantity],
    sheets: Sequence[PriceSheet],
) -> None:
    """Add an hour's usage to what is known of the hours with the same sheet, so that a period does
    not become slower to rate with each of its hours."""
    known = {
        (facts, _sheet_at(sheets, hour_at)): hour_at for facts, hour_at in used
    }
    for each in quantities:
        hour_at = known.get((each.facts, _sheet_at(sheets, each.hour_at)), each.hour_at)
        used[each.facts, hour_at] += each.amount


def _sheet_at(sheets: Sequence[PriceSheet], hour_at: int) -> tuple[str, int] | None:
    sheet = in_force(sheets, hour_at)
    return None if sheet is None else (sheet.id, sheet.version)


def _rated(
    used: Mapping[tuple[Facts, int], int], sheets: Sequence[PriceSheet], period: Period
) -> Rated:
    return rate(
        [
            Quantity(facts=facts, hour_at=hour_at, amount=amount)
            for (facts, hour_at), amount in used.items()
        ],
        sheets, period,
    )


def _by_meter(rated: Rated) -> dict[str, tuple[int, int]]:
    """Meter -> (quantity, amount) over the lines of usage."""
    sums: dict[str, tuple[int, int]] = {}
    for line in rated.lines:
        if line.kind == "usage" and line.facts is not None:
            quantity, amount = sums.get(line.facts.meter, (0, 0))
            sums[line.facts.meter] = (quantity + line.quantity, amount + line.amount_pico)
    return sums


def _once(payer: Payer, rated: Rated, period: Period) -> list[Charge]:
    return [
        Charge(
            payer=payer, item=f"{line.kind}:{line.sheet}/{line.version}/{line.name}",
            hour_at=period.end - HOUR_NS, quantity=0, amount_pico=line.amount_pico,
            currency=rated.currency or "", sheet=f"{line.sheet}/{line.version}", digest="",
        )
        for line in rated.lines
        if line.kind != "usage" and line.amount_pico
    ]
