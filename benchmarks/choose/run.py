"""Measures CPU time and memory of choosing at full size; appends JSON lines. See README.

Run from the project's folder: python -m benchmarks.choose.run
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gateway.machine import ROOT, commit, facts

from isochrone.wiring.compiled import use_compiled

HERE = Path(__file__).resolve().parent
SHORT_BYTES, LONG_BYTES = 300, 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each kind of request")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    asked = parser.parse_args()
    form = "compiled" if use_compiled() else "interpreted"
    from benchmarks.choose.measure import measure, memory_mb

    result: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), **commit(ROOT), "form": form,
        "machine": facts(),
    }
    result["memory_mb"] = {name: round(mb, 1) for name, mb in memory_mb().items()}
    print(form, "memory", *(f"{name} {mb:.1f} MB" for name, mb in result["memory_mb"].items()))
    for requests_s in (1000, 5000):
        for kind, body_bytes in (("short", SHORT_BYTES), ("16 KB", LONG_BYTES)):
            found = measure(body_bytes, requests_s=requests_s, seconds=asked.seconds)
            result[f"{kind}, {requests_s}/s"] = {name: round(us, 2) for name, us in found.items()}
            print(f"{kind:<6}{requests_s}/s", *(f"{name} {us:.2f}" for name, us in found.items()))
    if not asked.dry:
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
