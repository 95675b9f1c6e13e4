"""Scenario files: what is left out is safe, and all problems are told at once."""

import pytest

from isochrone.core.errors import InvalidInput
from isochrone.wiring.twin_scenario import parse_scenario


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as raised:
        parse_scenario(text, source="s.toml")
    return raised.value.problems


def test_two_empty_tables_are_a_scenario() -> None:
    scenario = parse_scenario("[fleet]\n[workload]\n", source="s.toml")
    assert scenario.workload.load == 0.8
    assert scenario.workload.rate_rps is None
    assert scenario.fleet.engine_sites == 60
    assert [tenant.residency for tenant in scenario.tenants] == [("any",)]


def test_every_problem_is_told_with_its_place() -> None:
    told = problems_of("""
        length_s = 10
        warm_s = 10
        sed = 4
        [fleet]
        hardware = "H100-SXM5-80G"
        replicas = 10
        [workload]
        kind = "recordet"
        load = 0.5
        rate_rps = 3
        reserved = 0.7
        batch = 0.7
        files = ["a", "b"]
        [[tenant]]
        name = "acme"
        residency = ["Germny"]
        [[tenant]]
        name = "acme"
        share = -1
    """)
    text = "\n".join(told)
    for part in (
        "warm_s is 10", 'unknown key "sed"; did you mean "seed"?', "H100-SXM5-80G",
        "replicas is 10 for 60 engine_sites", 'did you mean "recorded"?', "rate_rps and load",
        "at most 1 together", "files has 2", "GERMNY", "two tenants with this name", "share is -1",
    ):
        assert part in text, part
    assert all(each.startswith("s.toml: ") for each in told)


def test_what_is_missing_or_no_toml_is_told() -> None:
    assert "there is no [fleet]" in problems_of("[workload]\n")[0]
    assert "not a TOML file" in problems_of("fleet = \n")[0]
    assert "not a table" in problems_of("fleet = 3\n[workload]\n")[0]


def test_known_engines_are_named_for_one_that_is_not() -> None:
    told = problems_of('[fleet]\nmodel = "llama3-8b"\ngpus = 3\n[workload]\n')
    assert len(told) == 1
    assert "llama3-8b on 1 x H100-SXM5-80GB" in told[0]


def test_a_precision_is_chosen_and_where_it_is_not_known_the_known_ones_are_told() -> None:
    scenario = parse_scenario(
        '[fleet]\nhardware = "B200-SXM-180GB"\nmodel = "llama3-70b"\nprecision = "fp4"\n'
        "[workload]\n", source="s.toml",
    )
    assert scenario.fleet.precision == "fp4"
    told = problems_of('[fleet]\nprecision = "fp4"\n[workload]\n')[0]
    assert "nothing is known of llama3-8b on 1 x H100-SXM5-80GB in fp4" in told
    assert "llama3-8b on 1 x H100-SXM5-80GB in bf16 or fp8" in told
    assert "one of bf16, fp8, fp4" in problems_of('[fleet]\nprecision = "int8"\n[workload]\n')[0]
