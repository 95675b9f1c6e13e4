"""Shares at a site's queue: what a class had by another rule is not held against it, or for it."""

from dataclasses import replace

import pytest

from isochrone.core.rng import stream
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import Class
from tests.fixtures.busy_site import BusySite

TOKENS = 100
FAVOURED = SitePolicy(
    on_demand=ClassRule(share=3, floor=0.9, queue_most=30, wait_ms=1e7),
    batch=ClassRule(share=1, queue_most=30, wait_ms=1e7),
)
HELD_BACK = SitePolicy(
    on_demand=ClassRule(share=3, queue_most=30, wait_ms=1e7),
    batch=ClassRule(share=1, ceiling=0.1, queue_most=30, wait_ms=1e7),
)


def crowd(
    site: BusySite, classes: tuple[Class, ...], seconds: float, tokens: int = TOKENS
) -> None:
    """Each class has requests waiting all the time."""
    for _ in range(int(seconds * 20)):
        for class_ in classes:
            while site.queue.line(class_).order.queued < 20:
                site.offer(class_, "acme", tokens, resumable=False)
        site.pass_ms(50)


def began(site: BusySite, class_: Class) -> int:
    """How many requests of a class have begun."""
    return sum(ticket.rank == ("reserved", "on_demand", "batch").index(class_)
               for _, ticket in site.begun)


@pytest.mark.parametrize(
    ("before", "after", "slots"),
    [
        (FAVOURED, FAVOURED, 1),
        (FAVOURED, replace(FAVOURED, on_demand=replace(FAVOURED.on_demand, floor=0.0)), 10),
        (HELD_BACK, replace(HELD_BACK, batch=replace(HELD_BACK.batch, ceiling=1.0)), 10),
    ],
    ids=["slots", "floor", "ceiling"],
)
def test_a_class_that_was_favoured_has_its_share_when_that_is_over(
    before: SitePolicy, after: SitePolicy, slots: int
) -> None:
    both: tuple[Class, ...] = ("on_demand", "batch")
    site = BusySite(before, 10)
    crowd(site, both, 120.0)
    site.queue.adopt(after)
    site.resize(slots)
    crowd(site, both, 2.0)  # what began before that ends
    site.begun.clear()
    crowd(site, both, 40.0)
    assert began(site, "on_demand") / began(site, "batch") == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("change", ["sold", "slots"])
def test_shares_hold_while_what_was_sold_or_slots_change_with_every_second(change: str) -> None:
    rule = ClassRule(queue_most=30, wait_ms=1e7)
    site = BusySite(SitePolicy(on_demand=replace(rule, share=3), batch=replace(rule, share=1)), 4)
    for _ in range(4):
        site.offer("on_demand", "acme", 4_000)
        site.pass_ms(1_000)  # from now on one ends in every second
    site.begun.clear()
    for second in range(200):
        if change == "sold":
            site.promise(900.0 + 200.0 * (second % 2))  # of which nothing is used
        else:
            site.resize(4 + second % 2)
        crowd(site, ("on_demand", "batch"), 1.0, 4_000)
    assert began(site, "on_demand") / began(site, "batch") == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("share", [6.0, 100.0, 10_000.0])
def test_one_token_of_twenty_is_for_others_whatever_the_share_of_what_was_sold(
    share: float
) -> None:
    rule = ClassRule(queue_most=10, wait_ms=1e7)
    site = BusySite(SitePolicy(reserved=replace(rule, share=share), batch=rule), 8)
    rng = stream(1, "sizes")
    for _ in range(40):
        site.promise(100_000.0)  # more than the site can do
        for _ in range(200):
            for class_ in ("reserved", "batch"):
                while site.queue.line(class_).order.queued < 3:
                    site.offer(class_, "acme", rng.randint(50, 150), resumable=False)
            site.pass_ms(5)
    tokens = [0, 0, 0]
    for _, ticket in site.begun:
        tokens[ticket.rank] += ticket.tokens
    assert tokens[2] / sum(tokens) > 1 / 22
