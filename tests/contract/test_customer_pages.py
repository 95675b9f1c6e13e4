"""What the pages for customers ask of the Control API, as each role, over a real PostgreSQL; and
the relay of the playground: what passes it, and for whom."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TypeVar

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from isochrone.console import relay
from isochrone.console.api import Api as Caller
from isochrone.console.api import open_client
from isochrone.console.page import Me, Visit
from isochrone.console.pages import keys, limits, usage
from isochrone.console.sign_in import cookie_for
from isochrone.core.billing.period import month_of, name_of
from isochrone.core.errors import Forbidden, InvalidInput, NotFound
from isochrone.core.ids import ModelName, OrgId, SiteName, uuid7
from isochrone.core.metering.event import Tokens
from tests.contract.test_control_api import ADMIN, JOIN, Api, api  # noqa: F401 - a fixture
from tests.contract.test_money_api import SHEET
from tests.unit.build_usage import a_usage_event

T = TypeVar("T")
FILLED = {"name": "shop", "residency": "de, FR", "scopes": "chat,models", "expires_at": ""}


def as_caller(
    api: Api, secret: str, work: Callable[[Visit], Awaitable[T]]  # noqa: F811
) -> T:
    """The result of `work` with the calls that a page makes for whoever has this secret."""
    async def run() -> T:
        transport = httpx.ASGITransport(app=api.client.app)
        async with open_client("http://control.example", transport) as client:
            caller = Caller(client, secret)
            return await work(Visit(me=await caller.get("me", Me), api=caller, query={}))

    return asyncio.run(run())


def test_a_key_is_made_replaced_and_ended_as_the_page_does(api: Api) -> None:  # noqa: F811
    async def work(visit: Visit) -> tuple[keys.Made, keys.Made, tuple[keys.Key, ...]]:
        made = await visit.api.post("keys", keys.Made, keys.new_key(FILLED), once="a")
        again = await visit.api.post("keys", keys.Made, keys.new_key(FILLED), once="a")
        assert again == made, "a lost reply is asked for again"
        new = await visit.api.post(f"keys/{made.id}/rotate", keys.Made, {"overlap_s": 3600})
        await visit.api.delete(f"keys/{new.id}", keys.Revoked)
        return made, new, await visit.api.items("keys", keys.Key)

    made, new, listed = as_caller(api, api.tenant("acme", "developer"), work)
    assert made.key.startswith("iso_")
    assert made.key != new.key
    by_id = {each.id: each for each in listed}
    assert by_id.keys() == {made.id, new.id}
    assert (by_id[made.id].residency, by_id[made.id].scopes) == (("DE", "FR"), ("chat", "models"))
    now = api.context.now()
    assert keys.ended(by_id[made.id], now) is None
    assert (keys.ended(by_id[made.id], now + 3_700 * 10**9) or "").startswith("expired")
    assert (keys.ended(by_id[new.id], now) or "").startswith("ended")


def test_bad_input_names_the_field_that_it_is_about(api: Api) -> None:  # noqa: F811
    wrong = {**FILLED, "residency": "Atlantis", "expires_at": "2020-01-31"}

    async def work(visit: Visit) -> None:
        await visit.api.post("keys", keys.Made, keys.new_key(wrong))

    with pytest.raises(InvalidInput) as failed:
        as_caller(api, api.tenant("acme"), work)
    assert {problem.partition(":")[0] for problem in failed.value.problems} == {
        "residency", "expires_at",
    }


@pytest.mark.parametrize("role", ["billing", "auditor"])
def test_who_may_not_write_keys_makes_none(api: Api, role: str) -> None:  # noqa: F811
    async def work(visit: Visit) -> None:
        assert not visit.me.may("keys.write"), "the page has no buttons"
        await visit.api.post("keys", keys.Made, keys.new_key(FILLED))

    with pytest.raises(Forbidden):
        as_caller(api, api.tenant("acme", role), work)


def test_the_keys_of_others_are_neither_seen_nor_ended(api: Api) -> None:  # noqa: F811
    mine, theirs = api.tenant("acme"), api.tenant("other")

    async def make(visit: Visit) -> keys.Made:
        return await visit.api.post("keys", keys.Made, keys.new_key(FILLED))

    async def reach(visit: Visit) -> None:
        assert await visit.api.items("keys", keys.Key) == ()
        await visit.api.delete(f"keys/{made.id}", keys.Revoked)

    made = as_caller(api, mine, make)
    with pytest.raises(NotFound):
        as_caller(api, theirs, reach)


@pytest.fixture
def used(api: Api) -> Api:  # noqa: F811
    """Requests of now: two of the default organisation, served in AU, one refused; one of another
    organisation in DE."""
    now = api.context.now()
    api.make("prices", SHEET)

    def event(number: int, **changes: object) -> None:
        one = replace(
            a_usage_event(uuid7(now, number)), received_at=now, finished_at=now,
            org_id=OrgId("default"), serving_site=SiteName("sydney"), serving_country="AU",
            tokens=Tokens(input_uncached=100, output=1_000, source="engine"),
            outcome="finished",
        )
        api.context.book.book_usage([replace(one, **changes)], now=now)  # type: ignore[arg-type]

    event(1)
    event(2, model=ModelName("other"))
    event(3, serving_site=None, serving_country=None, outcome="refused", tokens=Tokens())
    event(4, org_id=OrgId("else"), serving_site=SiteName("frankfurt"), serving_country="DE")
    return api


def test_a_month_by_day_model_country_and_money(used: Api) -> None:
    period = month_of(used.context.now())

    async def work(visit: Visit) -> tuple[usage.Used, usage.Bill]:
        return await usage._used(visit, period), await usage._bill(visit, name_of(period))

    everything, _ = as_caller(used, ADMIN, work)
    assert {each.name: each.requests for each in everything.countries} == {"": 1, "AU": 2, "DE": 1}
    assert sum(each.tokens for each in everything.days) == 3 * 1_100
    assert {name: sums[0].tokens for name, sums in everything.of_model.items()}["other"] == 1_100
    assert used.call("POST", "ledger/charges")[0] == 200
    _, bill = as_caller(used, ADMIN, work)
    spent = [each.amount for each in bill.spent if each.amount is not None]
    assert len(spent) == len(bill.spent)
    assert sum(spent) == sum(each.charged for each in bill.days) > 0
    lines = [line for each in bill.spent for line in each.lines]
    assert {line.model for line in lines if line.amount} >= {"other"}


def test_a_tenant_sees_what_it_used_and_where_and_nothing_of_others(used: Api) -> None:
    period = month_of(used.context.now())

    async def work(visit: Visit) -> tuple[usage.Used, usage.Bill]:
        return await usage._used(visit, period), await usage._bill(visit, name_of(period))

    nothing, bill = as_caller(used, used.tenant("acme", "billing"), work)
    assert (nothing.models, nothing.days, nothing.countries, bill.spent, bill.days) == ((),) * 5


def test_spend_is_for_those_who_may_see_the_ledger(used: Api) -> None:
    async def work(visit: Visit) -> None:
        assert not visit.me.may("ledger.read"), "the page does not ask"
        await usage._bill(visit, name_of(month_of(used.context.now())))

    with pytest.raises(Forbidden):
        as_caller(used, used.tenant("acme", "developer"), work)


def test_a_limit_is_set_seen_and_removed_as_the_page_does(api: Api) -> None:  # noqa: F811
    async def work(visit: Visit) -> limits.Limit:
        (project,) = await visit.api.items("projects", limits.Named)
        filled = {"whose": f"project_id {project.id}", "kind": "requests_per_min",
                  "amount": " 60 ", "period": "", "currency": ""}
        made = await visit.api.put("limits", limits.Limit, limits.new_limit(filled))
        assert await visit.api.items("limits", limits.Limit) == (made,)
        wrong = {**filled, "period": "day", "currency": "EUR"}
        with pytest.raises(InvalidInput):
            await visit.api.put("limits", limits.Limit, limits.new_limit(wrong))
        return await visit.api.delete(f"limits/{made.id}", limits.Limit)

    gone = as_caller(api, api.tenant("acme"), work)
    assert (limits.said(gone), limits.used(gone)) == ("60 requests a minute", Decimal(0))
    with pytest.raises(Forbidden):
        as_caller(api, api.tenant("other", "developer"), work)


@dataclass
class Gateway:
    """What a gateway was asked, and answers."""

    heard: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def app(self) -> Starlette:
        async def answer(request: Request) -> Response:
            self.heard.append((str(request.url), dict(request.headers), await request.body()))
            return JSONResponse(
                {"said": "hello"}, status_code=429,
                headers={"x-isochrone-site": "sydney", "set-cookie": "a=b", "retry-after": "7"},
            )

        return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


Ask = Callable[..., httpx.Response]


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def ask(api: Api, gateway: Gateway) -> Ask:  # noqa: F811
    """One request to the relay, with the session of whoever has `secret`."""
    token = api.make("sites/sydney/token", None)["token"]
    assert api.call("POST", "sites/join", {**JOIN, "token": token}, key=None)[0] == 200
    cookie = cookie_for("http://console.example:80")

    def send(
        method: str, path: str, secret: str | None, content: bytes = b"{}",
        key: bytes = b"iso_mine",
    ) -> httpx.Response:
        async def run() -> httpx.Response:
            control = httpx.ASGITransport(app=api.client.app)
            async with (
                open_client("http://control.example", control) as client,
                relay.open_gateways(httpx.ASGITransport(app=gateway.app())) as gateways,
            ):
                app = FastAPI()
                app.include_router(relay.routes(client, gateways, cookie))
                async with httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=app), base_url="http://console.example",
                    cookies={} if secret is None else {cookie.name: secret},
                ) as browser:
                    return await browser.request(
                        method, f"/playground/{path}", content=content,
                        headers={b"authorization": b"Bearer " + key,
                                 b"x-forwarded-for": b"10.0.0.1"},
                    )

        return asyncio.run(run())

    return send


def test_the_relay_passes_the_key_on_and_neither_session_nor_cookies(
    ask: Ask, gateway: Gateway
) -> None:
    answer = ask("POST", "chat?site=sydney", ADMIN, b'{"model":"m"}')
    assert (answer.status_code, answer.json()) == (429, {"said": "hello"})
    assert (answer.headers["x-isochrone-site"], answer.headers["retry-after"]) == ("sydney", "7")
    assert "set-cookie" not in answer.headers
    ((url, headers, body),) = gateway.heard
    assert (url, body) == ("https://sydney.example/v1/chat/completions", b'{"model":"m"}')
    assert headers["authorization"] == "Bearer iso_mine"
    assert not {"cookie", "x-forwarded-for"} & headers.keys()
    assert ADMIN not in repr(headers)


def test_a_key_that_was_pasted_with_a_letter_of_no_key_is_the_gateways_to_refuse(
    ask: Ask, gateway: Gateway
) -> None:
    assert ask("POST", "chat?site=sydney", ADMIN, key=b"iso_mine\xad").status_code == 429
    ((_, headers, _),) = gateway.heard
    assert headers["authorization"] == "Bearer iso_mine\xad"


@pytest.mark.parametrize(
    ("site", "secret", "size", "status"),
    [
        ("sydney", None, 2, 401), ("sydney", "isoses_wrong", 2, 401), ("nowhere", ADMIN, 2, 404),
        ("frankfurt", ADMIN, 2, 404), ("..%2Fusage", ADMIN, 2, 404),
        ("sydney", ADMIN, relay.MOST_BYTES + 1, 413),
    ],
)
def test_the_relay_asks_no_gateway_for_strangers_or_of_unknown_sites(
    ask: Ask, gateway: Gateway, site: str, secret: str | None, size: int, status: int
) -> None:
    answer = ask("POST", f"chat?site={site}", secret, b"x" * size)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert gateway.heard == []


def test_what_an_answer_cost_is_told_to_its_organisation_alone(used: Api, ask: Ask) -> None:
    now = used.context.now()
    (found,) = used.call("GET", "usage?limit=1")[1]["items"]
    assert found["received_at"] <= now
    told = ask("GET", f"requests/{found['id']}", ADMIN)
    assert (told.status_code, told.json()["tokens"]["output"]) == (200, 1_000)
    assert told.json()["price"]["currency"] == "EUR"
    assert ask("GET", f"requests/{found['id']}", used.tenant("acme")).status_code == 204
    assert ask("GET", f"requests/{found['id']}", None).status_code == 401


