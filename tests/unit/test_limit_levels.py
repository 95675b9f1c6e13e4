"""Each kind of limit binds at each level: of a key, of a project, of an organisation."""

from dataclasses import replace

import pytest

from isochrone.core.ids import KeyId, LimitId, ProjectId
from isochrone.core.limits.part import Part
from isochrone.core.metering.event import Tokens
from isochrone.core.money import PICO
from isochrone.core.world.limit import LIMIT_KINDS, Limit, LimitKind
from tests.unit.test_limit_gauges import OUTPUT, PROMPT, Home, a_limit

LEVELS = ("key", "project", "organisation")
ONE: dict[LimitKind, int] = {  # of one request, as it is estimated
    "requests_per_min": 1, "tokens_per_min": PROMPT + OUTPUT, "concurrent": 1,
    "budget": OUTPUT * PICO // 100,
}
REASONS = {
    "requests_per_min": "rate_limit_requests", "tokens_per_min": "rate_limit_tokens",
    "concurrent": "concurrency", "budget": "budget",
}


def at(level: str, kind: LimitKind, amount: int) -> Limit:
    """Of the key `mine` of the first project, of that project, or of the organisation."""
    return replace(
        a_limit(kind, amount), id=LimitId(f"{kind} of {level}"),
        project_id=None if level == "organisation" else ProjectId("project"),
        key_id=KeyId("mine") if level == "key" else None,
    )


@pytest.mark.parametrize("kind", LIMIT_KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_tightest_of_three_levels_refuses_and_the_others_count_nothing(
    level: str, kind: LimitKind
) -> None:
    home = Home(*(
        at(each, kind, ONE[kind] * (2 if each == level else 100)) for each in LEVELS
    ))
    first, second, third = (home.ask("mine") for _ in range(3))
    assert (first[1], second[1]) == (None, None)
    refusal = third[1]
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (429, REASONS[kind])
    assert refusal.message.startswith(f"This {level} may ")
    assert home.limits.refusals == {(kind, level, "used_up"): 1}
    taken = {part.limit.id: part.held + part.used(home.clock.now_ns) for part in parts(home)}
    assert taken == {f"{kind} of {each}": 2 * ONE[kind] for each in LEVELS}

    others = {"sibling": home.ask("other")[1], "cousin": home.ask("else", "elsewhere")[1]}
    assert {name for name, refused in others.items() if refused is not None} == {
        "key": set(), "project": {"sibling"}, "organisation": {"sibling", "cousin"},
    }[level]


@pytest.mark.parametrize("kind", ["tokens_per_min", "concurrent", "budget"])
def test_what_was_held_too_much_is_free_again_at_each_level(kind: LimitKind) -> None:
    home = Home(*(at(each, kind, ONE[kind]) for each in LEVELS))
    exchange, refusal = home.ask("mine")
    assert refusal is None
    assert home.ask("mine")[1] is not None
    home.limits.settle(exchange, Tokens(), 0, exchange.started_ns)
    home.pass_s(3)
    assert [part.held for part in parts(home)] == [0, 0, 0]
    assert home.ask("mine")[1] is None


def parts(home: Home) -> list[Part]:
    return list(home.limits.fleet.parts().values())
