"""The console on the live local cloud, in a browser: signing in, every page, and what people do.

Pictures of every page are kept in artefacts/console/.
"""

import http.client
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright._impl._api_structures import SetCookieParam
from playwright.sync_api import Browser

from isochrone.console.pages.catalogue import PAGES
from isochrone.console.sign_in import cookie_for
from isochrone.core.errors import Unavailable
from tests.fixtures.fleet_1100 import places
from tests.rig import console_flows
from tests.rig.browser import SIZES, Size, Tab, Theme, browser, program, tab
from tests.rig.cloud import COMMAND, Cloud, ask, environment
from tests.rig.waiting import wait_until

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(program() is None, reason="there is no Chromium on this machine"),
]
PASSWORD, OTHER = "correct horse battery", "staple of another kind"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def asked(cloud: Cloud) -> str:
    """The id of a request of the default organisation that is booked."""
    assert cloud.chat("sydney").status == 200
    reply = cloud.chat("sydney", "And then?")
    found = reply.headers["x-isochrone-request"]

    wait_until(
        lambda: console_flows.is_booked(cloud, found), "the request is booked", deadline_s=20
    )
    return found


@pytest.fixture
def operator(cloud: Cloud, chromium: Browser) -> Iterator[Tab]:
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in(cloud.up["console_login"], cloud.up["console_password"])
        yield opened


def a_member(cloud: Cloud, login: str) -> str:
    """An owner of a new organisation, who may sign in with PASSWORD."""
    org = cloud.api.post("organisations", {"name": f"org of {login}"})["id"]
    body = {"name": "Ada", "role": "owner", "org_id": org, "email": login}
    made = str(cloud.api.post("principals", body)["id"])
    cloud.api.put(f"principals/{made}/password", {"password": PASSWORD})
    return made


def test_the_first_password_is_private_and_printed(cloud: Cloud) -> None:
    kept = cloud.state / "secrets" / "console.password"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.read_text().strip() == cloud.up["console_password"]
    wait_until(  # it is printed a moment after up.json is there
        lambda: cloud.up["console_password"] in cloud.output.read_text(), "it is printed",
        deadline_s=10,
    )
    assert cloud.up["console"] in cloud.output.read_text()


def test_a_wrong_password_is_told_and_lets_nobody_in(cloud: Cloud, chromium: Browser) -> None:
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in("operator", "not the password", "/map")
        assert "wrong" in opened.page.inner_text(".problem")
        assert opened.barriers() == []
        opened.picture("sign-in")
        assert opened.page.input_value("#login") == "operator"
        opened.open("/map")
        assert "/sign-in" in opened.page.url, "still a stranger"


def test_signing_in_leads_where_one_wanted_to_go_and_out_again(
    cloud: Cloud, chromium: Browser
) -> None:
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in("operator", cloud.up["console_password"], "/explain?id=x")
        assert opened.page.url.endswith("/explain?id=x")
        (cookie,) = opened.page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
        assert cookie["value"].startswith("isoses_")
        opened.page.click("[aria-label=You]")
        opened.page.click("text=Sign out")
        opened.page.wait_for_selector("#login")
        assert opened.page.context.cookies() == []
        again: SetCookieParam = {
            "name": cookie["name"], "value": cookie["value"], "url": cloud.up["console"],
        }
        opened.page.context.add_cookies([again])
        opened.open("/")
        assert "/sign-in" in opened.page.url, "the session itself is over, whatever the cookie says"


def raw(cloud: Cloud, method: str, path: str, headers: dict[str, str]) -> int:
    """The status of one request as another site's page would have a browser send it."""
    parts = urlsplit(cloud.up["console"])
    link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        link.request(method, path, headers=headers)
        return link.getresponse().status
    finally:
        link.close()


def test_another_sites_page_can_change_nothing_and_open_no_socket(
    cloud: Cloud, operator: Tab
) -> None:
    (cookie,) = operator.page.context.cookies()
    name = cookie_for(cloud.up["console"]).name
    assert cookie["name"] == name
    cross = {"cookie": f"{name}={cookie['value']}", "origin": "http://evil.example",
             "sec-fetch-site": "cross-site"}
    assert raw(cloud, "POST", "/sign-out", cross) == 403
    assert raw(cloud, "POST", "/sign-in", cross) == 403
    upgrade = {
        "connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    socket = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert raw(cloud, "GET", socket, {**cross, **upgrade}) == 403
    operator.open("/account")
    assert "/account" in operator.page.url, "the session goes on"


@pytest.fixture
def replayed(cloud: Cloud, tmp_path: Path) -> Iterator[None]:
    """A recorded trace is being replayed."""
    replay = subprocess.Popen(
        [*COMMAND, "replay", "azure-conv-sample", "--state", str(cloud.state), "--limit", "1000",
         "--speed", "0.3", "--out", str(tmp_path / "result.json")],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        yield
        assert replay.poll() is None, "traffic ended before the pages were all opened"
    finally:
        replay.kill()
        replay.wait(30)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize(("theme", "size"), [("light", "laptop"), ("dark", "phone")])
def test_every_page_opens_without_a_complaint(
    cloud: Cloud, chromium: Browser, asked: str, theme: Theme, size: Size
) -> None:
    with tab(chromium, cloud.up["console"], theme=theme, size=size) as opened:
        opened.sign_in("operator", cloud.up["console_password"])
        for page in PAGES:
            path = f"/explain?id={asked}" if page.path == "/explain" else page.path
            opened.open(path)
            opened.page.wait_for_timeout(350)  # charts and frames come a moment later
            if page.path == "/map":
                opened.page.wait_for_function("isochroneMap.flowsSeen > 0")
            assert "iso-banner is-bad" not in opened.page.content(), f"{path}: {opened.text()}"
            width = opened.page.evaluate("document.documentElement.scrollWidth")
            assert width <= SIZES[size][0], f"{path} is wider than the screen"
            assert opened.barriers() == [], path
            opened.picture(f"{page.path.strip('/') or 'overview'}-{theme}-{size}")
        assert opened.complaints == []


def test_a_request_is_explained(operator: Tab, asked: str) -> None:
    operator.open("/explain")
    operator.page.click(f"a:has-text('{asked}')")
    operator.page.wait_for_selector("text=wait for the first byte")
    said = operator.text()
    for wanted in (asked, "finished", "sydney", "predicted", "EUR", "wait for the first byte"):
        assert wanted in said
    assert operator.complaints == []


def test_the_map_is_live_and_a_site_opens_with_the_keyboard(cloud: Cloud, operator: Tab) -> None:
    page = operator.page
    operator.open("/map")
    page.wait_for_function("window.isochroneMap?.frames > 1")
    assert page.evaluate("isochroneMap.state.map(site => site[0])") == ["healthy"] * 3
    cloud.chat("sydney")
    page.wait_for_function("isochroneMap.flowsSeen > 0")
    page.focus("[aria-label='Find a site']")
    page.keyboard.type("frank")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".map-panel >> text=Nearest peers")
    said = page.inner_text(".map-panel")
    for wanted in ("frankfurt", "tiny-fable", "sydney", "290 ms"):
        assert wanted in said
    assert page.evaluate("isochroneMap.links.get('frankfurt').length") == 2
    operator.picture("map-site")
    assert operator.complaints == []


def test_traffic_follows_what_is_chosen(operator: Tab, asked: str) -> None:
    page = operator.page
    operator.open("/traffic")
    page.wait_for_selector("text=Traffic by model")
    page.click("button:has-text('15 min')")
    page.wait_for_selector("text=in 15 min")
    assert "tiny-fable" in operator.text()
    assert operator.complaints == []


def test_the_fleet_shows_its_hosts(cloud: Cloud, operator: Tab) -> None:
    console_flows.see_the_hosts(cloud, operator)


def test_a_site_is_drained_and_its_arcs_move(cloud: Cloud, operator: Tab) -> None:
    console_flows.drain_a_site(cloud, operator)


def test_a_newcomer_walks_from_the_readme_to_traffic_that_moves(
    cloud: Cloud, chromium: Browser
) -> None:
    console_flows.a_newcomers_walk(cloud, chromium)


def test_one_replica_is_restarted(cloud: Cloud, operator: Tab) -> None:
    console_flows.restart_a_replica(cloud, operator)


def test_a_rule_refuses_a_request_that_explains_itself(cloud: Cloud, operator: Tab) -> None:
    console_flows.refuse_by_a_rule(cloud, operator)


def test_a_sheet_of_prices_is_judged_seen_and_added(cloud: Cloud, operator: Tab) -> None:
    console_flows.add_a_sheet(cloud, operator)


def test_an_organisation_begins_with_a_project_and_a_member_who_signs_in(
    cloud: Cloud, chromium: Browser, operator: Tab
) -> None:
    console_flows.begin_an_organisation(cloud, chromium, operator)


def test_a_customer_sees_their_own_and_nothing_else(
    cloud: Cloud, chromium: Browser, asked: str
) -> None:
    a_member(cloud, "ada@acme.example")
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in("ada@acme.example", PASSWORD, "/explain")
        assert "Nothing was asked yet" in opened.text()
        opened.open(f"/explain?id={asked}")
        assert "no request" in opened.page.inner_text(".is-bad")
        for page in PAGES:
            opened.open(page.path)
            seen = "not for your role" not in opened.text()
            assert seen == ("owner" in page.roles), page.path


def test_from_a_new_key_to_what_its_answer_cost(cloud: Cloud, chromium: Browser) -> None:
    member = a_member(cloud, "joy@acme.example")
    org = next(each for each in cloud.api.items("principals") if each["id"] == member)["org_id"]
    cloud.api.post("projects", {"name": "shop", "org_id": org})
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in("joy@acme.example", PASSWORD, "/keys")
        page = opened.page
        page.click("text=Make a key")
        page.fill("[aria-label=Name]", "shop window")
        residency = "[aria-label='Where its requests may be processed']"
        page.fill(residency, "Atlantis")
        page.click("button:has-text('Make it')")
        page.wait_for_selector("text=neither an ISO 3166-1")
        page.fill(residency, "EEA")
        page.click("button:has-text('Make it')")
        secret = page.inner_text("#new-secret")
        opened.picture("key-made")
        wait_until(
            lambda: ask(cloud.endpoint("ashburn"), "/models", secret).status == 200,
            "gateways know the key", deadline_s=10,
        )
        page.click("button:has-text('Try it in the playground')")
        page.wait_for_selector(".chat-empty")
        assert page.input_value("[aria-label=Key]") == secret
        kept = page.evaluate("JSON.stringify(sessionStorage) + JSON.stringify(localStorage)")
        assert secret not in kept, "it was handed over and forgotten"
        page.select_option(".chat-bar select >> nth=1", "ashburn")
        page.fill("[aria-label=Message]", "Tell me a story about a dragon.")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-booked=yes]")
        facts = page.inner_text(".chat-facts")
        for wanted in ("frankfurt", "Germany", "to the first token", "tokens in and out", "EUR"):
            assert wanted in facts
        opened.picture("playground-answer")
        assert opened.barriers() == []
        found = page.get_attribute("[data-booked=yes]", "data-request")
        opened.open(page.get_attribute(".chat-facts a", "href") or "")
        assert f"{found}" in opened.text()
        assert "residency" in opened.text(), "and why not at the other sites"
        opened.open("/usage")
        page.wait_for_selector("text=Where requests were processed")
        cost = page.locator(".iso-figure:has-text('Spent') .iso-figure-value").inner_text()
        assert cost.endswith("EUR")
        assert float(cost.split()[0]) > 0
        assert page.locator(".iso-table td:text-is('DE')").count() == 1
        opened.picture("usage-spent")
        opened.open("/keys")
        for button in ("[aria-label='Rotate shop window']", "[aria-label='End shop window']"):
            opened.ask(button)
            opened.dialog_holds_the_keyboard()
        page.click("[aria-label='End shop window']")
        page.click("button:has-text('End it for good')")
        page.wait_for_selector("text=There are no keys in use")
        wait_until(
            lambda: ask(cloud.endpoint("ashburn"), "/models", secret).status == 401,
            "gateways refuse the key", deadline_s=10,
        )
        assert opened.complaints == []


def test_a_member_chooses_their_own_password(cloud: Cloud, chromium: Browser) -> None:
    a_member(cloud, "eve@acme.example")
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in("eve@acme.example", PASSWORD, "/account")
        page = opened.page
        assert "a password that you were given" in opened.text()

        def change(present: str, wanted: str) -> None:
            page.fill("[autocomplete=current-password]", present)
            page.fill("[autocomplete=new-password]", wanted)
            page.click("button:has-text('Change it')")

        change(PASSWORD, "short")
        page.wait_for_selector("text=needs at least 12 characters")
        change("not this one", OTHER)
        page.wait_for_selector("text=this is not the present password")
        change(PASSWORD, OTHER)
        page.wait_for_selector("text=Your password is changed")
        assert opened.complaints == []
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in("eve@acme.example", OTHER, "/account")
        assert "Your account" in opened.text()
        assert "were given" not in opened.text()


def test_colours_change_and_stay(operator: Tab) -> None:
    page, theme = operator.page, "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.click("[aria-label='Light or dark']")
    page.wait_for_function(f"{theme} === 'dark' && document.body.classList.contains('body--dark')")
    page.wait_for_timeout(350)  # colours go over into one another
    assert operator.barriers() == []
    operator.open("/account")
    assert page.evaluate(theme) == "dark"
    assert operator.complaints == []


def test_an_experiment_is_played_and_its_report_read(cloud: Cloud, operator: Tab) -> None:
    page = operator.page
    operator.open("/experiments")
    page.click("a:has-text('eight-sites')")
    page.fill("[aria-label=Loads]", "much")
    page.click("button:has-text('See what it will do')")
    page.wait_for_selector("text=much is no number")
    page.fill("[aria-label=Loads]", "0.5, 0.9")
    page.fill("[aria-label='Requests at each point']", "60")
    page.focus("[aria-label=Policies]")
    page.keyboard.press("ArrowDown")
    page.click(".q-menu >> text='bound'")
    page.keyboard.press("Escape")
    page.click("button:has-text('See what it will do')")
    page.wait_for_selector("text=Play eight-sites?")
    assert "2 simulations with 120 requests in all" in page.inner_text(".iso-dialog")
    page.wait_for_timeout(500)  # it comes into view
    operator.picture("experiment-asked")
    assert operator.barriers(".q-dialog[role]") == []
    page.click("button:has-text('Play it')")
    page.wait_for_url("**/experiments?run=*")
    page.wait_for_selector("iframe", timeout=60_000)
    said = operator.text()
    for wanted in ("done", "operator", "--policies bound --vary workload.load=0.5,0.9", "Figures"):
        assert wanted in said
    assert page.locator(".iso-table tbody tr").count() == 2
    report = page.frame_locator("iframe")
    report.locator("h1:has-text('eight-sites')").wait_for()
    assert report.locator("svg").count() > 0
    ground = "each => getComputedStyle(each).backgroundColor"
    light = report.locator("body").evaluate(ground)
    page.click("[aria-label='Light or dark']")
    wait_until(
        lambda: report.locator("body").evaluate(ground) != light,
        "the report is as dark as the page",
    )
    page.wait_for_timeout(350)  # colours go over into one another
    assert operator.barriers() == []
    operator.picture("experiment-report")
    run = page.url.partition("run=")[2]
    answer = page.request.get(f"{cloud.up['console']}/experiments/{run}/report")
    policy = answer.headers["content-security-policy"]
    assert ("default-src 'none'" in policy, "sandbox" in policy) == (True, True)
    page.click("button:has-text('Remove it')")
    page.click(".iso-dialog button:has-text('Remove it')")
    page.wait_for_url("**/experiments")
    page.wait_for_selector("text=Nothing was played yet")
    assert operator.complaints == []
    entries = cloud.api.items("audit", {"kind": "experiment", "subject": run})
    states = [(each["after"] or {}).get("state") for each in entries]
    assert states == ["waiting", "running", "done", None]


def test_a_run_is_stopped_from_the_page_and_ended_by_a_kill(cloud: Cloud, operator: Tab) -> None:
    page = operator.page
    order = {"wanted": "eight-sites", "requests": 30_000}
    first = cloud.api.post("experiments", order)["id"]
    operator.open(f"/experiments?run={first}")
    page.wait_for_selector("text=of 11 simulations")
    operator.picture("experiment-playing")
    page.click("button:has-text('Stop it')")
    page.click(".iso-dialog button:has-text('Stop it')")
    page.wait_for_selector(".iso-state:has-text('stopped')")
    assert operator.complaints == []
    second = cloud.api.post("experiments", order)["id"]
    wait_until(
        lambda: cloud.api.get(f"experiments/{second}")["done"] is not None, "it plays",
        deadline_s=30,
    )
    control = cloud.pids()["control"]
    assert control is not None
    os.kill(control, signal.SIGKILL)

    def told() -> bool:
        try:
            return bool(cloud.api.get(f"experiments/{second}")["state"] == "interrupted")
        except Unavailable:
            return False

    wait_until(told, "control is back, and says that it lost it", deadline_s=30)


def test_a_session_that_is_over_says_so(operator: Tab, cloud: Cloud) -> None:
    page = operator.page
    operator.open("/traffic")
    console_flows.end_session(operator, cloud)
    page.click("button:has-text('6 h')")
    page.wait_for_selector("text=Your session is over")


def test_a_map_whose_session_is_over_leads_to_signing_in_and_back(
    operator: Tab, cloud: Cloud
) -> None:
    console_flows.led_to_sign_in_and_back(operator, cloud)


def sites_1100() -> list[dict[str, object]]:
    """The packaged fleet as the map is told of it."""
    return [
        {"name": each.name, "country": each.country, "operator": None, "lat": each.latitude_deg,
         "lon": each.longitude_deg, "gpus": number % 9, "models": ["m"] if number % 20 == 0 else []}
        for number, each in enumerate(places())
    ]


def test_the_map_draws_1100_sites(operator: Tab, record_property: Callable[..., None]) -> None:
    page, sites = operator.page, sites_1100()
    page.route("**/live/sites", lambda route: route.fulfill(json={"v": "big", "sites": sites}))
    page.route("**/live/frames", lambda route: route.abort())
    operator.open("/map")
    page.wait_for_function("window.isochroneMap?.land && isochroneMap.sites.length === 1100")
    page.evaluate(
        """() => {
          const chance = (n) => Math.floor(Math.random() * n);
          window.feeding = setInterval(() => isochroneMap.frame({
            at: Date.now(), v: "big",
            sites: isochroneMap.sites.map((site, i) =>
              ["healthy", 1, site.models.length ? 16 : 0, i % 16, i % 3, null]),
            flows: Array.from({ length: 200 }, () =>
              [chance(1100), chance(55) * 20, "m", chance(40) ? "finished" : "engine_lost", 2]),
          }), 1000);
        }"""
    )
    page.wait_for_function("isochroneMap.comets.length > 100 && isochroneMap.perSecond > 0")
    # 30 and more when this machine is idle; beside other tests as soon as they leave it some of it.
    page.wait_for_function("isochroneMap.perSecond >= 15", timeout=60_000)
    record_property("frames_a_second", page.evaluate("isochroneMap.perSecond"))
    operator.picture("map-1100")
    page.select_option("[aria-label=Country]", "DE")
    page.wait_for_function("isochroneMap.view.k > isochroneMap.home.k * 2")
    operator.picture("map-1100-de")
    assert [said for said in operator.complaints if "frames" not in said
            and "ERR_FAILED" not in said] == []
