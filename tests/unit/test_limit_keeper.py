"""Who decides about a limit, and when a grant is sent: message by message."""

from dataclasses import replace

import pytest

from isochrone.core.ids import LimitId, SiteName
from isochrone.core.limits.keeper import Keeper
from isochrone.core.limits.messages import (
    AskGrant,
    Behind,
    Copied,
    Copy,
    Follow,
    Grant,
    Lead,
    LimitLetter,
)
from isochrone.core.limits.part import Part
from isochrone.core.limits.terms import AMNESIA_NS, HOUR_NS, TERM_NS, most_headroom
from isochrone.core.world.limit import LimitKind
from tests.fixtures.limited_fleet import SECOND_NS, WALL, a_limit

HOME, NEXT, LAST = map(SiteName, ("home", "next", "last"))
THREE = (HOME, NEXT, LAST)
LIMIT = a_limit("requests_per_min", 10)
ID = LimitId("limit")


def a_keeper(site: SiteName, *, remembers: bool = True) -> Keeper:
    return Keeper(LIMIT, site, THREE, remembers=remembers, now_ns=SECOND_NS)


def an_ask(number: int = 1, need: int = 4, *, site: str = "asker") -> AskGrant:
    return AskGrant(
        limit=ID, site=SiteName(site), life=1, number=number, heard=0, mark=0, used=0, held=0,
        need=need, want=need, least=1, insists=True,
    )


def decides(keeper: Keeper) -> bool:
    return keeper.leads


def kinds(letters: list[LimitLetter]) -> list[str]:
    return [type(each.message).__name__ for each in letters]


def test_the_home_grants_when_one_other_has_the_tally() -> None:
    home = a_keeper(HOME)

    asked = home.hear_ask(an_ask(), 2 * SECOND_NS, WALL)
    assert kinds(asked) == ["Copy", "Copy"], "no grant yet"
    copy = asked[0].message
    assert isinstance(copy, Copy)
    (copied,) = a_keeper(NEXT).hear_copy(copy, 2 * SECOND_NS)
    assert isinstance(copied.message, Copied)
    (granted,) = home.hear_copied(copied.message, 2 * SECOND_NS)
    assert isinstance(granted.message, Grant)
    assert (granted.to, granted.message.amount) == ("asker", 4)
    assert home.left() == 6


def stood(site: SiteName, *, remembers: bool = True) -> tuple[Keeper, Lead]:
    """One that was asked by somebody who had no answer elsewhere."""
    keeper = a_keeper(site, remembers=remembers)
    letters = keeper.hear_ask(an_ask(), 2 * SECOND_NS, WALL)
    assert kinds(letters) == ["Lead", "Lead"]
    lead = letters[0].message
    assert isinstance(lead, Lead)
    return keeper, lead


def test_a_successor_decides_by_a_majority_and_then_the_home_does_not() -> None:
    home, last = a_keeper(HOME), a_keeper(LAST)
    copies = home.hear_ask(an_ask(need=7, site="another"), 2 * SECOND_NS, WALL)
    copy = copies[0].message
    assert isinstance(copy, Copy)
    last.hear_copy(copy, 2 * SECOND_NS)

    successor, lead = stood(NEXT)
    assert not decides(successor), "its own vote alone is no majority"
    (follow,) = last.hear_lead(lead, 3 * SECOND_NS)
    assert isinstance(follow.message, Follow)
    won = successor.hear_follow(follow.message, 3 * SECOND_NS, WALL)
    assert decides(successor)
    assert kinds(won) == ["Copy", "Copy"]
    assert successor.left() <= 0, "it knows of the grant that it never saw"

    late = home.hear_ask(an_ask(2, site="a third"), 3 * SECOND_NS, WALL)[0].message
    assert isinstance(late, Copy)
    (refused,) = last.hear_copy(late, 4 * SECOND_NS)
    assert isinstance(refused.message, Behind), "it follows another now"
    home.hear_behind(refused.message, 4 * SECOND_NS)
    assert not decides(home)


def test_one_that_has_forgotten_needs_both_others() -> None:
    anew, lead = stood(NEXT, remembers=False)
    (one,) = a_keeper(LAST).hear_lead(lead, 3 * SECOND_NS)
    assert isinstance(one.message, Follow)
    anew.hear_follow(one.message, 3 * SECOND_NS, WALL)
    assert not decides(anew)
    (other,) = a_keeper(HOME).hear_lead(lead, 3 * SECOND_NS)
    assert isinstance(other.message, Follow)
    anew.hear_follow(other.message, 3 * SECOND_NS, WALL)
    assert decides(anew)


def test_the_word_of_one_that_has_forgotten_counts_for_nothing() -> None:
    anew = a_keeper(LAST, remembers=False)
    copies = a_keeper(HOME).hear_ask(an_ask(), 2 * SECOND_NS, WALL)
    copy = copies[0].message
    assert isinstance(copy, Copy)
    assert anew.hear_copy(copy, 2 * SECOND_NS) == []
    successor, lead = stood(NEXT)
    (follow,) = anew.hear_lead(lead, 3 * SECOND_NS)
    assert isinstance(follow.message, Follow)
    assert not follow.message.remembers
    successor.hear_follow(follow.message, 3 * SECOND_NS, WALL)
    assert not decides(successor)
    (after,) = anew.hear_lead(lead, 2 * SECOND_NS + AMNESIA_NS)
    assert isinstance(after.message, Follow)
    assert after.message.remembers


def test_a_grant_of_less_than_is_used_already_is_not_taken() -> None:
    part = Part(LIMIT, 0)
    now_ns = 60 * SECOND_NS
    part.ask(HOME, 1, 1, 3, now_ns)
    first = Grant(
        limit=ID, life=1, number=1, mark=0, amount=5, for_ns=TERM_NS, free=0, spare=0
    )
    assert part.hear(first, now_ns)
    part.ask(HOME, 1, 2, 3, now_ns)
    for _ in range(4):
        part.take(1, now_ns)
    second = Grant(
        limit=ID, life=1, number=2, mark=0, amount=3, for_ns=TERM_NS, free=0, spare=0
    )
    assert not part.hear(second, now_ns)
    assert part.heard == 1, "so the home goes on counting the first"
    assert part.fits(1, now_ns)
    assert not part.fits(2, now_ns)


@pytest.mark.parametrize("kind", ["requests_per_min", "tokens_per_min"])
def test_what_came_later_counts_though_an_earlier_time_is_looked_at(kind: LimitKind) -> None:
    part = Part(a_limit(kind, 100), 0)
    part.take(3, 60 * SECOND_NS)
    part.settle(3, 3, WALL, 60 * SECOND_NS)
    part.take(4, 71 * SECOND_NS)
    part.settle(4, 4, WALL, 71 * SECOND_NS)

    assert part.used(63 * SECOND_NS) == 7
    part.take(2, 63 * SECOND_NS)
    part.settle(2, 2, WALL, 63 * SECOND_NS)

    assert part.used(72 * SECOND_NS) == 9
    assert part.used(124 * SECOND_NS) == 6, "and what came late is not forgotten sooner"
    assert part.used(131 * SECOND_NS) == 0


def test_nobody_is_granted_more_than_needed_while_somebody_lacks_something() -> None:
    limit = a_limit("tokens_per_min", 1_000)
    keeper = Keeper(limit, HOME, (HOME,), remembers=True, now_ns=SECOND_NS)

    def granted(ask: AskGrant, now_ns: int) -> int:
        found = [each.message for each in keeper.hear_ask(ask, now_ns, WALL)]
        (grant,) = [each for each in found if isinstance(each, Grant)]
        return grant.amount

    eager = AskGrant(
        limit=ID, site=NEXT, life=1, number=1, heard=0, mark=0, used=0, held=0, need=100,
        want=100 + most_headroom(1_000, 3), least=100,
    )
    assert granted(eager, 2 * SECOND_NS) == 100 + most_headroom(1_000, 3)
    assert granted(an_ask(1, 950), 3 * SECOND_NS) == 1_000 - 100 - most_headroom(1_000, 3)
    again = AskGrant(
        limit=ID, site=NEXT, life=1, number=2, heard=1, mark=0, used=0, held=0, need=50,
        want=50 + most_headroom(1_000, 3), least=50,
    )
    assert granted(again, 4 * SECOND_NS) == 50


def test_an_ask_from_before_the_mark_moved_is_granted_nothing_to_use_anew() -> None:
    """What it had used by the mark before was granted with the new one, by which it was unused."""
    limit = a_limit("budget", 1_000)
    keeper = Keeper(limit, HOME, (HOME,), remembers=True, now_ns=SECOND_NS)
    part = Part(limit, WALL - WALL % HOUR_NS)
    part.settle(0, 700, WALL, SECOND_NS)
    part.take(100, SECOND_NS)
    ask = part.ask(HOME, 1, 1, 1, 2 * SECOND_NS)
    assert (ask.used, ask.held) == (700, 100)
    keeper.mark, keeper.spent = part.mark + HOUR_NS, 900
    (letter,) = keeper.hear_ask(ask, 2 * SECOND_NS, WALL + HOUR_NS)
    grant = letter.message
    assert isinstance(grant, Grant)
    assert part.hear(grant, 2 * SECOND_NS)
    assert part.used(2 * SECOND_NS) == 0
    assert not part.fits(1, 2 * SECOND_NS)

    ask = part.ask(HOME, 1, 2, 1, 3 * SECOND_NS)
    (letter,) = keeper.hear_ask(replace(ask, need=200, want=200), 3 * SECOND_NS, WALL + HOUR_NS)
    assert isinstance(letter.message, Grant)
    assert letter.message.amount == 100, "what is left of it, which it holds"
