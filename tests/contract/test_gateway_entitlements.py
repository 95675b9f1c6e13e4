"""What was sold, at the gateways: who is served as `reserved`, and what sites tell one another.

Real gateways on real sockets. Their clock is moved on where a term would have to be waited for.
"""

import asyncio
import re
from typing import Any

import pytest

from isochrone.adapters.clock import SystemClock
from isochrone.core.admission.loans import Ask
from isochrone.core.admission.stewards import TERM_NS, Stand
from isochrone.core.ids import EntitlementId, OrgId, ProjectId, SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.gateway.entitled_gauges import entitled_families
from isochrone.gateway.letters import PATH
from isochrone.ports.telemetry import Sample
from isochrone.wire import peer, subjects
from isochrone.wire.commitments import encode_messages
from isochrone.wire.peer import HopHead
from isochrone.wire.peer_codes import proof, started
from tests.fixtures.gateways import (
    MODEL,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)
from tests.fixtures.signed_hops import signed_by

ID = EntitlementId("gold")
CLASSES = ("reserved", "on_demand", "batch")
# What the scripted engine says: 10 tokens of a prompt, and 2 of an answer that count twice.
USED = 14
CLASS = "x-isochrone-class"


class MovedClock:
    """The machine's clock, and what a test has moved it on by."""

    def __init__(self) -> None:
        self.ahead_ns = 0
        self._clock = SystemClock()

    def wall_ns(self) -> int:
        return self._clock.wall_ns()

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns() + self.ahead_ns


async def a_cloud(cloud: GatewayCloud, *names: str, **settings: Any) -> list[RunningSite]:
    """Sites in Germany, with one key that may use every class; a term has passed since."""
    clock = MovedClock()
    sites = [await cloud.add_site(name, "DE", clock=clock, **settings) for name in names]
    await cloud.key("secret", classes=CLASSES)
    await cloud.ready()
    await a_term_passes(clock, sites)
    return sites


async def a_term_passes(clock: MovedClock, sites: list[RunningSite]) -> None:
    """And digests are heard again."""
    clock.ahead_ns += TERM_NS
    async with asyncio.timeout(10):
        for site in sites:
            while (await ask(site, wanting("default"))).status != 200:
                await asyncio.sleep(0.02)


async def sell(
    cloud: GatewayCloud, tok_s: dict[str, int], *, voters: tuple[str, ...] | None = None,
    **changes: Any,
) -> None:
    sold = {
        "id": ID, "org_id": OrgId("org"), "project_id": None, "model": MODEL, "class_": "reserved",
        "tok_s": sum(tok_s.values()), "residency": ("any",), "starts_at": 0, "ends_at": 1 << 62,
        "slices": tuple(Slice(site=SiteName(name), tok_s=each) for name, each in tok_s.items()),
        **changes,
    }
    who = tuple(map(SiteName, voters or tuple(cloud.sites)))
    await cloud.publish(subjects.VOTERS_KEY, Voters(sites=who))
    await cloud.publish(subjects.entitlement_key(sold["id"]), Entitlement(**sold))


def left(site: RunningSite, id_: EntitlementId = ID) -> int:
    """Tokens that could be spent here now."""
    found = {each.entitlement.id: each for each in site.running.context.entitled.sold()}
    return found[id_].allowance.left(site.clock.monotonic_ns()) if id_ in found else 0


def usable(site: RunningSite) -> int:
    return site.running.letters.standing(ID).usable_tok_s


def scraped(site: RunningSite) -> dict[tuple[str, ...], float]:
    context = site.running.context
    return {
        (family.metric.name.removeprefix("isochrone_gateway_"), *sample.labels): sample.value
        for family in entitled_families(
            context.entitled, site.running.letters, site.clock.monotonic_ns()
        )
        for sample in family.samples
        if isinstance(sample, Sample)
    }


def wanting(tier: str | None = "priority", **fields: Any) -> bytes:
    return post(chat_body(service_tier=tier, max_tokens=2, **fields))


def test_what_was_not_sold_is_not_reserved() -> None:
    async def main(cloud: GatewayCloud) -> None:
        (site,) = await a_cloud(cloud, "frankfurt")
        answer = await ask(site, wanting())
        assert (answer.status, answer.headers[CLASS]) == (200, "on_demand")
        assert (await cloud.events(answer.request_id))[0].class_ == "on_demand"
        answer = await ask(site, wanting("default"))
        assert (answer.status, CLASS in answer.headers) == (200, False)

    run(main)


def test_nothing_is_in_force_before_its_window_or_behind_it() -> None:
    async def main(cloud: GatewayCloud) -> None:
        (site,) = await a_cloud(cloud, "frankfurt")
        now, hour = site.clock.wall_ns(), 3_600_000_000_000
        windows = {"to come": (now + hour, 1 << 61), "over": (0, now), "open": (0, now + hour)}
        for name, (starts_at, ends_at) in windows.items():
            await sell(
                cloud, {"frankfurt": 10}, id=EntitlementId(name), starts_at=starts_at,
                ends_at=ends_at,
            )
        entitled, home = site.running.context.entitled, SiteName("frankfurt")
        await until(lambda: left(site, EntitlementId("open")) > 0)
        for _ in range(3):  # rounds of what sites tell one another
            site.clock.ahead_ns += 10**9  # type: ignore[attr-defined]
            await asyncio.sleep(0)
            assert entitled.in_force(home, site.clock.monotonic_ns()) == {MODEL: 10}
        assert [left(site, EntitlementId(name)) for name in ("to come", "over")] == [0, 0]

    run(main)


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_reserved_as_long_as_the_allowance_pays_and_settled_as_used(stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        (site,) = await a_cloud(cloud, "frankfurt")
        await sell(cloud, {"frankfurt": 10})
        await until(lambda: left(site) >= 30)
        site.clock.ahead_ns += 10**10  # type: ignore[attr-defined]
        assert left(site) == 50
        answer = await ask(site, wanting(stream=stream))
        assert (answer.status, answer.headers[CLASS]) == (200, "reserved")
        (sold,) = site.running.context.entitled.sold()
        assert 50 - sold.used_tokens <= left(site) < 50
        assert (sold.honoured, sold.used_tokens) == (1, 16 if stream else USED)
        assert (await cloud.events(answer.request_id))[0].class_ == "reserved"
        classes = [
            (await ask(site, wanting(stream=stream))).headers[CLASS] for _ in range(8)
        ]
        assert set(classes) == {"reserved", "on_demand"}
        assert sold.refused == classes.count("on_demand")
        assert sold.honoured == 1 + classes.count("reserved")
        assert (await ask(site, wanting("default"))).status == 200
        assert sold.refused == classes.count("on_demand"), "others asked for none of it"

    run(main)


def test_what_a_failed_request_was_to_use_is_given_back() -> None:
    async def main(cloud: GatewayCloud) -> None:
        (site,) = await a_cloud(cloud, "frankfurt")
        await sell(cloud, {"frankfurt": 10})
        await until(lambda: left(site) >= 10)
        site.clock.ahead_ns += 10**10  # type: ignore[attr-defined]
        site.engines[0].status = 400
        assert (await ask(site, wanting())).status == 400
        assert left(site) == 50
        (sold,) = site.running.context.entitled.sold()
        assert (sold.honoured, sold.refused) == (0, 0)

    run(main)


def test_a_project_uses_its_own_and_nobody_elses() -> None:
    async def main(cloud: GatewayCloud) -> None:
        (site,) = await a_cloud(cloud, "frankfurt")
        await cloud.key("elsewhere", classes=CLASSES)
        await sell(cloud, {"frankfurt": 100}, project_id=ProjectId("project"))
        await sell(cloud, {"frankfurt": 100}, id=EntitlementId("b"), project_id=ProjectId("other"))
        await until(lambda: left(site) >= 40 and left(site, EntitlementId("b")) >= 40)
        assert (await ask(site, wanting())).headers[CLASS] == "reserved"
        await cloud.control.delete(subjects.VIEW_BUCKET, subjects.entitlement_key(ID))
        await until(lambda: len(site.running.context.entitled.sold()) == 1)
        assert (await ask(site, wanting())).headers[CLASS] == "on_demand"

    run(main)


async def sydney_and_frankfurt(cloud: GatewayCloud) -> tuple[RunningSite, RunningSite]:
    """Two of which one is in Germany, and the key `german`, whose requests are served there."""
    clock = MovedClock()
    sydney = await cloud.add_site("sydney", "AU", clock=clock)
    frankfurt = await cloud.add_site("frankfurt", "DE", clock=clock)
    await cloud.key("secret", classes=CLASSES)
    await cloud.key("german", classes=("reserved",), residency=("DE",))
    await cloud.link("sydney", "frankfurt", 20)
    await cloud.ready()
    await a_term_passes(clock, [sydney, frankfurt])
    return sydney, frankfurt


def german(**fields: Any) -> bytes:
    return post(chat_body(service_tier="priority", max_tokens=2, **fields), key="german")


def test_only_what_is_served_within_its_residency_counts() -> None:
    """Wherever it comes in: Sydney may spend what was sold for Germany, and serve none of it."""

    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await sydney_and_frankfurt(cloud)
        await sell(cloud, {"sydney": 500, "frankfurt": 500}, residency=("DE",))
        await until(lambda: left(frankfurt) >= 100 and left(sydney) >= 100)
        assert (await ask(frankfurt, german())).headers[CLASS] == "reserved"

        before = left(frankfurt)
        answer = await ask(sydney, german())
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "frankfurt")
        assert answer.headers[CLASS] == "reserved"
        assert left(frankfurt) >= before, "whoever has something pays for what comes in there"
        (sold,) = sydney.running.context.entitled.sold()
        assert (sold.honoured, sold.used_tokens) == (1, USED)

        answer = await ask(sydney, wanting())
        assert (answer.headers["x-isochrone-site"], answer.headers[CLASS]) == (
            "sydney", "on_demand"
        )
        assert (sold.honoured, sold.used_tokens) == (1, USED), "and nothing was spent for it"

    run(main)


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_ingress_cannot_pay_for_the_site_that_serves_it_pays(stream: bool) -> None:
    """Once, for its first request as for any: nothing has to be lent for that."""

    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await sydney_and_frankfurt(cloud)
        await sell(cloud, {"frankfurt": 10}, residency=("DE",))
        await until(lambda: left(frankfurt) >= 10 and bool(sydney.running.context.entitled.sold()))
        sydney.clock.ahead_ns += 10**10  # type: ignore[attr-defined]
        assert (left(frankfurt), left(sydney)) == (50, 0)
        answers = [await ask(sydney, german(stream=stream))]
        at_frankfurt, at_sydney = (
            site.running.context.entitled.sold()[0] for site in (frankfurt, sydney)
        )
        assert answers[0].headers[CLASS] == "reserved"
        used = 16 if stream else USED
        assert 50 - used <= left(frankfurt) < 50
        assert (at_frankfurt.honoured, at_frankfurt.used_tokens) == (1, used)
        answers += [await ask(sydney, german(stream=stream)) for _ in range(8)]
        classes = [each.headers[CLASS] for each in answers]
        assert set(classes) == {"reserved", "on_demand"}
        assert at_frankfurt.honoured == classes.count("reserved")
        assert at_frankfurt.refused == classes.count("on_demand")
        assert (at_sydney.honoured, at_sydney.refused, at_sydney.used_tokens) == (0, 0, 0)
        at_sydney.allowance.measure(sydney.clock.monotonic_ns())
        assert at_sydney.allowance.demand_tok_s == 0, "so nothing is borrowed in vain"
        for answer in answers:
            assert answer.headers["x-isochrone-site"] == "frankfurt"
            events = await cloud.events(answer.request_id, 2)
            assert {event.class_ for event in events} == {answer.headers[CLASS]}

    run(main)


def test_a_peer_that_has_paid_is_not_paid_for_and_nobody_can_say_otherwise_unsigned() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await sydney_and_frankfurt(cloud)
        await sell(cloud, {"frankfurt": 1000}, residency=("DE",))
        await until(lambda: left(frankfurt) >= 100)

        def hop(unpaid: bool) -> bytes:
            body = chat_body(max_tokens=2)
            return signed_by(sydney, frankfurt, body=body, class_="reserved", unpaid=unpaid)

        answer = await ask(frankfurt, hop(unpaid=False))
        assert (answer.status, len(answer.headers[peer.HOP].split(" "))) == (200, 3)
        (sold,) = frankfurt.running.context.entitled.sold()
        assert sold.honoured == 0
        said = re.compile(rb"(x-isochrone-hop: \S+ \d+)(u?) ")
        for raw in (said.sub(rb"\1u ", hop(unpaid=False)), said.sub(rb"\1 ", hop(unpaid=True))):
            assert (await ask(frankfurt, raw)).status == 401
        assert sold.honoured == 0
        answer = await ask(frankfurt, hop(unpaid=True))
        assert answer.headers[peer.HOP].split(" ")[2:-1] == ["reserved"]
        assert sold.honoured == 1

    run(main)


def test_sites_lend_to_one_another_while_the_bus_is_away() -> None:
    async def main(cloud: GatewayCloud) -> None:
        oslo, paris, rome = await a_cloud(cloud, "oslo", "paris", "rome")
        await sell(cloud, {"oslo": 60, "paris": 40})
        await until(lambda: usable(oslo) == 60 and usable(paris) == 40 and usable(rome) == 0)
        for site in (oslo, paris, rome):
            site.bus.down()

        async def demand() -> None:
            while usable(rome) < 100:
                assert usable(oslo) + usable(paris) + usable(rome) <= 100
                await ask(rome, wanting())
                await asyncio.sleep(0.02)

        async with asyncio.timeout(20):
            await demand()
        assert (usable(oslo), usable(paris)) == (0, 0)
        standing = oslo.running.letters.standing(ID)
        assert (standing.lent_tok_s, standing.borrowed_tok_s) == (60, 0)
        assert rome.running.letters.standing(ID).borrowed_tok_s == 100
        at_oslo, at_rome = scraped(oslo), scraped(rome)
        rate = "entitled_tokens_per_second"
        assert [at_oslo[rate, MODEL, kind] for kind in ("usable", "lent")] == [0, 60]
        assert [at_rome[rate, MODEL, kind] for kind in ("usable", "borrowed")] == [100, 100]
        assert at_rome["entitled_wanted_tokens_per_second", MODEL] >= 80
        honoured = at_rome["entitled_requests_total", MODEL, "honoured"]
        assert at_rome["entitled_used_tokens_total", MODEL] == honoured * USED > 0
        assert at_rome["entitled_requests_total", MODEL, "refused"] > 0
        assert at_rome["commitment_payloads_total", "sent"] > 0
        assert at_rome["commitment_payloads_total", "heard"] > 0
        for site in (oslo, paris, rome):
            site.bus.up()
        await cloud.control.delete(subjects.VIEW_BUCKET, subjects.entitlement_key(ID))
        await until(lambda: not rome.running.context.entitled.sold())
        after = scraped(rome)
        assert after["entitled_requests_total", MODEL, "honoured"] >= honoured, "it never shrinks"
        assert (rate, MODEL, "usable") not in after

    run(main)


def test_a_dead_home_is_looked_after_by_others() -> None:
    async def main(cloud: GatewayCloud) -> None:
        oslo, paris, rome = await a_cloud(cloud, "oslo", "paris", "rome")
        await sell(cloud, {"oslo": 60, "paris": 40})
        await until(lambda: usable(oslo) == 60 and usable(paris) == 40)
        cloud.kill_site("oslo")

        async with asyncio.timeout(40):
            while usable(paris) + usable(rome) < 100:  # some of it is served, and paid, at Paris
                await asyncio.gather(*[ask(rome, wanting()) for _ in range(12)])
                assert usable(paris) + usable(rome) <= 100
                rome.clock.ahead_ns += 10**9  # type: ignore[attr-defined]
                await asyncio.sleep(0.3)

    run(main)


def test_letters_are_taken_from_proven_peers_only_and_once() -> None:
    async def main(cloud: GatewayCloud) -> None:
        oslo, paris = await a_cloud(cloud, "oslo", "paris")
        await sell(cloud, {"oslo": 60}, voters=("oslo",))
        await until(lambda: usable(oslo) == 60)
        shared = paris.running.context.peers.key_for(oslo.site)
        assert shared is not None

        def signed(*messages: Any, serving: str = "oslo") -> bytes:
            head = HopHead("POST", PATH, "paris", serving, peer.NOTHING, "reserved")
            body, now = encode_messages(messages), paris.clock.wall_ns()
            lines = head.lines() + (
                f"{peer.HOP}: {proof(started(shared, head.covered()), 'x', now, body)}"
            )
            headers = dict(line.split(": ", 1) for line in lines.splitlines())
            return post(body, key=None, path=PATH, headers=headers)

        def asking(borrower: str, number: int) -> Ask:
            return Ask(
                entitlement=ID, home=SiteName("oslo"), borrower=SiteName(borrower), life=1,
                number=number, heard=0, want_tok_s=60,
            )

        before = oslo.running.letters.heard
        good = signed(asking("paris", 1))
        forged = {
            "replayed": good, "another body": good.replace(b"paris", b"parix"),
            "for another": signed(asking("paris", 2), serving="rome"),
        }
        assert (await ask(oslo, signed(asking("rome", 1)))).status == 200
        assert usable(oslo) == 60, "nobody borrows in another's name"
        assert (await ask(oslo, good)).status == 200
        assert usable(oslo) == 0
        assert oslo.running.letters.heard == before + 2
        for raw in forged.values():
            answer = await ask(oslo, raw)
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (401, "peer_untrusted")
        stand = Stand(home=SiteName("oslo"), site=SiteName("paris"), life=1, number=1)
        nobodys = post(encode_messages([stand]), path=PATH)
        assert (await ask(oslo, nobodys)).status == 404
        assert oslo.running.letters.heard == before + 2
        oslo.running.letters.stop()
        answer = await ask(oslo, signed(asking("paris", 9)))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (503, "gateway_stopping")
        assert oslo.running.letters.heard == before + 2, "whoever takes over keeps the books"

    run(main)


async def told(cloud: GatewayCloud, request_id: str) -> UsageEvent:
    """What the ingress says of it, which has the decision."""
    def said() -> list[UsageEvent]:
        return [
            each for each in cloud.all_events()
            if (each.request_id, each.reporter) == (request_id, "ingress")
        ]

    await until(lambda: bool(said()))
    return said()[0]


def test_the_class_that_was_asked_for_is_told_and_why_it_was_served_in_another() -> None:
    """Wanted, what the key has instead, served, and why nothing that was sold paid."""

    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await sydney_and_frankfurt(cloud)
        await cloud.key("plain")
        await cloud.key("firm", classes=("reserved",))

        async def classes_of(site: RunningSite, raw: bytes) -> tuple[str | None, ...]:
            event = await told(cloud, (await ask(site, raw)).request_id)
            decision = event.decision
            assert decision is not None
            return (
                decision.wanted_class, decision.key_class, event.class_, decision.unpaid_because
            )

        def asking(key: str, tier: str | None) -> bytes:
            return post(chat_body(service_tier=tier, max_tokens=2), key=key)

        assert await classes_of(sydney, asking("secret", None)) == (
            "on_demand", None, "on_demand", None
        )
        assert await classes_of(sydney, asking("plain", "priority")) == (
            "reserved", "on_demand", "on_demand", None
        )
        assert await classes_of(sydney, asking("secret", "flex")) == ("batch", None, "batch", None)
        assert await classes_of(sydney, asking("secret", "priority")) == (
            "reserved", None, "on_demand", "nothing_sold"
        )
        assert await classes_of(sydney, asking("firm", None)) == (
            "on_demand", "reserved", "on_demand", "nothing_sold"
        )
        await sell(cloud, {"frankfurt": 1}, residency=("DE",))
        await until(lambda: left(frankfurt) >= 1 and bool(sydney.running.context.entitled.sold()))
        assert await classes_of(sydney, asking("secret", "priority")) == (
            "reserved", None, "on_demand", "residency"
        )
        sydney.clock.ahead_ns += 10**10  # type: ignore[attr-defined]
        assert await classes_of(sydney, german()) == ("reserved", None, "reserved", None)
        while left(frankfurt) > 0:
            await ask(frankfurt, german())
        assert await classes_of(sydney, german()) == (
            "reserved", None, "on_demand", "spent_there"
        )
        assert await classes_of(frankfurt, german()) == ("reserved", None, "on_demand", "spent")

    run(main)
