"""Measures how many requests the fast twin simulates a second of CPU; appends JSON lines.

Run from the project's folder: python -m benchmarks.twin.run
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.gateway.machine import ROOT, commit, facts

from isochrone.adapters.large_pages import from_the_start
from isochrone.wiring.compiled import begin_compiled, compiled_files

HERE = Path(__file__).resolve().parent
FILLING = 100_000  # requests, about 5 s: twice as long as an answer takes
RATE_S = 20_000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="of each kind")
    parser.add_argument("--kind", choices=("new", "conversations"), help="only this kind")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    parser.add_argument("--interpreted", action="store_true", help="take the sources as they are")
    asked = parser.parse_args()
    form = "compiled" if not asked.interpreted and compiled_files() else "interpreted"
    os.environ.update(from_the_start(os.environ))
    result: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), **commit(ROOT), "form": form,
        "machine": facts(),
    }
    for kind in ("new", "conversations") if asked.kind is None else (asked.kind,):
        # In a process of its own, that starts as those of the twin's pool do.
        context = get_context("spawn")
        with (
            ProcessPoolExecutor(1, context, begin_compiled, (os.getpid(),))
            if form == "compiled" else ProcessPoolExecutor(1, context)
        ) as pool:
            found = pool.submit(measure, asked.requests, kind == "conversations").result()
        result[kind] = found
        print(form, kind, *(f"{name} {value}" for name, value in found.items()))
    if not asked.dry:
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


def measure(requests: int, conversations: bool) -> dict[str, Any]:
    """One run from an empty fleet; what fills it and what is drained are not counted."""
    from benchmarks.twin.fleet import arrivals, fleet

    from isochrone.adapters.large_pages import LargePages
    from isochrone.twin.fast.arrivals import Arrivals
    from isochrone.twin.fast.ours import Ours
    from isochrone.twin.fast.plan import Plan
    from isochrone.twin.fast.simulation import run

    marks: list[tuple[int, float]] = []

    def marked() -> Iterator[Arrivals]:
        made = 0
        for chunk in arrivals(requests + FILLING, conversations=conversations):
            if made >= FILLING:
                marks.append((made, time.process_time()))
            yield chunk
            made += len(chunk)

    chunks = LargePages().between(marked())
    found = run(fleet(), chunks, Ours(), Plan(warm_s=FILLING / RATE_S))
    counted = marks[-1][0] - marks[0][0]
    spent_s = marks[-1][1] - marks[0][1]
    return {
        "requests_s": round(counted / spent_s),
        "us_per_request": round(1e6 * spent_s / counted, 1),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "simulated_s": round(found.simulated_s, 1),
        "ttft_ms_p50": _rounded(found.ttft_ms_p50),
        "ttft_ms_p99": _rounded(found.ttft_ms_p99),
        "hit_rate": round(found.hit_rate, 3),
        "busy_share": round(found.busy_share, 3),
        "refused": found.refused,
        "trace": found.trace,
    }


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 1)


if __name__ == "__main__":
    main()
