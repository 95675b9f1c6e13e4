"""Pages of the console as they are put together for a browser, without one, over a real PostgreSQL.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace

import httpx
import pytest
from nicegui import Client, core, ui
from nicegui.page import page

from isochrone.adapters.postgres.pool import Pool
from isochrone.console.api import Api as Caller
from isochrone.console.api import open_client
from isochrone.console.page import Me, Visit
from isochrone.console.pages import ledger, reconciliation, usage
from isochrone.core.billing.period import month_of, name_of
from isochrone.core.ids import uuid7
from isochrone.core.metering.event import Tokens
from isochrone.core.tenancy.terms import DAY_NS
from tests.contract.test_control_api import ADMIN, Api, an_api
from tests.contract.test_tenancy_api import Ahead, clock
from tests.unit.build_usage import a_usage_event

__all__ = ["clock"]

Build = Callable[[Visit], Awaitable[None]]
MOST_TURNS = 1_000


@pytest.fixture
def api(pool: Pool, clock: Ahead) -> Iterator[Api]:
    with an_api(pool, clock) as found:
        yield found


def shows(
    api: Api, build: Build, query: Mapping[str, str], then: Callable[[Client], Awaitable[None]]
) -> None:
    """Put a page together for the operator, and look at it."""

    async def run() -> None:
        core.loop = asyncio.get_running_loop()
        client = Client(page("/page"), request=None)
        transport = httpx.ASGITransport(app=api.client.app)
        try:
            with client:
                async with open_client("http://control.example", transport) as connections:
                    caller = Caller(connections, ADMIN)
                    await build(Visit(me=await caller.get("me", Me), api=caller, query=query))
                    await then(client)
        finally:
            client.delete()
            core.loop = None

    asyncio.run(run())


def labels(client: Client) -> list[str]:
    return [each.text for each in client.elements.values() if isinstance(each, ui.label)]


@pytest.mark.parametrize(
    ("build", "query", "said", "field"),
    [
        (ledger.build, {"month": "2026-13"}, "month: must be like 2026-11", "Month"),
        (reconciliation.build, {"day": "2026-11-31"}, "day: must be like 2026-11-20", "Day (UTC)"),
    ],
    ids=["month", "day"],
)
def test_what_is_wrong_in_an_address_can_be_chosen_anew(
    api: Api, build: Build, query: dict[str, str], said: str, field: str
) -> None:
    async def look(client: Client) -> None:
        assert any(said in each for each in labels(client))
        fields = [each for each in client.elements.values() if isinstance(each, ui.input)]
        assert (fields[0].props["label"], fields[0].value) == (field, *query.values())

    shows(api, build, query, look)


def test_a_page_that_is_open_for_days_shows_the_days_until_now(api: Api, clock: Ahead) -> None:
    month = month_of(api.context.now())
    clock.ahead_ns = month.begin + DAY_NS // 2 - api.context.now()
    now = api.context.now()
    event = replace(
        a_usage_event(uuid7(now, 1)), received_at=now, finished_at=now, outcome="finished",
        tokens=Tokens(input_uncached=100, output=1_000, source="engine"),
    )
    api.context.book.book_usage([event], now=now)

    async def look(client: Client) -> None:
        (choice,) = [each for each in client.elements.values() if isinstance(each, ui.select)]
        first = days(client)
        clock.ahead_ns += 2 * DAY_NS
        choice.set_value(name_of(month_of(month.begin - 1)))
        await until(lambda: "Nothing was used in this month." in labels(client))
        choice.set_value(name_of(month))
        await until(lambda: days(client) > 0)
        assert days(client) == first + 2

    shows(api, usage.build, {}, look)


def days(client: Client) -> int:
    """How many are drawn."""
    charts = [each for each in client.elements.values() if isinstance(each, ui.echart)]
    return max((len(one["data"]) for each in charts for one in each.options["series"]), default=0)


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(MOST_TURNS):
        if is_so():
            return
        await asyncio.sleep(0.005)
    pytest.fail("nothing is shown anew")
