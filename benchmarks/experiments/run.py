"""Plays the packaged experiments, refreshes docs/experiments.md, and writes one report of all."""

import argparse
import os
import re
from pathlib import Path

import msgspec

from isochrone.adapters.parquet.tables import write_parquet
from isochrone.twin.experiments.experiment import Results
from isochrone.twin.report.words import markdown_of
from isochrone.wiring.twin_experiment import (
    content_of,
    packaged_experiments,
    play_experiment,
    read_experiment,
)
from isochrone.wiring.twin_report import commit, write_page, write_text

HERE = Path(__file__).parent
KEPT = HERE / "out"  # what was played last, not in version control
DOCUMENT = HERE.parent.parent / "docs" / "experiments.md"
ORDER = ("policies", "campus", "losses", "residency", "entitlements", "pooling")


def main() -> None:
    """One experiment after the other; what is not named keeps its section."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("experiments", nargs="*", default=list(ORDER))
    arguments.add_argument("--requests", type=int, help="at each point, instead of its own")
    arguments.add_argument("--full", action="store_true", help="as many as its evidence takes")
    arguments.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments.add_argument(
        "--words", action="store_true", help="play nothing: write anew what was played last"
    )
    given = arguments.parse_args()
    KEPT.mkdir(exist_ok=True)
    for name in given.experiments:
        if given.words:
            results = msgspec.json.decode((KEPT / f"{name}.json").read_bytes(), type=Results)
        else:
            results = _played(name, given.requests, given.full, given.jobs)
        (KEPT / f"{name}.json").write_bytes(msgspec.json.encode(results))
        write_parquet(KEPT / f"{name}.parquet", [each.record() for each in results.outcomes])
        _refresh(name, markdown_of(results))
        print(f"{name}: {len(results.outcomes)} outcomes", flush=True)
    every = [
        msgspec.json.decode((KEPT / f"{name}.json").read_bytes(), type=Results)
        for name in (*ORDER, *packaged_experiments())
        if (KEPT / f"{name}.json").is_file()
    ]
    once = list({each.name: each for each in every}.values())
    write_page(once, KEPT / "report.html")
    print(f"written to {DOCUMENT} and {KEPT / 'report.html'}")


def _played(name: str, requests: int | None, full: bool, jobs: int) -> Results:
    read = read_experiment(content_of(name), source=name, change=lambda each: each)
    count = requests or (read.full_requests if full else None) or read.requests
    own = " --full" if count == read.full_requests else (
        "" if count == read.requests else f" --requests {count}"
    )
    return play_experiment(
        read, requests=count, jobs=jobs, cluster=None, commit=commit(), on_played=lambda _: None,
        command=f"isochrone twin report {name}{own}",
    )


def _refresh(name: str, section: str) -> None:
    """Put the section between its two marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    made = f"{begin}\n{section}\n{end}"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    if re.search(pattern, text, re.DOTALL):
        text = re.sub(pattern, lambda _: made, text, flags=re.DOTALL)
    else:
        text = text.rstrip() + f"\n\n{made}\n"
    write_text(DOCUMENT, text)


if __name__ == "__main__":
    main()
