"""Tunes every baseline on the scenarios that are named; see README.md."""

import argparse
import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from isochrone.core.rng import stream
from isochrone.twin.baselines.campus import best_campus, campus_of
from isochrone.twin.baselines.catalogue import (
    CAMPUS,
    CONSISTENT_HASH,
    GORGO,
    LEAST_OUTSTANDING,
    LLM_D,
    NEAREST,
    NEAREST_THEN_SPILL,
    ROUND_ROBIN,
    SKYWALKER,
    Baseline,
)
from isochrone.twin.baselines.tune import tune
from isochrone.twin.fast.plan import Plan
from isochrone.twin.fast.simulation import Simulation
from isochrone.wiring.twin_scenario import parse_scenario
from isochrone.wiring.twin_world import twin_world

HERE = Path(__file__).parent
ALL: tuple[Baseline[Any], ...] = (
    NEAREST, ROUND_ROBIN, LEAST_OUTSTANDING, CONSISTENT_HASH, NEAREST_THEN_SPILL, SKYWALKER, GORGO,
    LLM_D, CAMPUS,
)


def main() -> None:
    """One line a baseline and scenario."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("scenarios", nargs="+", type=Path)
    arguments.add_argument("--only", choices=[each.name for each in ALL])
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--dry", action="store_true", help="append nothing")
    given = arguments.parse_args()
    work = [
        (path, each.name) for path in given.scenarios for each in ALL
        if given.only in (None, each.name)
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with ProcessPoolExecutor(given.jobs) as pool:
        for found in pool.map(tuned, *zip(*work, strict=True)):
            print(found["scenario"], found["baseline"], found["best"], found["ttft_ms_p99"])
            if not given.dry:
                line = {"commit": commit, "at": datetime.now(UTC).isoformat(), **found}
                with (HERE / "results.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def tuned(path: Path, name: str) -> dict[str, Any]:
    """The best parameters of one baseline on one scenario, and all that was tried."""
    baseline = next(each for each in ALL if each.name == name)
    found = tune(baseline, _cost(path, baseline), stream(1, f"tune.{name}"))
    return {
        "scenario": path.name, "baseline": name, "best": asdict(found.best),
        "ttft_ms_p99": found.cost if isfinite(found.cost) else None,
        "tried": [
            [asdict(each), cost if isfinite(cost) else None] for each, cost in found.tried
        ],
    }


def _cost(path: Path, baseline: Baseline[Any]) -> Callable[[Any], float]:
    scenario = parse_scenario(path.read_text(encoding="utf-8"), source=str(path))
    world = twin_world(scenario)
    fleet = world.fleet
    if baseline.campus:
        fleet = campus_of(fleet, best_campus(fleet, np.array(world.share)))
    plan = Plan(seed=scenario.seed, warm_s=scenario.warm_s)

    def cost(parameters: Any) -> float:
        run = Simulation(fleet, baseline.make(parameters), plan).run(world.arrivals())
        return inf if run.ttft_ms_p99 is None else run.ttft_ms_p99

    return cost


if __name__ == "__main__":
    main()
