"""The recordings that lie in a folder, what was fitted to one of them, and what the twin says."""

import json
from pathlib import Path

from isochrone.twin.calibration.judge import Compared, compare
from isochrone.twin.calibration.play import Fitted
from isochrone.twin.calibration.recording import Recording, read_recording

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "recordings"


def takes_of(folder: Path, mix: str) -> list[Path]:
    """The recordings of a mix, by take."""
    return sorted(
        path for path in folder.glob("*.jsonl.gz")
        if path.name.removesuffix(".jsonl.gz").rpartition("-")[0] == mix
    )


def read(path: Path) -> Recording:
    return read_recording(path.read_bytes())


def mixes_in(folder: Path) -> list[str]:
    return sorted({
        path.name.removesuffix(".jsonl.gz").rpartition("-")[0]
        for path in folder.glob("*.jsonl.gz")
    })


def fitted_file(folder: Path) -> Path:
    return folder / "fitted.json"


def fitted(folder: Path) -> Fitted:
    """What was fitted to a recording of this folder."""
    return Fitted(**json.loads(fitted_file(folder).read_text(encoding="utf-8"))["fitted"])


def judged(folder: Path, parameters: Fitted) -> dict[str, list[Compared]]:
    """All mixes of the folder, with all their takes."""
    return {
        mix: compare([read(path) for path in takes_of(folder, mix)], parameters)
        for mix in mixes_in(folder)
    }
