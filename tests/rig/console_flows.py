"""What people do in the console from one page to the next, on the live local cloud."""

import http.client
import json
import os
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator

from isochrone.adapters.host import named
from isochrone.core.errors import NotFound
from tests.rig.browser import Tab, tab, tab_beside
from tests.rig.cloud import Cloud, Reply, ask, isochrone
from tests.rig.waiting import wait_until

README = Path(__file__).parents[2] / "README.md"
BEGIN_ANEW_MIDWAY = """() => new MutationObserver((_, watch) => {
  const said = [...document.querySelectorAll(".chat-said:not(.is-mine) p")].at(-1);
  if (!said || said.parentElement.dataset.request || said.textContent.length < 4) return;
  watch.disconnect();
  document.querySelector(".chat-fresh").click();
}).observe(document.querySelector(".chat-log"),
           { subtree: true, childList: true, characterData: true })"""


def end_session(operator: Tab, cloud: Cloud) -> None:
    """End the session of an open tab as if somebody had signed out elsewhere."""
    (cookie,) = operator.page.context.cookies()
    parts = urlsplit(cloud.up["control"])
    link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    link.request(
        "DELETE", "/api/v1/sessions/current",
        headers={"authorization": f"Bearer {cookie['value']}"},
    )
    assert json.loads(link.getresponse().read()) == {"ended": True}
    link.close()


def led_to_sign_in_and_back(operator: Tab, cloud: Cloud) -> None:
    """An open map whose session ends leads to the form by itself, and the form back to the map."""
    page = operator.page
    operator.open("/map?of=me")
    page.wait_for_function("window.isochroneMap?.frames > 1")
    end_session(operator, cloud)
    page.wait_for_selector("form[action='/sign-in']")
    page.fill("#login", cloud.up["console_login"])
    page.fill("#password", cloud.up["console_password"])
    page.click("button[type=submit]")
    page.wait_for_function("window.isochroneMap?.frames > 1")
    assert page.url.endswith("/map?of=me")


def is_booked(cloud: Cloud, request_id: str) -> bool:
    """Whether control can explain it."""
    try:
        return bool(cloud.api.get(f"requests/{request_id}"))
    except NotFound:
        return False


def arcs(tab: Tab) -> list[str]:
    """Ways that requests took lately, as the map draws them: INGRESS>SITE."""
    found: list[str] = tab.page.evaluate(
        """[...isochroneMap.recent.values()].map(each =>
           [each.ingress, each.site].map(n => isochroneMap.sites[n].name).join(">"))"""
    )
    return found


def drain_a_site(cloud: Cloud, operator: Tab) -> None:
    """Drained, a site gets nothing; the arcs on the map lead away; it takes requests again."""
    page = operator.page

    def served_at() -> str | None:
        return cloud.chat("sydney").headers.get("x-isochrone-site")

    operator.open("/fleet?site=sydney")
    operator.ask("button:has-text('Drain the site')")
    operator.dialog_holds_the_keyboard()
    page.click("button:has-text('Drain the site')")
    page.wait_for_selector("text=Drain sydney?")
    said = page.inner_text("[role=alertdialog]")
    assert "tiny-fable goes on at ashburn, frankfurt" in said
    operator.picture("fleet-drain")
    page.click("button:has-text('Drain it')")
    page.wait_for_selector("text=sydney is being drained")
    wait_until(lambda: served_at() not in ("sydney", None), "requests go elsewhere")
    operator.open("/map")
    page.wait_for_function("window.isochroneMap?.frames > 1")
    cloud.chat("sydney")
    page.wait_for_function("isochroneMap.recent.size > 0")
    assert all(each.startswith("sydney>") for each in arcs(operator))
    operator.picture("map-drained")
    operator.open("/fleet?site=sydney")
    page.click("button:has-text('Take requests again')")
    page.click("button:has-text('Let it')")
    page.wait_for_selector("button:has-text('Drain the site')")
    wait_until(lambda: served_at() == "sydney", "sydney serves again")
    assert operator.complaints == []


def says(tab: Tab, text: str, number: int) -> str:
    """Say something in the playground; what is told of answer `number` once it is booked."""
    tab.page.fill("[aria-label=Message]", text)
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(f"[data-booked=yes] >> nth={number}")
    return tab.page.locator(".chat-facts").nth(number).inner_text()


def begins_anew(tab: Tab) -> None:
    """A new conversation that is begun in the middle of an answer holds nothing of it."""
    page = tab.page
    page.evaluate(BEGIN_ANEW_MIDWAY)
    page.fill("[aria-label=Message]", "Tell me a long story.")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chat-empty")
    with page.expect_request("**/playground/chat*") as asked:
        says(tab, "Hello!", 0)
    said = json.loads(asked.value.post_data or "")["messages"]
    assert said == [{"role": "user", "content": "Hello!"}]


def walked(text: str) -> list[str]:
    """The names in italics of the README's steps through the console, in their order."""
    steps = text.partition("In the browser:")[2].partition("![")[0]
    return re.findall(r"\*([^*]+)\*", steps)


def answering(tab: Tab) -> str:
    """The site of the latest answer, as the playground tells it."""
    return tab.page.locator(".chat-fact.is-place b").last.inner_text()


def printed_by(cloud: Cloud) -> tuple[tuple[str, str, str], str]:
    """What `isochrone up` said: the console's address with name and password; and the key."""
    printed = cloud.output.read_text()
    url, login, password = re.findall(
        r"console +(\S+) +\(sign in as (\S+), first password (\S+)\)", printed
    )[0]
    return (url, login, password), re.findall(r"^ +key +(\S+)$", printed, re.MULTILINE)[0]


def explain_the_answer(newcomer: Tab, site: str) -> None:
    """The link under an answer leads to why it was served there, and what it cost."""
    page = newcomer.page
    with page.expect_popup() as opened:
        page.click(".chat-facts a:has-text('Why there?')")
    why = opened.value
    why.wait_for_selector("text=soonest first")
    said = why.inner_text("#page")
    for wanted in (site, "finished", "Price, EUR", "predicted"):
        assert wanted in said
    why.close()


def kill_it(beside: Tab, site: str) -> None:
    """The question was opened: it says what follows, holds the keyboard, and kills the site."""
    fleet = beside.page
    fleet.wait_for_selector("text=as if the site was lost")
    beside.dialog_holds_the_keyboard()
    fleet.click("button:has-text('Kill the site')")
    fleet.wait_for_selector("text=as if the site was lost")
    beside.picture("fleet-kill")
    fleet.click("button:has-text('Kill them')")
    fleet.wait_for_selector(f"text={site} is stopped")


def it_is_told_as_stopped(cloud: Cloud, beside: Tab, site: str) -> None:
    """And not as ready, by the tile of Fleet and on the command line."""
    beside.page.wait_for_selector(".iso-figure:has-text('Sites ready') >> text=2 of 3")
    for command in ("hosts", "status"):
        told = isochrone(command, "--state", cloud.state).stdout.splitlines()
        assert any(row.split()[:1] == [site] and "stopped" in row.split() for row in told)


def a_newcomers_walk(cloud: Cloud, chromium: Browser) -> None:
    """With what `isochrone up` printed and the README's steps, and with nothing but the browser:
    sign in, chat, find out where the answer came from and what it cost, kill that site, watch
    traffic move, and have it back."""
    (url, login, password), key = printed_by(cloud)
    clicked: list[str] = []
    with tab(chromium, url) as newcomer, tab_beside(newcomer) as beside:
        page, fleet = newcomer.page, beside.page

        def go(name: str, on: Tab = newcomer) -> None:
            clicked.append(name)
            on.page.click(f".iso-menu a:has-text('{name}')")
            on.page.wait_for_selector(f"#page h1:text-is('{name}')")

        def ask_at_sydney(text: str, number: int) -> str:
            page.select_option(".chat-bar select >> nth=1", "sydney")
            return says(newcomer, text, number)

        newcomer.sign_in(login, password)
        go("Playground")
        page.fill("[aria-label=Key]", key)
        facts = ask_at_sydney("Tell me a story about a dragon.", 0)
        site = answering(newcomer)
        for wanted in ("sydney", "Australia", "to the first token", "tokens in and out", "EUR"):
            assert wanted in facts
        newcomer.picture("newcomer-answer")
        explain_the_answer(newcomer, site)
        beside.open("/")
        go("Fleet", beside)
        beside.follow(f".iso-table a:text-is('{site}')", f"**/fleet?site={site}")
        beside.ask("button:has-text('Kill the site')")
        clicked.append("Kill the site")
        kill_it(beside, site)

        ask_at_sydney("And then?", 1)
        assert answering(newcomer) != site, "another site answers at once"
        clicked.append("Playground")
        go("Map", beside)
        fleet.wait_for_function("window.isochroneMap?.frames > 1")
        ask_at_sydney("And then?", 2)
        fleet.wait_for_function("isochroneMap.recent.size > 0")
        assert set(arcs(beside)) == {f"sydney>{answering(newcomer)}"}
        ready = f"isochroneMap.state[isochroneMap.byName.get('{site}')][1]"
        assert fleet.evaluate(ready) == 0
        beside.picture("map-killed")
        go("Fleet", beside)
        it_is_told_as_stopped(cloud, beside, site)
        beside.follow(f".iso-table a:text-is('{site}')", f"**/fleet?site={site}")
        fleet.click("button:has-text('Start the site')")
        clicked.append("Start the site")
        fleet.click("button:has-text('Start it')")
        fleet.wait_for_selector("button:has-text('Kill the site')")
        numbers = count(3)
        wait_until(
            lambda: ask_at_sydney("Again.", next(numbers)) != "" and answering(newcomer) == site,
            "the site answers again", deadline_s=20,
        )
        begins_anew(newcomer)
        assert newcomer.complaints + beside.complaints == []
    assert clicked == walked(README.read_text(encoding="utf-8")), "as the README says"


def see_the_hosts(cloud: Cloud, operator: Tab) -> None:
    """All are listed, as one machine, and a site's replicas stand under theirs."""
    hosts = list(cloud.api.items("hosts"))
    assert [each["site"] for each in hosts] == ["ashburn", "frankfurt", "sydney"]
    (name,) = {each["name"] for each in hosts}
    assert name == named(os.uname().nodename), "one machine plays all sites"

    def card(title: str) -> Locator:
        heading = operator.page.get_by_role("heading", name=title, exact=True)
        return operator.page.locator(".iso-card", has=heading)

    operator.open("/fleet")
    rows = [row.split() for row in card("Hosts").locator("tbody tr").all_inner_texts()]
    assert [row[:2] for row in rows] == [[each["site"], name] for each in hosts]
    for row, host in zip(rows, hosts, strict=True):
        assert str(host["cores"]) in row
        assert "1 / 1" in " ".join(row)
    assert f"{name} at ashburn, frankfurt and sydney is one machine" in operator.text()
    operator.open("/fleet?site=frankfurt")
    operator.page.wait_for_selector(f"text=Replicas on {name}")
    focus_stays(operator, "[aria-label='Restart frankfurt/tiny-fable/0']")
    said = card(f"Replicas on {name}").inner_text()
    for wanted in (f"{hosts[1]['cores']} core", "1 of 1 wanted", "frankfurt/tiny-fable/0"):
        assert wanted in said
    operator.picture("fleet-site")
    assert operator.complaints == []


def focus_stays(operator: Tab, button: str) -> None:
    """Where it is, although the list is drawn anew every few seconds."""
    operator.page.focus(button)
    operator.page.evaluate("document.activeElement.isDrawnBefore = true")
    operator.page.wait_for_function(
        "button => { const at = document.activeElement;"
        " return at.matches(button) && !at.isDrawnBefore }", arg=button, timeout=20_000,
    )


def restart_a_replica(cloud: Cloud, operator: Tab) -> None:
    """Another process of it is ready, and the audit log says who asked for it."""
    def replica() -> Mapping[str, Any]:
        found: Mapping[str, Any] = next(iter(cloud.api.get("sites/frankfurt")["replicas"]), {})
        return found

    before = replica()
    operator.open("/fleet?site=frankfurt")
    button = "[aria-label='Restart frankfurt/tiny-fable/0']"
    operator.ask(button)
    operator.dialog_holds_the_keyboard()
    for apart_ms in (100, 0):
        operator.page.dblclick(button, delay=apart_ms)
        operator.page.wait_for_selector("text=begin anew")
        operator.page.wait_for_timeout(300)  # for what a second click might open, or close
        assert operator.page.locator(".iso-dialog").count() == 1, apart_ms
        if apart_ms:
            operator.page.keyboard.press("Escape")
            operator.page.wait_for_selector(".iso-dialog", state="detached")
    operator.picture("fleet-restart")
    operator.page.click("button:has-text('Restart it')")
    wait_until(
        lambda: replica().get("state") == "ready" and replica()["pid"] != before["pid"],
        "another process is ready", deadline_s=20,
    )
    assert replica()["generation"] > before["generation"]
    operator.open("/audit?kind=deployment")
    assert "restart_up_to" in operator.text()
    assert operator.complaints == []


def refuse_by_a_rule(cloud: Cloud, operator: Tab) -> None:
    """A rule is tried and saved; a request under it is refused, and explained; the map shows what
    it allows."""
    page = operator.page
    operator.open("/policies")
    page.fill("[aria-label='Processed in']", "JP")
    page.wait_for_selector("text=no site that has the model is allowed")
    page.fill("[aria-label=Name]", "only in Japan")
    page.click("button:has-text('Save it')")
    page.wait_for_selector("text=Saved as only in Japan")
    policy = page.locator(".is-good a").inner_text()
    secret = cloud.api.post("keys", {"residency": ["JP"], "project_id": "default"})["key"]

    def refused() -> Reply:
        body = {"model": "tiny-fable", "messages": [{"role": "user", "content": "Hello!"}]}
        return ask(cloud.endpoint("sydney"), "/chat/completions", secret, body)

    wait_until(lambda: refused().status == 403, "gateways know the key", deadline_s=10)
    found = refused().headers["x-isochrone-request"]
    wait_until(lambda: is_booked(cloud, found), "the refusal is booked", deadline_s=20)
    operator.open(f"/explain?id={found}")
    for wanted in ("403", "residency", "JP"):
        assert wanted in operator.text()
    operator.picture("explain-refused")
    operator.open("/map")
    page.wait_for_function("window.isochroneMap?.frames > 0")
    page.select_option("[aria-label=Policy]", policy)
    page.wait_for_selector("#map-sum:has-text('Under this policy 0 may process')")
    assert page.inner_text("#map-sum").startswith("0 of 3 sites shown")
    page.select_option("[aria-label=Policy]", "")
    page.wait_for_selector("#map-sum:has-text('3 of 3 sites shown')")
    assert operator.complaints == []


def add_a_sheet(cloud: Cloud, operator: Tab) -> None:
    """All that is wrong with a sheet is said, then what it changes, then it is added."""
    page = operator.page
    operator.open("/prices?add=1")
    text = page.input_value("textarea")
    page.fill("textarea", text.replace('"EUR"', '"euro"').replace('""', '"soon"', 1))
    page.click("button:has-text('See what it changes')")
    page.wait_for_selector("text=want three capital letters")
    assert "valid_from: must be like" in operator.text(), "all that is wrong, at once"
    known = len(list(cloud.api.items("prices")))
    later = text.replace('""', '"2200-01-01T00:00:00Z"', 1).replace("0.60", "0.75")
    page.fill("textarea", later)
    operator.ask("button:has-text('See what it changes')")
    operator.dialog_holds_the_keyboard()
    page.click("button:has-text('See what it changes')")
    page.wait_for_selector("text=/0.60.*0.75/")
    operator.picture("prices-add")
    assert len(list(cloud.api.items("prices"))) == known, "nothing is written yet"
    page.click("button:has-text('Add it')")
    page.wait_for_selector("text=standard v2, in EUR")
    assert operator.complaints == []


def begin_an_organisation(cloud: Cloud, chromium: Browser, operator: Tab) -> None:
    """Its first project is there at once, and a member signs in with the password that is shown."""
    page = operator.page
    operator.open("/organisations")
    page.fill("[aria-label=Name]", "Initech")
    page.click("button:has-text('Make it')")
    page.wait_for_selector("text=Nobody yet")
    assert page.locator(".iso-table td:text-is('main')").count() == 1
    page.fill("[aria-label=Name]", "Peter")
    page.fill("[aria-label='E-mail address']", "peter@initech.example")
    page.click("button:has-text('Make them a member')")
    password = page.inner_text(".iso-secret")
    assert operator.complaints == []
    with tab(chromium, cloud.up["console"]) as opened:
        opened.sign_in("peter@initech.example", password, "/account")
        assert "Your account" in opened.text()
