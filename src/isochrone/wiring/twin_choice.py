"""What somebody chose to play: a scenario by file or name, and what replaces parts of it."""

import gzip
import io
import zlib
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from isochrone.adapters.packaged import DATA
from isochrone.core.errors import InvalidInput
from isochrone.twin.scenario import Scenario, WorkloadKind
from isochrone.wiring.twin_files import MOST_PLAN_BYTES, at_home, bytes_of, shown
from isochrone.wiring.twin_scenario import FILES_OF_KIND, MOST_LOAD, parse_scenario
from isochrone.wiring.twin_traffic import SAMPLES

SCENARIOS = DATA / "scenarios"
LEAST_LOAD = 0.001
PARQUET = "PAR1"
LOOKED_AT = 65_536  # characters of a trace's first line
MOST_BLANK = 1000   # lines before it
# What the first line of each kind's (first) file has.
MARKS: tuple[tuple[WorkloadKind, tuple[str, ...]], ...] = (
    ("recorded", ('"hash_ids"', '"timestamp"')),
    ("recorded", ("t_s", "context_tokens", "generated_tokens")),
    ("coding", ('"block_size"', '"requests"')),
    ("servegen", ("client", "window_s", "rate_rps")),
    ("azure-2024", ("t_s", "inv_per_min")),
    ("azure-2024", ("t_s", "tokens_per_s_plotted")),
    ("lengths", ("num_prefill_tokens", "num_decode_tokens")),
)
# The same of the second files, lengths alone.
LENGTHS: tuple[tuple[WorkloadKind, tuple[str, ...]], ...] = (
    ("servegen", ("field", "bin_lo", "requests")),
    ("servegen", (PARQUET,)),
    ("azure-2024", ("field", "percentile", "tokens")),
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
    traffic = None
    try:
        traffic = _traffic_of(changes.trace) if changes.trace else None
    except InvalidInput as error:
        problems += error.problems
    for option, file in (("--rtt", changes.rtt), ("--sites", changes.sites)):
        if file is not None and not at_home(file).is_file():
            problems.append(f"{option} {file}: there is no such file")
    if problems or scenario is None:
        raise InvalidInput(problems)
    workload = scenario.workload
    if traffic is not None:
        workload = replace(
            workload, kind=traffic[0], files=traffic[1], name=_stem(changes.trace[0]),
            part=(0.0, 1.0),
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
    path = at_home(wanted)
    if not path.exists():
        if wanted not in packaged_scenarios():
            raise InvalidInput([
                f"there is no scenario file {wanted}, and no packaged scenario of this name; "
                f"packaged: {', '.join(packaged_scenarios())}"
            ])
        path = SCENARIOS / f"{wanted}.toml"
    try:
        text = bytes_of(path, most=MOST_PLAN_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput([f"{path}: is no text ({error.reason})"]) from error
    return parse_scenario(text, source=wanted)


def _traffic_of(files: tuple[str, ...]) -> tuple[WorkloadKind, tuple[str, ...]]:
    """The kind, told by the first lines, and the files that it is read from, in their order:
    packaged ones stand for what is not there. Raises InvalidInput with all problems."""
    problems: list[str] = []
    mains: list[tuple[WorkloadKind, str]] = []
    lengths: list[tuple[WorkloadKind, str]] = []
    for file in files:
        try:
            first = _first_line(file)
        except InvalidInput as error:
            problems += error.problems
            continue
        main, other = _marked(first, MARKS), _marked(first, LENGTHS)
        if main is not None:
            mains.append((main, file))
        elif other is not None:
            lengths.append((other, file))
        else:
            problems.append(
                f"--trace {file}: no known traffic; expected requests of Azure 2023 (CSV) or "
                "Mooncake (JSON lines), coding sessions (JSON lines), rates of ServeGen, Azure "
                "2024 or M365 (CSV), or lengths of ServeGen (CSV, Parquet), Azure 2024 or Vidur "
                "(CSV)"
            )
    known = mains or lengths
    kind = known[0][0] if known else None
    if kind is not None:
        most = FILES_OF_KIND[kind]
        if len(mains) > 1 or len(lengths) > 1 or (lengths and most < 2):
            problems.append(
                f"--trace is there {len(files)} times; {files[0]} is of kind {kind}, which is "
                f"read from {most}" + (", rates and lengths" if most == 2 else "")
            )
    if problems or kind is None:
        raise InvalidInput(problems)
    if FILES_OF_KIND[kind] < 2:
        return kind, (mains[0][1],)
    rates, tokens = (str(DATA / "workloads" / each) for each in SAMPLES[kind])
    return kind, (mains[0][1] if mains else rates, lengths[0][1] if lengths else tokens)


def _marked(
    first: str, marks: tuple[tuple[WorkloadKind, tuple[str, ...]], ...]
) -> WorkloadKind | None:
    return next((kind for kind, parts in marks if all(part in first for part in parts)), None)


def _first_line(file: str) -> str:
    try:
        with at_home(file).open("rb") as opened:
            zipped = opened.read(2) == b"\x1f\x8b"
            opened.seek(0)
            if opened.read(4) == PARQUET.encode():
                return PARQUET
            opened.seek(0)
            plain = gzip.GzipFile(fileobj=opened) if zipped else opened
            with io.TextIOWrapper(plain, encoding="utf-8-sig") as text:
                lines = islice(iter(partial(text.readline, LOOKED_AT), ""), MOST_BLANK)
                return next((line for line in lines if line.strip()), "")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput([f"--trace {file}: is damaged gzip ({error})"]) from error
    except UnicodeDecodeError as error:
        raise InvalidInput([f"--trace {file}: is no text ({error.reason})"]) from error
    except OSError as error:
        raise InvalidInput([
            f"--trace {file}: cannot be read: {error.strerror or error}"
        ]) from error


def _stem(file: str) -> str:
    return shown(Path(file).name.partition(".")[0])
