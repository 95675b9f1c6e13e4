"""Residency rules on single countries, and the problems of an axis."""

import pytest

from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import (
    Admitted,
    Denied,
    admits,
    check_axis,
    parse_axis,
    render_axis,
)
from tests.builders import a_site, some_blocs


@pytest.mark.parametrize(
    ("axis", "country"),
    [
        (("any",), "AU"),
        (("any",), None),
        (("any",), "XX"),
        (("DE",), "DE"),
        (("EU",), "FR"),
        (("NO", "EU"), "DE"),
        (("NA",), "NA"),
    ],
)
def test_admits(axis: tuple[str, ...], country: str | None) -> None:
    assert admits(axis, a_site("s", country), some_blocs()) == Admitted()


@pytest.mark.parametrize(
    ("axis", "country", "rule"),
    [
        (("DE",), "AU", "residency"),
        (("EU",), "NO", "residency"),
        (("EEA",), "US", "residency"),
        (("DE",), None, "attribute_missing"),
        (("DE",), "", "attribute_missing"),
        (("DE",), "de", "attribute_missing"),
        (("XX",), "XX", "attribute_missing"),
        ((), "DE", "residency"),
        (("any", "DE"), "AU", "residency"),
        (("Any",), "AU", "residency"),
        (("EU2",), "DE", "residency"),
    ],
)
def test_denies(axis: tuple[str, ...], country: str | None, rule: str) -> None:
    verdict = admits(axis, a_site("s", country), some_blocs())
    assert isinstance(verdict, Denied)
    assert verdict.rule == rule


def test_a_denial_names_country_and_policy() -> None:
    verdict = admits(("DE", "EEA"), a_site("s", "AU"), some_blocs())
    assert verdict == Denied(
        rule="residency", detail="the site is in AU, the policy allows DE,EEA"
    )


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ((), ["empty"]),
        (("any", "DE"), ["'any' stands alone"]),
        (("DE", "DE"), ["listed twice"]),
        (("EUU",), ["'EUU'", "did you mean 'EU'"]),
        (("QQ", "zz"), ["'QQ'", "'zz'"]),
    ],
)
def test_problems_of_an_axis_are_all_listed(axis: tuple[str, ...], words: list[str]) -> None:
    problems = check_axis(axis, some_blocs())
    assert len(problems) == max(1, len(words) if axis and axis[0] == "QQ" else 1)
    for word in words:
        assert any(word in problem for problem in problems)


def test_a_usable_axis_has_no_problems() -> None:
    for axis in (("any",), ("DE",), ("EEA", "US"), ("NA",)):
        assert check_axis(axis, some_blocs()) == []


def test_an_axis_is_parsed_from_what_people_type() -> None:
    assert parse_axis("de, EEA") == ("DE", "EEA")
    assert parse_axis("ANY") == ("any",)
    assert parse_axis(" , ") == ()
    assert render_axis(("DE", "EEA")) == "DE,EEA"


def test_a_bloc_may_not_hide_a_country() -> None:
    with pytest.raises(AssertionError, match="name of a country"):
        Blocs(countries=frozenset(("DE",)), members={"DE": frozenset()})
