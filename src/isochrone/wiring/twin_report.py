"""Writes what came out of experiments: Parquet, JSON, one page of HTML, sections of a document."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from isochrone.adapters.disk.whole_file import whole_file
from isochrone.adapters.packaged import DATA
from isochrone.adapters.parquet.tables import write_parquet
from isochrone.core.errors import InvalidInput
from isochrone.core.lifecycle.experiment import ExperimentFinding, ExperimentResults
from isochrone.twin.experiments.experiment import Results
from isochrone.twin.experiments.findings import findings_of
from isochrone.twin.fast.rows import Row
from isochrone.twin.report.page import page_of
from isochrone.twin.report.words import columns_of, rows_of
from isochrone.twin.report.world_map import Ring

WORLD = DATA / "maps" / "world-110m.json"
ATTRIBUTION = (
    "Sites: (c) OpenStreetMap contributors, ODbL 1.0. Metros: GeoNames, CC-BY-4.0.",
    "Traces and round trips: Microsoft Azure, CC-BY-4.0; Mooncake, ServeGen, kv-cache-tester, "
    "Apache-2.0.",
)


def write_page(results: Sequence[Results], path: Path) -> None:
    """One file that needs no other. Raises InvalidInput where it cannot be written."""
    world = json.loads(WORLD.read_text(encoding="utf-8"))
    rings: list[Ring] = [ring for country in world["countries"] for ring in country["rings"]]
    write_text(path, page_of(results, rings, (f"Map: {world['attribution']}.", *ATTRIBUTION)))


def write_table(results: Results, path: Path) -> None:
    """Parquet, a row an outcome. Raises InvalidInput."""
    write_parquet(path, [each.record() for each in results.outcomes])


def write_results(results: Results, path: Path) -> None:
    """JSON: findings and the table of the page (`wire/experiments.py`). Raises InvalidInput."""
    columns = columns_of(results)
    told = ExperimentResults(
        title=results.title, question=results.question, command=results.command,
        commit=results.commit,
        findings=tuple(
            ExperimentFinding(text=each.text, met=each.good) for each in findings_of(results)
        ),
        columns=tuple(column.title for column in columns),
        rows=tuple(tuple(cells) for _, cells in rows_of(results, columns)),
    )
    write_text(path, msgspec.json.encode(told).decode() + "\n")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """JSON, a row a policy and load. Raises InvalidInput."""
    text = json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """All of it or the file as it was. Raises InvalidInput."""
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be written: {error.strerror}"]) from error


def commit() -> str:
    """The commit of the code that runs, with a plus where its files differ; its version where there
    is none."""
    from isochrone import __version__

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=DATA.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return __version__
