"""Residency rules on single countries, and the problems of an axis."""

from dataclasses import replace

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
from isochrone.core.residency.terms import Axis, brief_axis, check_together, name_key
from isochrone.core.world.site import Site
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


def test_a_denial_by_a_long_list_says_the_beginning_of_it() -> None:
    fits = ("AA", *(f"B{letter}" for letter in "ABCDEFGHIJKLMNOPQRS"))
    assert brief_axis(fits) == ",".join(fits)
    assert brief_axis((*fits, "ZZ")) == ",".join(fits) + ",... (21 in all)"
    assert brief_axis(("operator:" + "x" * 60, "DE")) == "... (2 in all)"
    verdict = admits((*fits, "ZZ"), a_site("s", "AU"), some_blocs())
    assert isinstance(verdict, Denied)
    assert verdict.detail == f"the site is in AU, the policy allows {brief_axis((*fits, 'ZZ'))}"


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ((), ["empty"]),
        (("any", "DE"), ["'any' stands alone"]),
        (("DE", "DE"), ["listed twice"]),
        (("EUU",), ["'EUU'", "did you mean 'EU'"]),
        (("QQ", "zz"), ["'QQ'", "'zz'"]),
        (("DE", "-DE"), ["no country is left"]),
        (("DE", "FR", "-EU"), ["no country is left"]),
        (("DE", "operator:acme", "-operator:acme"), ["no operator is left"]),
        (("site:lyon", "-site:lyon"), ["no site is left"]),
    ],
)
def test_problems_of_an_axis_are_all_listed(axis: tuple[str, ...], words: list[str]) -> None:
    problems = check_axis(axis, some_blocs())
    assert len(problems) == max(1, len(words) if axis and axis[0] == "QQ" else 1)
    for word in words:
        assert any(word in problem for problem in problems)


def test_a_usable_axis_has_no_problems() -> None:
    nowhere_yet = ("DE", "-FR", "operator:nobody-yet", "-site:lyon")
    for axis in (("any",), ("DE",), ("EEA", "US"), ("NA",), ("EU", "-DE"), nowhere_yet):
        assert check_axis(axis, some_blocs()) == []


def test_who_denies_every_country_there_is_allows_none() -> None:
    blocs = some_blocs()
    everywhere = tuple(f"-{country}" for country in sorted(blocs.countries))
    assert check_axis(("any", *everywhere[1:]), blocs) == []
    (problem,) = check_axis(("any", *everywhere), blocs)
    assert problem.startswith("no country is left")


def test_caches_and_residency_have_to_leave_a_site_together() -> None:
    blocs = some_blocs()
    usable: list[Axis | None] = [None, ("any",), ("DE", "FR"), ("operator:acme",)]
    for caches in usable:
        assert check_together(("DE", "US"), caches, blocs) == []
    contradicting: list[Axis] = [("FR",), ("any", "-DE", "-US")]
    for caches in contradicting:
        (problem,) = check_together(("DE", "US"), caches, blocs)
        assert problem.startswith("residency and caches: no country is left")


def test_an_axis_is_parsed_from_what_people_type() -> None:
    assert parse_axis("de, EEA") == ("DE", "EEA")
    assert parse_axis("ANY") == ("any",)
    assert parse_axis(" , ") == ()
    assert render_axis(("DE", "EEA")) == "DE,EEA"


def test_a_bloc_may_not_hide_a_country() -> None:
    with pytest.raises(AssertionError, match="name of a country"):
        Blocs(countries=frozenset(("DE",)), members={"DE": frozenset()})


ACME = replace(a_site("lyon", "FR"), operator="Acme, Inc.", parent="Big Corp.")
ALONE = replace(a_site("lyon", "FR"), operator=None)


@pytest.mark.parametrize(
    ("axis", "site", "rule", "detail"),
    [
        ("EEA,operator:acme-inc", ACME, None, ""),
        ("EEA,operator:ACME INC", ACME, None, ""),
        ("site:lyon", ACME, None, ""),
        ("any,-parent:other", ACME, None, ""),
        ("EEA,-FR", ACME, "residency", "the site is in FR"),
        ("EEA,-parent:big corp", ACME, "residency", "belongs to Big Corp."),
        ("EEA,operator:other", ACME, "residency", "is run by Acme, Inc."),
        ("EEA,site:paris", ACME, "residency", "the site is lyon"),
        ("-US", ACME, "residency", "the policy allows -US"),
        ("any,-QQ", ACME, "residency", "nobody understands -QQ"),
        ("any,-planet:earth", ACME, "residency", "nobody understands -planet:earth"),
        ("planet:earth", ACME, "residency", ""),
        ("any,-operator:acme", ALONE, "attribute_missing", "the site states no operator"),
        ("FR,-parent:big", ALONE, "attribute_missing", "the site states no parent"),
        ("operator:acme", ALONE, "attribute_missing", "the site states no operator"),
    ],
)
def test_terms_of_every_kind(axis: str, site: Site, rule: str | None, detail: str) -> None:
    verdict = admits(parse_axis(axis), site, some_blocs())
    if rule is None:
        assert verdict == Admitted()
    else:
        assert isinstance(verdict, Denied)
        assert verdict.rule == rule
        assert detail in verdict.detail


def test_names_of_companies_are_compared_by_letters_and_digits() -> None:
    same = {name_key(name) for name in ("Acme, Inc.", "ACME INC", "acme-inc", " acme   inc")}
    assert same == {"acme-inc"}
    assert name_key("Stra\u00dfe \uff21") == "strasse-a"
    assert name_key(" .,- ") == ""
    assert parse_axis("Operator: Acme GmbH ,-PARENT:X y,VIA:de,SITE:Lyon,Any,-fr") == (
        "operator:acme-gmbh", "-parent:x-y", "via:DE", "site:lyon", "any", "-FR",
    )
