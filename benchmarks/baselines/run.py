"""Tunes every baseline on the scenarios of this folder; see README.md."""

import argparse
import json
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from math import exp, inf, isfinite, log
from pathlib import Path
from typing import Any

import numpy as np

from isochrone.adapters.packaged import DATA
from isochrone.core.rng import stream
from isochrone.twin.baselines.campus import best_campus, campus_of
from isochrone.twin.baselines.catalogue import EVERY, Baseline
from isochrone.twin.baselines.tune import tune
from isochrone.twin.fast.plan import Plan
from isochrone.twin.fast.simulation import Simulation
from isochrone.wiring.twin_comparison import Ground, ground_of
from isochrone.wiring.twin_scenario import parse_scenario

HERE = Path(__file__).parent
RECORD = DATA / "baselines.json"
DOCUMENT = HERE.parent.parent / "docs" / "baselines.md"


def main() -> None:
    """All baselines for each nature of traffic; with --write into the file that the twin uses."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("scenarios", nargs="*", type=Path, default=sorted(HERE.glob("*.toml")))
    arguments.add_argument("--only", choices=[each.name for each in EVERY])
    arguments.add_argument("--requests", type=int, default=2_000, help="of each window")
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--write", action="store_true", help=f"write {RECORD}")
    given = arguments.parse_args()
    natures: dict[str, list[Path]] = {}
    for path in given.scenarios:
        natures.setdefault(_ground(path, given.requests).world.nature, []).append(path)
    work = [
        (nature, paths, each.name, given.requests) for nature, paths in natures.items()
        for each in EVERY if given.only in (None, each.name)
    ]
    found = _kept(natures)
    played = {nature: _played_at(given.requests) for nature, *_ in work}
    with ProcessPoolExecutor(given.jobs) as pool:
        for nature, name, result in pool.map(_tuned, work):
            print(nature, name, result["best"], result["ttft_ms_p99"], flush=True)
            found[nature][name] = result
            if given.write:
                _write(natures, found, played)


def _played_at(requests: int) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {"commit": commit, "at": datetime.now(UTC).date().isoformat(), "requests": requests}


def _write(
    natures: dict[str, list[Path]], found: dict[str, dict[str, Any]],
    played: dict[str, dict[str, Any]],
) -> None:
    """`played`: when and how those natures were that are not kept from before."""
    before = json.loads(RECORD.read_text(encoding="utf-8"))["found"]
    kept = {
        each["nature"]: {key: each[key] for key in ("commit", "at", "requests")} for each in before
    }
    record = {
        "cost": "geometric mean of the p99 of the time to the first token over the windows",
        "found": [
            {"nature": nature, **(played.get(nature) or kept[nature]),
             "windows": [path.name for path in natures[nature]], "baselines": baselines}
            for nature, baselines in found.items()
        ],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _document(record)


def _document(record: dict[str, Any]) -> None:
    """The table of docs/baselines.md."""
    lines = [
        *[
            f"- {each['nature']}: tuned at commit {each['commit']}, {each['requests']:,} requests "
            "of each window" for each in record["found"]
        ],
        "", "| traffic | baseline | best parameters | p99 ms | default's | tried |",
        "|---|---|---|---|---|---|",
    ]
    for each in record["found"]:
        for name, found in each["baselines"].items():
            best = ", ".join(
                f"`{key}` {value:.4g}" if isinstance(value, float) else f"`{key}` {value}"
                for key, value in found["best"].items()
            )
            lines.append(
                f"| {each['nature']} | `{name}` | {best or '-'} | {_shown(found['ttft_ms_p99'])} | "
                f"{_shown(found['default_ttft_ms_p99'])} | {found['tried']} |"
            )
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- parameters -->\n", "<!-- end of parameters -->"
    before, _, rest = text.partition(begin)
    DOCUMENT.write_text(
        before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2], encoding="utf-8"
    )


def _shown(cost: float | None) -> str:
    return "never" if cost is None else f"{cost:,.0f}"


def _kept(natures: dict[str, list[Path]]) -> dict[str, dict[str, Any]]:
    """What was found before, so that baselines can be tuned one by one."""
    before = json.loads(RECORD.read_text(encoding="utf-8"))["found"]
    found = {each["nature"]: dict(each["baselines"]) for each in before}
    for each in before:
        natures.setdefault(each["nature"], [HERE / name for name in each["windows"]])
    return {nature: found.get(nature, {}) for nature in natures}


def _tuned(work: tuple[str, Sequence[Path], str, int]) -> tuple[str, str, dict[str, Any]]:
    """The best parameters of one baseline for one nature of traffic, and all that was tried."""
    nature, paths, name, requests = work
    baseline = next(each for each in EVERY if each.name == name)
    found = tune(baseline, _cost(paths, requests, baseline), stream(1, f"tune.{name}"))
    ways = sorted(found.tried, key=lambda each: each[1])
    return nature, name, {
        "best": asdict(found.best), "ttft_ms_p99": _finite(found.cost),
        "default_ttft_ms_p99": _finite(
            next(cost for each, cost in found.tried if each == baseline.default)
        ),
        "tried": len(found.tried),
        "next_best": [[asdict(each), _finite(cost)] for each, cost in ways[1:3]],
    }


def _finite(cost: float) -> float | None:
    return round(cost, 1) if isfinite(cost) else None


def _cost(paths: Sequence[Path], requests: int, baseline: Baseline[Any]) -> Callable[[Any], float]:
    def cost(parameters: Any) -> float:
        total = 0.0
        for path in paths:
            ground = _ground(path, requests)
            fleet = ground.world.fleet
            if baseline.campus:
                fleet = campus_of(fleet, best_campus(fleet, np.array(ground.world.share)))
            plan = Plan(seed=1, warm_s=ground.warm_s)
            p99 = Simulation(fleet, baseline.make(parameters), plan).run(
                ground.arrivals()
            ).ttft_ms_p99
            total += log(p99) if p99 is not None else inf
        return exp(total / len(paths))

    return cost


@lru_cache(maxsize=4)
def _ground(path: Path, requests: int) -> Ground:
    scenario = parse_scenario(path.read_text(encoding="utf-8"), source=str(path))
    return ground_of(scenario, requests)


if __name__ == "__main__":
    main()
