"""What somebody chose to play: a scenario by file or name, and what replaces parts of it."""

import gzip
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from isochrone.adapters.packaged import DATA
from isochrone.core.errors import InvalidInput
from isochrone.twin.scenario import Scenario, WorkloadKind
from isochrone.wiring.twin_scenario import FILES_OF_KIND, MOST_LOAD, parse_scenario
from isochrone.wiring.twin_world import SAMPLES

SCENARIOS = DATA / "scenarios"
LEAST_LOAD = 0.001
LOOKED_AT = 65_536  # characters of a trace's first line
# What the first line of each kind's (first) file has.
MARKS: tuple[tuple[WorkloadKind, tuple[str, ...]], ...] = (
    ("recorded", ('"hash_ids"', '"timestamp"')),
    ("recorded", ("t_s", "context_tokens", "generated_tokens")),
    ("coding", ('"block_size"', '"requests"')),
    ("servegen", ("client", "window_s", "rate_rps")),
    ("azure-2024", ("t_s", "inv_per_min")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What replaces parts of a scenario; empty or None leaves them. `trace` has a file, or two for
    the kinds that are read from two."""

    trace: tuple[str, ...] = ()
    rtt: str | None = None
    sites: str | None = None
    seed: int | None = None


def chosen_scenario(wanted: str, changes: Changes) -> Scenario:
    """`wanted`: a file, or the name of a packaged scenario. Raises InvalidInput with all problems
    of the scenario and of the changes."""
    problems: list[str] = []
    scenario = None
    try:
        scenario = _scenario(wanted)
    except InvalidInput as error:
        problems += error.problems
    kind = None
    try:
        kind = _kind_of(changes.trace) if changes.trace else None
    except InvalidInput as error:
        problems += error.problems
    for option, file in (("--rtt", changes.rtt), ("--sites", changes.sites)):
        if file is not None and not Path(file).is_file():
            problems.append(f"{option} {file}: there is no such file")
    if problems or scenario is None:
        raise InvalidInput(problems)
    workload = scenario.workload
    if kind is not None:
        workload = replace(
            workload, kind=kind, files=_files(kind, changes.trace), name=_stem(changes.trace[0])
        )
    return replace(
        scenario, workload=workload,
        rtt=changes.rtt if changes.rtt is not None else scenario.rtt,
        sites=changes.sites if changes.sites is not None else scenario.sites,
        seed=changes.seed if changes.seed is not None else scenario.seed,
    )


def chosen_loads(text: str) -> tuple[float, ...]:
    """From `0.4,0.8`; raises InvalidInput with all problems."""
    found: list[float] = []
    problems: list[str] = []
    for part in text.split(","):
        try:
            load = float(part)
        except ValueError:
            load = 0.0
        if not LEAST_LOAD <= load <= MOST_LOAD:
            problems.append(
                f'load "{part.strip()}": expected a number from {LEAST_LOAD:g} to {MOST_LOAD:g}; '
                "1 is what the fleet does with nothing cached"
            )
        elif load in found:
            problems.append(f"load {load:g} is named twice")
        else:
            found.append(load)
    if problems:
        raise InvalidInput(problems)
    return tuple(found)


def packaged_scenarios() -> tuple[str, ...]:
    """Their names."""
    return tuple(sorted(each.stem for each in SCENARIOS.iterdir() if each.suffix == ".toml"))


def _scenario(wanted: str) -> Scenario:
    path = Path(wanted).expanduser()
    if not path.exists():
        if wanted not in packaged_scenarios():
            raise InvalidInput([
                f"there is no scenario file {wanted}, and no packaged scenario of this name; "
                f"packaged: {', '.join(packaged_scenarios())}"
            ])
        path = SCENARIOS / f"{wanted}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidInput([f"{path}: is no text ({error.reason})"]) from error
    return parse_scenario(text, source=wanted)


def _kind_of(files: tuple[str, ...]) -> WorkloadKind:
    """Told apart by the first line of the first file."""
    first = _first_line(files[0])
    for kind, marks in MARKS:
        if all(mark in first for mark in marks):
            if len(files) > FILES_OF_KIND[kind]:
                raise InvalidInput([
                    f"--trace is there {len(files)} times; {files[0]} is of kind {kind}, which is "
                    f"read from {FILES_OF_KIND[kind]}"
                ])
            return kind
    raise InvalidInput([
        f"--trace {files[0]}: no known traffic; expected requests of Azure 2023 (CSV) or Mooncake "
        "(JSON lines), coding sessions (JSON lines), or rates of ServeGen or Azure 2024 (CSV)"
    ])


def _first_line(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            zipped = opened.read(2) == b"\x1f\x8b"
            opened.seek(0)
            plain = gzip.GzipFile(fileobj=opened) if zipped else opened
            with io.TextIOWrapper(plain, encoding="utf-8-sig") as text:
                return text.readline(LOOKED_AT)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput([f"--trace {file}: is damaged gzip ({error})"]) from error
    except UnicodeDecodeError as error:
        raise InvalidInput([f"--trace {file}: is no text ({error.reason})"]) from error
    except OSError as error:
        raise InvalidInput([f"--trace {file}: cannot be read: {error.strerror}"]) from error


def _files(kind: WorkloadKind, given: tuple[str, ...]) -> tuple[str, ...]:
    """With the packaged lengths where only rates are given."""
    if len(given) == FILES_OF_KIND[kind]:
        return given
    return (*given, *(str(DATA / "workloads" / each) for each in SAMPLES[kind][len(given):]))


def _stem(file: str) -> str:
    return Path(file).name.partition(".")[0]
