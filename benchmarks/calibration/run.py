"""Records live runs of the local cloud, fits the twin's engine to one of them, and judges the twin
by the others.

Run from the project's folder: python -m benchmarks.calibration.run record | fit | judge | all
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.calibration.mixes import MIXES
from benchmarks.calibration.record import record
from benchmarks.calibration.recorded import HERE, fitted, fitted_file, judged, read, takes_of
from benchmarks.gateway.machine import ROOT, commit

from isochrone.twin.calibration.fit import fit
from isochrone.twin.calibration.judge import TARGETS, Compared

FIT_ON = "conversations"
TAKES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("record", "fit", "judge", "all"))
    parser.add_argument("--folder", type=Path, default=HERE / "recordings")
    parser.add_argument("--takes", default=",".join(str(each + 1) for each in range(TAKES)))
    parser.add_argument("--mixes", default=",".join(mix.name for mix in MIXES))
    parser.add_argument("--within", type=float, default=600.0, help="seconds to try to record")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a cloud that was started is stopped
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.command in ("record", "all"):
        wanted = [mix for mix in MIXES if mix.name in options.mixes.split(",")]
        takes = [int(take) for take in options.takes.split(",")]
        if not record(wanted, options.folder, takes=takes, within_s=options.within):
            print("some runs were disturbed by others, and are not recorded")
    if options.command in ("fit", "all"):
        write_fit(options.folder)
    if options.command in ("judge", "all"):
        missed = say(options.folder)
        sys.exit(1 if missed else 0)


def write_fit(folder: Path) -> None:
    """Fit to the first take of `FIT_ON`, and keep what was found."""
    recording = read(takes_of(folder, FIT_ON)[0])
    found, left = fit(recording)
    fitted_file(folder).write_text(json.dumps({
        "fitted": {name: float(f"{getattr(found, name):.4g}") for name in found.__slots__},
        "error_left": round(left, 4),
        "recording": takes_of(folder, FIT_ON)[0].name, **commit(ROOT),
    }, indent=1) + "\n", encoding="utf-8")
    print(fitted_file(folder).read_text(encoding="utf-8"))


def say(folder: Path) -> list[str]:
    """Print a table; the targets that are missed, of mixes that were not fitted to."""
    missed = []
    print("mix | measure | live (takes) | twin | error | spread of the takes | asked")
    for mix, compared in judged(folder, fitted(folder)).items():
        for one in compared:
            print(_line(mix, one))
            if mix != FIT_ON and not one.is_met:
                missed.append(f"{mix}: {one.measure}")
    print(f"missed: {', '.join(missed) or 'none'}")
    return missed


def _line(mix: str, one: Compared) -> str:
    asked = TARGETS.get(one.measure)
    return " | ".join((
        mix, one.measure, _values(one.live), _values(one.twin), f"{one.error:+.1%}",
        f"{one.spread:.1%}", "" if asked is None else f"{asked:.0%}",
    ))


def _values(values: Sequence[float]) -> str:
    return " ".join(f"{value:.0f}" if value >= 10.0 else f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
