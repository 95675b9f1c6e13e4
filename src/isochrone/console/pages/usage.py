"""Usage: what a month came to by day and model, what it cost, and where requests were processed."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec
from nicegui import ui

from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.chart import Series, TimeSeries
from isochrone.console.parts.facts import card, figures
from isochrone.console.parts.notices import banner, empty, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, day, share
from isochrone.core.billing.period import DAY_NS, month_named, month_of, name_of
from isochrone.core.billing.rate import Period

MOST = 100_000  # sums of a part would look like sums of all
MOST_MODELS = 6  # with a colour of their own; the rest are summed
MONTHS = 12


class Now(msgspec.Struct, frozen=True):
    """Of GET /live only control's clock."""

    at: int


class Sum(msgspec.Struct, frozen=True):
    """A sum of usage of one day, model or country."""

    name: str
    requests: int
    finished: int
    input_uncached: int
    input_cached: int
    output: int

    @property
    def tokens(self) -> int:
        return self.input_uncached + self.input_cached + self.output


class Line(msgspec.Struct, frozen=True):
    model: str | None
    amount: Decimal


class Unpriced(msgspec.Struct, frozen=True):
    meter: str


class Spent(msgspec.Struct, frozen=True):
    """A project's month so far. `amount` is None where a `problem` says why it is not known."""

    currency: str | None
    amount: Decimal | None
    charged: Decimal
    lines: tuple[Line, ...]
    unpriced: tuple[Unpriced, ...]
    problem: str | None = None


class Charged(msgspec.Struct, frozen=True):
    """What was charged to a project for the hours of a day."""

    day: str
    currency: str
    charged: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What was used in a month: by model, by day, of the larger models by day, by country."""

    models: tuple[Sum, ...]
    days: tuple[Sum, ...]
    of_model: Mapping[str, tuple[Sum, ...]]
    countries: tuple[Sum, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a month costs, and what was charged so far for each day."""

    spent: tuple[Spent, ...]
    days: tuple[Charged, ...]


async def build(visit: Visit) -> None:
    title("Usage", "What was used in a month, what it costs, and where it was processed")
    opened = await shown(visit.api.get("live", Now))
    if opened is None:
        return
    names = list(months_before(month_of(opened.at)))
    with ui.row().classes("iso-ask"):
        month = ui.select(names, label="Month", value=names[0]).props("outlined dense")
        month.classes("iso-choice")
    body = ui.column().classes("iso-said")

    async def look() -> None:
        body.clear()
        with body:
            period = month_named(str(month.value))
            now = await shown(visit.api.get("live", Now))  # the page may have been open for days
            used = await shown(_used(visit, period))
            if now is None or used is None:
                return
            bill = None
            if visit.me.may("ledger.read"):
                bill = await shown(_bill(visit, name_of(period)))
            _show(period, used, bill, now.at)

    month.on_value_change(look)
    await look()


def months_before(present: Period) -> Iterator[str]:
    """The names of the present month and those before it."""
    period = present
    for _ in range(MONTHS):
        yield name_of(period)
        period = month_of(period.begin - 1)


async def _used(visit: Visit, period: Period) -> Used:
    window = {"since": str(period.begin), "until": str(period.end)}

    async def by(group: str, model: str | None = None) -> tuple[Sum, ...]:
        return await visit.api.items("usage", Sum, most=MOST, by=group, model=model, **window)

    models, days, countries = await asyncio.gather(by("model"), by("day"), by("country"))
    largest = sorted(models, key=lambda each: -each.tokens)[:MOST_MODELS]
    of_model = await asyncio.gather(*(by("day", each.name) for each in largest))
    return Used(
        models=models, days=days, countries=countries,
        of_model={each.name: found for each, found in zip(largest, of_model, strict=True)},
    )


async def _bill(visit: Visit, month: str) -> Bill:
    spent, days = await asyncio.gather(
        visit.api.items("ledger/spent", Spent, most=MOST, month=month),
        visit.api.items("ledger/days", Charged, most=MOST, month=month),
    )
    return Bill(spent=spent, days=days)


def _show(period: Period, used: Used, bill: Bill | None, now: int) -> None:
    requests = sum(each.requests for each in used.models)
    finished = sum(each.finished for each in used.models)
    served = [each for each in used.countries if each.name]
    figures([
        ("Requests", count(requests), f"{share(finished, requests)} finished" if requests else ""),
        ("Tokens in", count(sum(each.input_uncached + each.input_cached for each in used.models)),
         f"{count(sum(each.input_cached for each in used.models))} of them cached"),
        ("Tokens out", count(sum(each.output for each in used.models)), ""),
        *spent_figures(bill),
        ("Processed in", ", ".join(each.name for each in served[:4]) or "nowhere",
         f"{len(served)} countries" if len(served) != 1 else "one country"),
    ])
    spent = () if bill is None else bill.spent
    unpriced = sorted({each.meter for project in spent for each in project.unpriced})
    if unpriced:
        with banner("warn", f"No price sheet prices {', '.join(unpriced)}."):
            pass
    for problem in (project.problem for project in spent if project.problem is not None):
        with banner("warn", f"Not counted in: {problem}."):
            pass
    at = list(range(period.begin, min(period.end, now + DAY_NS), DAY_NS))
    with ui.element("div").classes("iso-grid"):
        with card("Tokens by day and model"):
            series = token_series(at, used)
            if series:
                TimeSeries(form="bars").show(at, series)
            else:
                empty("No tokens in this month.", "Ask for some in the playground.")
        if bill is not None:
            for currency in _currencies(bill):
                with card(f"{currency} by day"):
                    TimeSeries(form="bars").show(at, spend_series(at, bill, currency, now))
    _models(used, bill)
    _countries(used.countries)


def spent_figures(bill: Bill | None) -> list[tuple[str, str, str]]:
    """What was spent by currency, without what is not known."""
    if bill is None:
        return []
    found = []
    for currency in _currencies(bill):
        of_it = _known(bill, currency)
        charged = sum((charged for _, charged in of_it), Decimal(0))
        found.append((
            "Spent", f"{written(sum((amount for amount, _ in of_it), Decimal(0)))} {currency}",
            f"{written(charged)} of it charged; hours are charged when they are over",
        ))
    return found


def _known(bill: Bill, currency: str) -> list[tuple[Decimal, Decimal]]:
    """What each project came to and what of it is charged, where that is known."""
    return [
        (each.amount, each.charged) for each in bill.spent
        if each.currency == currency and each.amount is not None
    ]


def token_series(at: Sequence[int], used: Used) -> list[Series]:
    """Tokens of the larger models by day, and those of the rest together."""
    days = [day(each) for each in at]
    series, left = [], {each.name: each.tokens for each in used.days}
    for model, sums in used.of_model.items():
        known = {each.name: each.tokens for each in sums}
        for name, tokens in known.items():
            left[name] = left.get(name, 0) - tokens
        if any(known.values()):
            series.append(Series(
                name=model or "no model", values=[float(known.get(name, 0)) for name in days]
            ))
    if any(tokens > 0 for tokens in left.values()):
        rest = [float(max(left.get(name, 0), 0)) for name in days]
        series.append(Series(name="others", values=rest))
    return series


def spend_series(at: Sequence[int], bill: Bill, currency: str, now: int) -> list[Series]:
    """Charges by day, and today what will be charged when its hours are over."""
    charged: dict[str, Decimal] = {}
    for each in bill.days:
        if each.currency == currency:
            charged[each.day] = charged.get(each.day, Decimal(0)) + each.charged
    open_ = sum((amount - charged for amount, charged in _known(bill, currency)), Decimal(0))
    days = [day(each) for each in at]
    series = [Series(name="charged", values=[float(charged.get(name, 0)) for name in days])]
    if open_ > 0 and day(now) in days:
        series.append(Series(
            name="not charged yet", colour=1,
            values=[float(open_) if name == day(now) else 0.0 for name in days],
        ))
    return series


def _models(used: Used, bill: Bill | None) -> None:
    cost: dict[str, dict[str, Decimal]] = {}
    for spent in bill.spent if bill is not None else ():
        for line in spent.lines:
            of_it = cost.setdefault(line.model or "", {})
            known = of_it.get(spent.currency or "", Decimal(0))
            of_it[spent.currency or ""] = known + line.amount
    columns = [
        Column(title="Model"), Column(title="Requests", kind="number"),
        Column(title="Finished", kind="number"), Column(title="In, not cached", kind="number"),
        Column(title="In, cached", kind="number"), Column(title="Out", kind="number"),
    ]
    rows: list[list[object]] = [
        [
            each.name or "none", count(each.requests), share(each.finished, each.requests),
            count(each.input_uncached), count(each.input_cached), count(each.output),
            *([_amounts(cost.pop(each.name, {}))] if bill is not None else []),
        ]
        for each in sorted(used.models, key=lambda each: -each.tokens)
    ]
    if bill is not None:
        columns.append(Column(title="Spent", kind="number"))
        rows += [
            [name or "not of one model", *[None] * 5, _amounts(amounts)]
            for name, amounts in cost.items() if any(amounts.values())
        ]
    with card():
        table(
            columns, rows, title="By model", empty="Nothing was used in this month.",
            hint="Try the playground.",
        )


def _countries(countries: Sequence[Sum]) -> None:
    served = sum(each.requests for each in countries if each.name)
    with card():
        table(
            (
                Column(title="Country"), Column(title="Requests", kind="number"),
                Column(title="Share", kind="number"), Column(title="Tokens", kind="number"),
            ),
            [
                (
                    each.name or "nowhere: no site served it", count(each.requests),
                    share(each.requests, served) if each.name else None, count(each.tokens),
                )
                for each in sorted(countries, key=lambda each: (not each.name, -each.requests))
            ],
            title="Where requests were processed", empty="Nothing was processed in this month.",
        )
        ui.label(
            "The country of the site that served each, as its record says. Which one served a "
            "single request, and which rule refused the others, is under Explain."
        ).classes("iso-about")


def _currencies(bill: Bill) -> list[str]:
    return sorted({each.currency for each in bill.spent if each.currency is not None})


def _amounts(amounts: Mapping[str, Decimal]) -> str | None:
    return ", ".join(f"{written(each)} {name}" for name, each in sorted(amounts.items())) or None


def written(amount: Decimal) -> str:
    """With up to four digits that say something, at least two behind the point."""
    if amount == 0 or abs(amount) >= 1:
        return f"{amount:,.2f}".replace(",", "\u202f")
    whole, _, rest = f"{amount:.{max(2, 3 - amount.adjusted())}f}".partition(".")
    return f"{whole}.{rest.rstrip('0'):0<2}"
