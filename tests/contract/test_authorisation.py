"""Every role calls every endpoint, on records of its own organisation and of another.

What should come of it stands in the table of docs/tenancy.md; an endpoint without a row fails.
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.routing import APIRoute
from psycopg.conninfo import make_conninfo

from isochrone.adapters.postgres.pool import APPLICATION_ROLE, open_pool
from isochrone.adapters.postgres.server import PostgresPlan
from isochrone.control.api.app import PREFIX, RESOURCES
from isochrone.control.api.auth import Need
from isochrone.core.billing.period import month_of, name_of
from isochrone.core.ids import RequestId, uuid7
from isochrone.core.lifecycle.experiment_run import ExperimentOrder, ExperimentRun
from isochrone.core.metering.event import Tokens, UsageEvent
from isochrone.core.tenancy.authorise import ACTIONS, CALLER_ROLES, MAY, CallerRole, authorise
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.reconciling import KeptReport
from isochrone.twin.fakes.player import FakePlayer
from tests.contract.test_control_api import ADMIN, JOIN, Api, a_booked, an_api
from tests.contract.test_hosts import a_load, says
from tests.fixtures.postgres import new_database

DOCUMENT = Path(__file__).parents[2] / "docs" / "tenancy.md"
HOUR_NS = 3600 * 1_000_000_000


Call = tuple[str, object]


class Row(NamedTuple):
    """One line of the table: the endpoint, its right, and a cell for each role."""

    right: str
    cells: dict[str, str]


def table() -> dict[str, Row]:
    lines = [
        [cell.strip(" `") for cell in line.strip("|\n").split("|")]
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith(("| endpoint", "| `"))
    ]
    head = next(line for line in lines if line[0] == "endpoint")
    assert tuple(head[2:]) == CALLER_ROLES
    return {
        line[0]: Row(line[1], dict(zip(head[2:], line[2:], strict=True)))
        for line in lines if re.match(r"(GET|PUT|POST|PATCH|DELETE) /", line[0])
    }


TABLE = table()


class Stage:
    """Two organisations, a caller of every role in the first, and makers of fresh records."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.numbers = 0
        self.orgs: dict[str, str] = {}
        for whose in SIDES:
            self.orgs[whose] = str(api.make("organisations", {"name": whose})["id"])
        self.callers: dict[str, str] = {"operator": ADMIN}
        for role in CALLER_ROLES:
            if role not in ("operator", "key"):
                body = {"name": role, "role": role, "org_id": self.orgs["own"]}
                self.callers[role] = str(api.make("principals", body)["key"])
        self.requests: dict[str, str] = {}
        self.projects: dict[str, str] = {}
        self.projects |= {whose: str(self.project(org)["id"]) for whose, org in self.orgs.items()}
        made = {whose: self.key(whose) for whose in SIDES}
        self.callers["key"] = str(made["own"]["key"])
        booked = {
            whose: a_booked(api, self.orgs[whose], made[whose]["id"], number)
            for number, whose in enumerate(SIDES)
        }
        self.requests |= {whose: event.request_id for whose, event in booked.items()}
        self.month: str = name_of(month_of(booked["own"].received_at))
        for whose in SIDES:
            self.entitlement(whose)
            self.member(whose)
            self.money(whose)
            self.limit(whose)
            self.use(booked[whose])
        assert api.call("POST", "ledger/charges")[0] == 200
        self.experiment()
        says(api, "frankfurt", (a_load("rack1"),))
        report = KeptReport(day_at=0, agrees=True, report='{"findings": []}', made_at=1)
        api.context.registry.reconciling.keep_report(report)

    def number(self) -> int:
        """Another one each time."""
        self.numbers += 1
        return self.numbers

    def closing(self, whose: str) -> str:
        """An organisation that is open, even if the call before closed it."""
        assert self.api.call("POST", f"organisations/{self.orgs[whose]}/reopen")[0] == 200
        return self.orgs[whose]

    def project(self, org: str) -> Any:
        name = f"p{len(self.api.call('GET', 'projects?limit=1000')[1]['items'])}"
        return self.api.make("projects", {"name": name, "org_id": org})

    def key(self, whose: str) -> Any:
        return self.api.make("keys", {"project_id": self.projects[whose]})

    def member(self, whose: str) -> Any:
        body = {"name": "Somebody", "role": "billing", "org_id": self.orgs[whose]}
        return self.api.make("principals", body)

    def entitlement(self, whose: str) -> Any:
        return self.api.make("entitlements", self.sale(whose))

    def wanted_limit(self, whose: str) -> dict[str, object]:
        return {"kind": "concurrent", "amount": "3", "project_id": self.projects[whose]}

    def limit(self, whose: str) -> Any:
        status, made = self.api.call("PUT", "limits", self.wanted_limit(whose))
        assert status == 200
        return made

    def experiment(self) -> str:
        """A run that is done."""
        playing, store = self.api.context.experiments, self.api.context.registry.experiments
        assert playing is not None
        run = ExperimentRun(
            id=f"run-{self.number()}", order=ExperimentOrder(wanted="mine", is_own=True),
            title="mine", state="waiting", asked_by="x", asked_at=1, runs=1, about_s=1.0,
        )
        playing.player.keep(run.id, "x = 1")
        store.add(EVERY_TENANT, run, once=None, most_open=5)
        store.step(EVERY_TENANT, run.id, "begun", now=2)
        asyncio.run(playing.player.play(run.id, run.order))
        store.step(EVERY_TENANT, run.id, "finished", now=3)
        return run.id

    def money(self, whose: str) -> None:
        """A price sheet, a credit, and an event of no meter."""
        call, org = self.api.call, self.orgs[whose]
        assert call("POST", *self.sheet(whose))[0] == 201
        body = {"org_id": org, "project_id": self.projects[whose], "amount": "1"}
        assert call("POST", "ledger/credits", body, once=whose)[0] == 201
        assert call("POST", "meters/events", {"events": [self.event(whose)]})[0] == 200

    def use(self, before: UsageEvent) -> None:
        """The same request again, now, when there are prices."""
        now = self.api.context.now()
        event = replace(
            before, request_id=RequestId(uuid7(now, self.number())), received_at=now, decision=None,
            tokens=Tokens(output=1, source="engine"),
        )
        self.api.context.book.book_usage([event], now=now)

    def sheet(self, whose: str) -> Call:
        price = {"name": "all", "charge": {"model": "per_unit", "price": "1"},
                 "meters": ["output_tokens"]}
        sheet = {"id": whose, "currency": "EUR", "prices": [price],
                 "valid_from": month_of(self.api.context.now()).begin}
        return f"prices?org_id={self.orgs[whose]}", sheet

    def event(self, whose: str) -> dict[str, object]:
        return {"id": "e", "org_id": self.orgs[whose], "meter": "luck", "amount": 1, "at": "1",
                "project_id": self.projects[whose]}

    def sale(self, whose: str) -> dict[str, object]:
        until = str(self.api.context.now() + HOUR_NS)
        return {"org_id": self.orgs[whose], "model": "tiny", "tok_s": 9, "ends_at": until}


SIDES = ("own", "other")

# How to call each endpoint on a record of the organisation that is `own` or `other` to the callers.
CALLS: dict[str, Callable[[Stage, str], Call]] = {
    "GET /audit": lambda stage, _: ("audit?limit=1000", None),
    "GET /days": lambda stage, _: ("days", None),
    "POST /days/{day}/detach": lambda stage, _: ("days/2026-01-01/detach", {}),
    "POST /days/{day}/attach": lambda stage, _: ("days/2026-01-01/attach", {}),
    "GET /days/{day}/check": lambda stage, _: ("days/2026-01-01/check", None),
    "GET /deployments": lambda stage, _: ("deployments", None),
    "PUT /deployments": lambda stage, _: (
        "deployments", {"site": "sydney", "model": "tiny", "replicas": 2}
    ),
    "GET /entitlements": lambda stage, _: ("entitlements", None),
    "POST /entitlements": lambda stage, whose: ("entitlements", stage.sale(whose)),
    "DELETE /entitlements/{entitlement_id}": lambda stage, whose: (
        f"entitlements/{stage.entitlement(whose)['id']}", None
    ),
    "GET /experiments": lambda stage, _: ("experiments", None),
    "POST /experiments": lambda stage, _: ("experiments", {"wanted": "eight-sites"}),
    "GET /experiments/packaged": lambda stage, _: ("experiments/packaged", None),
    "POST /experiments/plans": lambda stage, _: ("experiments/plans", {"wanted": "eight-sites"}),
    "GET /experiments/{run_id}": lambda stage, _: (f"experiments/{stage.experiment()}", None),
    "DELETE /experiments/{run_id}": lambda stage, _: (f"experiments/{stage.experiment()}", None),
    "POST /experiments/{run_id}/stop": lambda stage, _: ("experiments/none/stop", None),
    "GET /experiments/{run_id}/results": lambda stage, _: (
        f"experiments/{stage.experiment()}/results", None
    ),
    "GET /experiments/{run_id}/report": lambda stage, _: (
        f"experiments/{stage.experiment()}/report", None
    ),
    "GET /experiments/{run_id}/scenario": lambda stage, _: (
        f"experiments/{stage.experiment()}/scenario", None
    ),
    "GET /flows": lambda stage, whose: (f"flows?org_id={stage.orgs[whose]}", None),
    "GET /health": lambda stage, _: ("health", None),
    "GET /keys": lambda stage, _: ("keys?limit=1000", None),
    "POST /keys": lambda stage, whose: ("keys", {"project_id": stage.projects[whose]}),
    "POST /keys/{key_id}/rotate": lambda stage, whose: (
        f"keys/{stage.key(whose)['id']}/rotate", {}
    ),
    "DELETE /keys/{key_id}": lambda stage, whose: (f"keys/{stage.key(whose)['id']}", None),
    "GET /ledger/balances": lambda stage, _: ("ledger/balances", None),
    "POST /ledger/charges": lambda stage, _: ("ledger/charges", None),
    "POST /ledger/corrections": lambda stage, whose: (
        "ledger/corrections", {"org_id": stage.orgs[whose], "key": "x", "about": "x"}
    ),
    "POST /ledger/credits": lambda stage, whose: (
        "ledger/credits",
        {"org_id": stage.orgs[whose], "project_id": stage.projects[whose], "amount": "1"},
    ),
    "GET /ledger/postings": lambda stage, _: ("ledger/postings", None),
    "GET /ledger/days": lambda stage, _: ("ledger/days", None),
    "GET /ledger/spent": lambda stage, _: (f"ledger/spent?month={stage.month}", None),
    "GET /meters": lambda stage, _: ("meters", None),
    "GET /meters/events": lambda stage, _: ("meters/events", None),
    "POST /meters/events": lambda stage, whose: (
        "meters/events", {"events": [stage.event(whose)]}
    ),
    "GET /meters/unmetered": lambda stage, _: ("meters/unmetered", None),
    "GET /live": lambda stage, _: ("live", None),
    "GET /me": lambda stage, _: ("me", None),
    "PUT /me/password": lambda stage, _: ("me/password", {"present": "x", "password": "y"}),
    "GET /limits": lambda stage, _: ("limits?limit=1000", None),
    "PUT /limits": lambda stage, whose: ("limits", stage.wanted_limit(whose)),
    "GET /limits/{limit_id}": lambda stage, whose: (f"limits/{stage.limit(whose)['id']}", None),
    "DELETE /limits/{limit_id}": lambda stage, whose: (
        f"limits/{stage.limit(whose)['id']}", None
    ),
    "GET /models": lambda stage, _: ("models", None),
    "GET /organisations": lambda stage, _: ("organisations", None),
    "POST /organisations": lambda stage, whose: (
        "organisations", {"name": f"made {len(stage.api.call('GET', 'organisations')[1]['items'])}"}
    ),
    "GET /organisations/{org_id}": lambda stage, whose: (
        f"organisations/{stage.orgs[whose]}", None
    ),
    "PATCH /organisations/{org_id}": lambda stage, whose: (
        f"organisations/{stage.orgs[whose]}", {"retain_days": 30}
    ),
    "POST /organisations/{org_id}/close": lambda stage, whose: (
        f"organisations/{stage.closing(whose)}/close", None
    ),
    "POST /organisations/{org_id}/reopen": lambda stage, whose: (
        f"organisations/{stage.orgs[whose]}/reopen", None
    ),
    "GET /policies": lambda stage, _: ("policies", None),
    "POST /policies": lambda stage, whose: (
        "policies", {"residency": ["DE"], "org_id": stage.orgs[whose]}
    ),
    "POST /policies/trials": lambda stage, _: ("policies/trials", {"residency": ["DE"]}),
    "GET /prices": lambda stage, _: ("prices", None),
    "POST /prices": lambda stage, whose: stage.sheet(whose),
    "POST /prices/trials": lambda stage, whose: (
        stage.sheet(whose)[0].replace("prices", "prices/trials"), stage.sheet(whose)[1]
    ),
    "GET /reconciliation": lambda stage, _: ("reconciliation", None),
    "POST /reconciliation/sums": lambda stage, _: ("reconciliation/sums", {}),
    "GET /reconciliation/reports": lambda stage, _: ("reconciliation/reports", None),
    "GET /principals": lambda stage, _: ("principals?limit=1000", None),
    "POST /principals": lambda stage, whose: (
        "principals", {"name": "New", "role": "billing", "org_id": stage.orgs[whose]}
    ),
    "PATCH /principals/{principal_id}": lambda stage, whose: (
        f"principals/{stage.member(whose)['id']}", {"role": "developer"}
    ),
    "PUT /principals/{principal_id}/password": lambda stage, whose: (
        f"principals/{stage.member(whose)['id']}/password",
        {"login": f"somebody {stage.number()}", "password": "correct horse battery"},
    ),
    "POST /principals/{principal_id}/rotate": lambda stage, whose: (
        f"principals/{stage.member(whose)['id']}/rotate", {}
    ),
    "POST /principals/{principal_id}/erase": lambda stage, whose: (
        f"principals/{stage.member(whose)['id']}/erase", None
    ),
    "DELETE /principals/{principal_id}": lambda stage, whose: (
        f"principals/{stage.member(whose)['id']}", None
    ),
    "GET /projects": lambda stage, _: ("projects?limit=1000", None),
    "POST /projects": lambda stage, whose: (
        "projects", {"name": f"by {len(stage.api.call('GET', 'projects?limit=1000')[1]['items'])}",
                     "org_id": stage.orgs[whose]}
    ),
    "PATCH /projects/{project_id}": lambda stage, whose: (
        f"projects/{stage.projects[whose]}", {"name": "renamed"}
    ),
    "POST /projects/{project_id}/close": lambda stage, whose: (
        f"projects/{stage.project(stage.orgs[whose])['id']}/close", None
    ),
    "POST /projects/{project_id}/reopen": lambda stage, whose: (
        f"projects/{stage.projects[whose]}/reopen", None
    ),
    "POST /replicas/restart": lambda stage, _: ("replicas/restart", {"replica": "sydney/tiny/0"}),
    "GET /requests/{request_id}": lambda stage, whose: (
        f"requests/{stage.requests[whose]}", None
    ),
    "POST /sessions": lambda stage, _: ("sessions", {"login": "nobody", "password": "x"}),
    "DELETE /sessions/current": lambda stage, _: ("sessions/current", None),
    "GET /hosts": lambda stage, _: ("hosts", None),
    "GET /sites": lambda stage, _: ("sites", None),
    "GET /sites/{name}": lambda stage, _: ("sites/sydney", None),
    "PUT /sites/{name}/draining": lambda stage, _: ("sites/ashburn/draining", {"draining": True}),
    "PUT /sites/{name}/running": lambda stage, _: ("sites/ashburn/running", {"running": True}),
    "DELETE /sites/{name}/login": lambda stage, _: ("sites/ashburn/login", None),
    "POST /sites/join": lambda stage, _: ("sites/join", {"token": "x", **JOIN}),
    "POST /sites/{name}/token": lambda stage, _: ("sites/sydney/token", None),
    "GET /status": lambda stage, _: ("status", None),
    "GET /traffic": lambda stage, whose: (f"traffic?org_id={stage.orgs[whose]}", None),
    "GET /usage": lambda stage, _: ("usage", None),
    "GET /voters": lambda stage, _: ("voters", None),
    "POST /voters": lambda stage, _: ("voters", {"sites": ["sydney"]}),
}
# Let in, and then refused for what was asked: these sites have not joined or said anything, money
# moves under an idempotency key only, these callers have no password, there is no archive, and no
# such run.
REFUSED_LATER = {
    "POST /voters": 422, "POST /ledger/credits": 422, "POST /ledger/corrections": 422,
    "PUT /me/password": 422, "POST /replicas/restart": 409,
    "POST /experiments/{run_id}/stop": 404,
    "POST /days/{day}/detach": 422, "POST /days/{day}/attach": 404, "GET /days/{day}/check": 404,
}


@pytest.fixture(scope="module")
def stage(postgres: PostgresPlan) -> Iterator[Stage]:
    with new_database(postgres) as database:
        pool = open_pool(make_conninfo(database, user=APPLICATION_ROLE))
        with an_api(pool, player=FakePlayer()) as api:
            yield Stage(api)
        pool.close()


def endpoints(api: Api) -> dict[str, str]:
    """Every endpoint of the application, and the right that it asks for."""
    found: dict[str, str] = {}
    for resource in RESOURCES:
        for route in resource.routes(api.context).routes:
            assert isinstance(route, APIRoute)
            needs = [
                each.call.action for each in route.dependant.dependencies
                if isinstance(each.call, Need)
            ]
            assert len(needs) <= 1
            for method in route.methods or ():
                found[f"{method} {route.path}"] = needs[0] if needs else "open"
    return found


def test_every_endpoint_has_its_row_and_its_right(stage: Stage) -> None:
    found = endpoints(stage.api)
    assert found == {endpoint: row.right for endpoint, row in TABLE.items()}
    document = stage.api.client.get(f"{PREFIX}/openapi.json").json()["paths"]
    described = {
        f"{method.upper()} {path.removeprefix(PREFIX)}"
        for path, operations in document.items() for method in operations
    }
    assert described == set(found), "no endpoint comes from elsewhere than the resources"
    assert set(CALLS) == set(found)


@pytest.mark.parametrize("endpoint", TABLE)
def test_each_role_may_what_the_table_says(stage: Stage, endpoint: str) -> None:
    method, row = endpoint.split()[0], TABLE[endpoint]
    for role, cell in row.cells.items():
        for whose in SIDES:
            path, body = CALLS[endpoint](stage, whose)
            status, answer = stage.api.call(method, path, body, key=stage.callers[role])
            said = f"{endpoint} by {role} on {whose}: {status} {answer}"
            if row.right == "open":
                assert "send an admin key" not in str(answer), said
            elif cell == "-":
                assert (status, answer["code"]) == (403, "forbidden"), said
            elif "items" in answer:
                judge_list(stage, cell, answer["items"], said)
            elif cell == "own" and whose == "other":
                assert (status, answer["code"]) == (404, "not_found"), said
            else:
                assert status in (200, 201, REFUSED_LATER.get(endpoint)), said


def judge_list(stage: Stage, cell: str, items: list[dict[str, Any]], said: str) -> None:
    """A list of tenants' records shows those of the caller, or everybody's."""
    assert items, said
    if cell == "yes":
        return
    seen = {each.get("org_id", each["id"] if "retain_days" in each else None) for each in items}
    own, other = stage.orgs["own"], stage.orgs["other"]
    assert own in seen, said
    if cell == "own":
        assert seen == {own}, said
    else:
        assert other in seen, said


@pytest.mark.parametrize("endpoint", [each for each, row in TABLE.items() if row.right != "open"])
def test_nobody_gets_in_without_a_key(stage: Stage, endpoint: str) -> None:
    path, body = CALLS[endpoint](stage, "own")
    for key in (None, "isoadm_wrong"):
        assert stage.api.call(endpoint.split()[0], path, body, key=key)[0] == 401


def test_only_operators_reach_beyond_their_organisation() -> None:
    for role in CALLER_ROLES:
        for action in ACTIONS:
            own = authorise(role, action, own=True)
            other = authorise(role, action, own=False)
            assert (own is None) == (action in MAY[role])
            assert (other is None) == (role == "operator")
            if own is None and role != "operator":
                assert other is not None
                assert other.is_hidden


APPOINTS: dict[CallerRole, set[str]] = {
    "owner": {"owner", "admin", "developer", "billing", "auditor"},
    "admin": {"developer", "billing", "auditor"},
    "operator": {"owner", "admin", "developer", "billing", "auditor"},
}


@pytest.mark.parametrize("role", APPOINTS)
def test_nobody_appoints_changes_or_revokes_who_may_do_more(
    stage: Stage, role: CallerRole
) -> None:
    api, caller, org = stage.api, stage.callers[role], stage.orgs["own"]
    for wanted in ("owner", "admin", "developer", "billing", "auditor"):
        allowed = wanted in APPOINTS[role]
        body = {"name": "x", "role": wanted, "org_id": org}
        assert api.call("POST", "principals", body, key=caller)[0] == (201 if allowed else 403)
        present = api.make("principals", body)["id"]
        raised = api.call("PATCH", f"principals/{present}", {"role": "owner"}, key=caller)
        assert raised[0] == (200 if role != "admin" else 403)
        if role == "admin":
            for method, path in (
                ("POST", f"principals/{present}/rotate"), ("DELETE", f"principals/{present}"),
            ):
                sent: object = {} if method == "POST" else None
                status = api.call(method, path, sent, key=caller)[0]
                assert (status in (200, 201)) == allowed
    operator = {"name": "x", "role": "operator"}
    assert api.call("POST", "principals", operator, key=caller)[0] != 201 or role == "operator"
