"""Measures the CPU time that limits over sites take on a request's path. See README.

Run from the project's folder: python -m benchmarks.limits.run
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gateway.machine import ROOT, commit, facts

from isochrone.wiring.compiled import use_compiled

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="for each case")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    asked = parser.parse_args()
    form = "compiled" if use_compiled() else "interpreted"
    from benchmarks.limits.measure import measure_all

    from tests.fixtures.gateways import GatewayCloud, run

    result: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), **commit(ROOT), "form": form,
        "machine": facts(),
    }

    async def play(cloud: GatewayCloud) -> None:
        async for name, found in measure_all(cloud, asked.requests):
            result[name] = {what: round(us, 2) for what, us in found.items()}
            print(f"{form} {name:<34}", *(f"{what} {us:.2f}" for what, us in found.items()))

    run(play)
    if not asked.dry:
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
