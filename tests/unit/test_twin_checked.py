"""All that an experiment names is looked at before anything is played, whatever case names it."""

from dataclasses import replace
from typing import Any

import pytest

from isochrone.core.errors import InvalidInput
from isochrone.twin.experiments.experiment import Cell
from isochrone.wiring.twin_comparison import games, play
from isochrone.wiring.twin_experiment import Experiment, read_experiment, work_of
from isochrone.wiring.twin_world import twin_world

SCENARIO = {
    "length_s": 20.0, "hours": False, "fleet": {"engine_sites": 3, "replicas": 4},
    "workload": {"load": 0.5},
}


def experiment(*cases: dict[str, Any], **scenario: Any) -> Experiment:
    return read_experiment(
        {"experiment": {"policies": ["nearest"]}, "scenario": {**SCENARIO, **scenario},
         "case": list(cases)},
        source="x", change=lambda each: each,
    )


@pytest.mark.parametrize(("case", "told"), [
    ({"policies": ["nearest", "best"]}, "there is no policy best"),
    ({"set": {"workload.part_from": 0.99999}}, "has no two requests at different times"),
    ({"set": {"sites": "gone.csv"}}, "gone.csv: cannot be read"),
    ({"set": {"outage": [{"what": "site", "rank": 9}]}}, "outage 1: rank is 9"),
    ({"set": {"outage": [{"what": "country", "countries": ["IS"]}]}}, "there are no engines in IS"),
    ({"set": {"outage": [{"what": "cable", "countries": ["VA"]}]}}, "no way to engines crosses"),
    ({"set": {"tenant": [{"name": "a", "clients": ["VA"]}]}}, "tenant a: no site is in VA"),
    ({"set": {"fleet.apart_km": 9_000.0}}, "there are no engines in MX"),
])
def test_what_is_wrong_with_any_case_is_told_before_anything_is_played(
    case: dict[str, Any], told: str
) -> None:
    lost = {"outage": [{"what": "country", "countries": ["MX"]}]}
    good = experiment({"name": "first"}, {"name": "second", "set": {"workload.load": 0.6}}, **lost)
    assert len(work_of(good, 10)) == 2
    with pytest.raises(InvalidInput, match=told):
        work_of(experiment({"name": "first"}, {"name": "second", **case}, **lost), 10)


def test_two_cases_have_two_names() -> None:
    with pytest.raises(InvalidInput, match="two cases with this name"):
        experiment({"name": "one"}, {"name": "one"})


def test_clients_where_nobody_asks_are_nobodys() -> None:
    """By the entries of the one public service, nobody in Europe does."""
    tenant = {"name": "german", "clients": ["DE"]}
    with pytest.raises(InvalidInput, match="tenant german: by the entries, nobody asks in DE"):
        twin_world(experiment(
            entries="m365_entry_regions.csv", tenant=[tenant]
        ).settings[0].scenario)
    twin_world(experiment(tenant=[tenant]).settings[0].scenario)


def test_one_value_is_played_once() -> None:
    def varied(*values: Cell) -> None:
        read_experiment(
            {"experiment": {}, "scenario": SCENARIO}, source="x", change=lambda each: each,
            vary={"fleet.replicas": values},
        )

    varied(8, 16)
    with pytest.raises(InvalidInput, match=r"vary fleet\.replicas: 8 is there twice"):
        varied(8, 16, 8)
    twice = {"key": "workload.load", "values": [0.5, 0.5]}
    with pytest.raises(InvalidInput, match=r"vary workload\.load: 0\.5 is there twice"):
        read_experiment(
            {"experiment": {}, "scenario": SCENARIO, "vary": [twice]}, source="x",
            change=lambda each: each,
        )


def test_a_fleet_that_has_nothing_to_lose_is_no_answer() -> None:
    """How many GPUs keep the objective while the third site is lost: not two sites, which have no
    third."""
    [lost] = games(
        experiment(outage=[{"what": "site", "rank": 3}]).settings[0].scenario, ["nearest"], [0.1],
        50, 0.01,
    )
    assert play(lost).row.gpus_for_slo == 3
    assert play(replace(lost, scenario=replace(lost.scenario, outages=()))).row.gpus_for_slo == 1
