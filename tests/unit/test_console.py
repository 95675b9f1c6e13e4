"""The console without a browser: its list of pages, its guard, where signing in leads."""

import re
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from isochrone.console.api import open_client
from isochrone.console.estate import Deployment, Fleet, Replica, cache_use
from isochrone.console.guard import Guard
from isochrone.console.page import Page
from isochrone.console.pages.audit import Entry, told
from isochrone.console.pages.catalogue import PAGES
from isochrone.console.pages.fleet import wish_of
from isochrone.console.parts.chart import alone
from isochrone.console.parts.table import cells
from isochrone.console.parts.words import ago, count, duration, instant, share, size, whole
from isochrone.console.sign_in import Begun, cookie_for, inside, routes, sign_in_for
from isochrone.core.errors import InvalidInput
from isochrone.core.tenancy.authorise import MAY

CONSOLE = Path(__file__).parents[2] / "src" / "isochrone" / "console"
DOCUMENT = Path(__file__).parents[2] / "docs" / "console.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_every_role_that_sees_a_page_has_the_rights_that_it_needs(page: Page) -> None:
    assert page.roles
    for role in page.roles:
        assert set(page.needs) <= MAY[role], f"{page.path} would be empty for {role}"


def test_pages_are_listed_once_and_grouped() -> None:
    paths = [page.path for page in PAGES]
    assert len(set(paths)) == len(paths)
    groups = [page.group for page in PAGES]
    assert groups == sorted(groups, key=groups.index), "pages of a group stand together"


def test_every_file_of_a_page_is_in_the_list_and_in_the_document() -> None:
    files = {path.stem for path in (CONSOLE / "pages").glob("*.py")} - {"__init__", "catalogue"}
    assert files == {page.build.__module__.rpartition(".")[2] for page in PAGES}
    document = DOCUMENT.read_text(encoding="utf-8")
    for page in PAGES:
        assert f"| {page.title} |" in document


def test_nothing_is_loaded_from_elsewhere() -> None:
    for path in (CONSOLE / "static").iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, path
        assert "https:" not in text, path


def test_every_document_and_example_that_is_named_is_there() -> None:
    root = DOCUMENT.parents[1]
    named = {
        name
        for folder in (CONSOLE, CONSOLE.parent / "cli") for path in folder.rglob("*.py")
        for name in re.findall(r"\b(?:docs|examples)/[a-z-]+\.(?:md|toml)", path.read_text("utf-8"))
    }
    assert named
    assert [name for name in sorted(named) if not (root / name).is_file()] == []


def test_a_deployment_that_is_gone_is_told() -> None:
    wish = Deployment(
        site="sydney", model="m", replicas=1, engine="llama.cpp", context_tokens=1024,
        stopped_replicas=None,
    )
    fleet = Fleet(bus=True, sites=(), deployments=(wish,))
    assert wish_of(fleet, "sydney", "m") == wish
    with pytest.raises(InvalidInput, match="model: n is not deployed at sydney any more"):
        wish_of(fleet, "sydney", "n")


async def said(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.method)


@pytest.fixture
def guarded() -> TestClient:
    app = Starlette(routes=[Route("/x", said, methods=["GET", "POST"])])
    return TestClient(Guard(app), base_url="http://console.example")


CROSS = {"sec-fetch-site": "cross-site"}
SIBLING = {"sec-fetch-site": "same-site"}
ELSEWHERE = {"origin": "http://evil.example"}
OPAQUE = {"origin": "null"}
HERE = {"origin": "http://console.example", "sec-fetch-site": "same-origin"}


@pytest.mark.parametrize("headers", [CROSS, SIBLING, ELSEWHERE, OPAQUE, {**HERE, **CROSS}])
def test_changes_that_another_sites_page_asks_for_are_refused(
    guarded: TestClient, headers: dict[str, str]
) -> None:
    assert guarded.post("/x", headers=headers).status_code == 403
    assert guarded.get("/x", headers=headers).status_code == 200, "links from elsewhere work"


@pytest.mark.parametrize("headers", [HERE, {"origin": HERE["origin"]}, {}])
def test_changes_from_here_and_from_programs_pass(
    guarded: TestClient, headers: dict[str, str]
) -> None:
    assert guarded.post("/x", headers=headers).status_code == 200


def test_every_answer_tells_browsers_what_a_page_may_do(guarded: TestClient) -> None:
    policy = guarded.get("/x").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    ("wanted", "leads"),
    [
        ("/map?model=x", "/map?model=x"), ("//evil.example", "/"), ("/\\evil.example", "/"),
        ("https://evil.example", "/"), ("", "/"), ("/a\r\nset-cookie: x", "/"),
    ],
)
def test_signing_in_leads_to_the_console_only(wanted: str, leads: str) -> None:
    assert inside(wanted) == leads


def test_signing_in_again_leads_back_to_the_page_that_was_open() -> None:
    request = Request({
        "type": "http", "method": "GET", "path": "/prices", "query_string": b"sheet=a%20v1&add",
        "headers": [(b"host", b"console.example")], "scheme": "http", "server": ("x", 80),
    })
    address, _, wanted = sign_in_for(request).partition("?next=")
    assert (address, inside(unquote(wanted))) == ("/sign-in", "/prices?sheet=a%20v1&add")


def test_the_cookie_is_for_one_console_and_secure_where_it_can_be() -> None:
    here, there = cookie_for("http://127.0.0.1:4105"), cookie_for("http://127.0.0.1:4205")
    assert here.name != there.name
    assert not here.is_secure
    safe = cookie_for("https://console.example")
    assert (safe.is_secure, safe.name.startswith("__Host-")) == (True, True)
    answer = PlainTextResponse("")
    safe.set(answer, Begun(token="isoses_x", expires_at=1))
    said = answer.headers["set-cookie"].lower()
    for wanted in ("httponly", "samesite=lax", "secure", "path=/"):
        assert wanted in said


def test_a_point_without_neighbours_is_drawn_as_one() -> None:
    assert alone([None, 1.0, None, 2.0, 3.0, None]) == [False, True, False, False, False, False]
    assert alone([1.0]) == [True]
    assert alone([]) == []


def a_replica(held: int | None, kept: int | None) -> Replica:
    return Replica(
        id="sydney/m/0", model="m", state="ready", health="healthy", why=None, generation=1,
        pid=None, running=0, waiting=0, restarts=0, kept_tokens=kept, held_tokens=held,
    )


def test_the_use_of_caches_is_told_as_far_as_engines_say() -> None:
    assert cache_use([]) is None
    assert cache_use([a_replica(None, None)]) is None
    assert cache_use([a_replica(None, 5000)]) == "of 5\u202f000 tokens"
    assert cache_use([a_replica(90, None), a_replica(10, 5000)]) == "100 tokens"
    assert cache_use([a_replica(90, 5000), a_replica(10, 5000)]) == "100 of 10\u202f000 tokens"


def an_entry(
    before: dict[str, object] | None, after: dict[str, object] | None, subject: str = "k1"
) -> Entry:
    return Entry(
        serial=1, at=0, org_id="acme", actor="principal:operator", kind="key", subject=subject,
        change="made", before=before, after=after,
    )


def test_the_audit_log_tells_what_its_other_columns_do_not() -> None:
    at = 1_764_338_400_000_000_000
    made: dict[str, object] = {
        "id": "k1", "org_id": "acme", "created_at": at, "secret_sha256": "(hidden)",
        "name": "shop", "expires_at": at, "policy_id": None,
    }
    assert told(an_entry(None, made)) == "name: shop; expires_at: 2025-11-28 14:00:00"
    assert told(an_entry({**made, "revoked_at": None}, {**made, "revoked_at": at})) == (
        "revoked_at: – → 2025-11-28 14:00:00"
    )
    assert told(an_entry({"secret_sha256": "(hidden)"}, None)) == "nothing more that is shown"


def test_values_read_well() -> None:
    assert (whole(1_000_000_000), whole(3600)) == ("1\u202f000\u202f000\u202f000", "3\u202f600")
    assert [ago(age) for age in (None, 900.0, 12_000.0)] == ["never", "now", "12.0 s ago"]
    assert [duration(ms) for ms in (None, 0.52, 431.7, 12_345, 90_000, 7_200_000)] == [
        "–", "0.5 ms", "432 ms", "12.3 s", "2 min", "2.0 h",
    ]
    assert [count(n) for n in (None, 0, 1234567, 12_345_678)] == [
        "–", "0", "1\u202f234\u202f567", "12.3 M",
    ]
    assert (share(1, 3), share(0, 0)) == ("33.3 %", "–")
    assert [share(part, 3000) for part in (3000, 2999, 1, 0, 3000.0000000001)] == [
        "100.0 %", "> 99.9 %", "< 0.1 %", "0.0 %", "100.0 %",
    ]
    assert instant(1_764_338_400_000_000_000) == "2025-11-28 14:00:00"


def test_columns_of_numbers_are_sorted_by_what_they_say() -> None:
    rising = [
        [duration(ms) for ms in (None, 0.4, 9.9, 250.0, 999.0, 1_200.0, 59_000.0, 180_000.0, 8e6)],
        [count(n) for n in (None, 0, 7, 1_200, 9_999_999, 12_345_678)],
        ["2 / 2", "3 / 12", "12 / 3"], [share(part, 100) for part in (0, 5, 33, 100)],
        ["-20 to +3", "0 to +1", "5"], ["0.20 / 1\u202f000\u202f000", "0.60 / 1"],
        ["-1.50", "0.0012", "10.00"],
    ]
    for column in rising:
        sizes = [size(said) for said in column]
        assert sizes == sorted(set(sizes)), column
    [row] = cells(["text", "number"], [("900 s", duration(1_200.0))])
    assert row == {"id": 0, "c0": "900 s", "c1": "1.2 s", "s1": 1_200.0}


@pytest.mark.parametrize("status", [200, 401, 403, 404, 422, 429, 500])
def test_signing_out_forgets_the_session_whatever_control_says(status: int) -> None:
    async def said_by_control(request: Request) -> JSONResponse:
        return JSONResponse({"ended": True}, status_code=status)

    control = Starlette(routes=[Route("/{path:path}", said_by_control, methods=["DELETE"])])
    cookie = cookie_for("http://127.0.0.1:4105")
    console = FastAPI()
    console.include_router(
        routes(open_client("http://control", httpx.ASGITransport(control)), cookie)
    )
    with TestClient(console, cookies={cookie.name: "isoses_x"}) as browser:
        answer = browser.post("/sign-out", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert answer.headers["set-cookie"].startswith(f'{cookie.name}=""; ')
