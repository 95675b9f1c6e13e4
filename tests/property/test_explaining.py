"""Over random worlds: what is kept in brief says the same as the whole, as far as it goes."""

import pytest
from hypothesis import given, settings

from isochrone.core.routing.explain import explain
from isochrone.core.routing.loads import Loads
from isochrone.core.world.view import View
from tests.builders import a_table
from tests.property.test_choosing import Asked, choice_of, situations


@settings(max_examples=200)
@given(situations())
def test_a_brief_decision_says_what_the_whole_one_says(
    situation: tuple[View, Loads, Asked]
) -> None:
    view, loads, asked = situation
    choice = choice_of(a_table(view), loads, asked)
    brief, full = choice.decision(in_full=False), choice.decision()
    assert choice.decision() == full, "making a brief one changed the choice"
    shown, whole = explain(choice.ground, brief), explain(choice.ground, full)
    assert shown is not None
    assert whole is not None
    assert shown.candidates == whole.candidates[:1]
    assert shown.refused == whole.refused
    assert shown.eligible == whole.eligible == choice.eligible
    assert shown.is_full == (choice.site is None)
    others = {each.site: each.cost_ms for each in whole.candidates[1:]}
    if not others:
        assert shown.runner_up is None
        return
    assert shown.runner_up is not None
    cheapest_ms = min(others.values())
    assert others[shown.runner_up.site] == pytest.approx(cheapest_ms, rel=1e-5, abs=0.01)
    assert shown.runner_up.cost_ms == pytest.approx(cheapest_ms, rel=1e-5, abs=0.01)


@settings(max_examples=200)
@given(situations())
def test_a_spill_is_what_the_whole_explanation_shows_as_one(
    situation: tuple[View, Loads, Asked]
) -> None:
    view, loads, asked = situation
    choice = choice_of(a_table(view), loads, asked)
    whole = explain(choice.ground, choice.decision())
    assert whole is not None
    beside = [each.site for each in whole.candidates[1:]]
    assert choice.is_spill == (view.own_site in beside)
