"""Reads where a scenario's sites are and how far apart: tables of sites and of round trips."""

from math import inf

from isochrone.adapters.packaged import DATA, load_blocs, load_region_positions, load_spread
from isochrone.core.errors import InvalidInput
from isochrone.twin.table import table_of
from isochrone.twin.world.round_trips import Measured, Spread, measured_of, spread_of
from isochrone.twin.world.sites_table import PlacedSite, parse_sites
from isochrone.wiring.twin_files import bytes_of, path_of, text_of

RTT_COLUMNS = ("rtt_p95_ms", "rtt_avg_ms", "rtt_p50_ms", "rtt_ms")
DISTANCE_COLUMNS = ("km_mean", "p10", "p50", "p90", "p99")
MOST_TOLD = 20
MOST_MS = 10_000.0      # of a round trip
FARTHEST_KM = 20_100.0  # two places on Earth


def sites_of(file: str | None) -> tuple[PlacedSite, ...]:
    """Raises InvalidInput with all problems."""
    path = path_of(file) if file else DATA / "sites" / "fleet_1100.csv"
    return parse_sites(text_of(path), str(path))


def entries_of(file: str) -> dict[str, float]:
    """Requests by country: CSV with country_iso2 and sampled_requests, or, as M365's, region and
    sampled_requests, of env prod where there is one. Raises InvalidInput with all problems."""
    path = path_of(file)
    reader = table_of(text_of(path))
    columns = reader.fieldnames or ()
    key = next((each for each in ("country_iso2", "region") if each in columns), None)
    if key is None or "sampled_requests" not in columns:
        raise InvalidInput([
            f"{path}: no table of entries; expected the columns country_iso2 or region, and "
            "sampled_requests"
        ])
    found: dict[str, float] = {}
    problems: list[str] = []
    countries = (
        entry_countries() if key == "region" else {each: each for each in load_blocs().countries}
    )
    for row in reader:
        place = row[key] or ""
        country = countries.get(place)
        try:
            requests = float(row["sampled_requests"] or "")
        except ValueError:
            requests = -1.0
        if country is None or not 0.0 <= requests < inf:
            problems.append(
                f"{path}, line {reader.line_num}: {place}, {row['sampled_requests']}; expected a "
                "known place and a count from 0"
            )
        elif row.get("env", "prod") == "prod":
            found[country] = found.get(country, 0.0) + requests
    if problems or not sum(found.values()):
        raise InvalidInput(problems[:MOST_TOLD] or [f"{path}: has no requests"])
    return found


def entry_countries() -> dict[str, str]:
    """The country of each of Azure's regions by the name that its interfaces have."""
    return {
        row["region"].replace(" ", "").lower(): row["country_iso2"]
        for row in table_of(text_of(DATA / "network" / "cloud_regions.csv"))
    }


def ways_of(file: str | None) -> tuple[Measured, Spread]:
    """Measured pairs of regions with the packaged round trips by distance, or, from a table of
    those, by distance alone. Raises InvalidInput with all problems."""
    path = path_of(file) if file else DATA / "network" / "azure_region_rtt.csv"
    if bytes_of(path).startswith(b"PAR1"):
        raise InvalidInput([
            f"{path}: is Parquet; round trips are CSV with src, dst and one of "
            f"{', '.join(RTT_COLUMNS)} between regions whose positions are known, or by distance "
            f"with {', '.join(DISTANCE_COLUMNS)}"
        ])
    text = text_of(path)
    columns = table_of(text).fieldnames or ()
    if all(name in columns for name in DISTANCE_COLUMNS):
        return measured_of({}, {}), _by_distance(text, str(path))
    positions = load_region_positions()
    pairs = parse_round_trips(text, str(path))
    unknown = sorted({name for pair in pairs for name in pair if name not in positions})
    if not any(one in positions and other in positions for one, other in pairs):
        raise InvalidInput([
            f"{path}: has no round trip between two regions of known position"
            + (f"; unknown are {', '.join(unknown[:3])}" if unknown else "")
        ])
    usual = load_spread()
    return measured_of(pairs, positions), spread_of(
        [each[0] for each in usual], [each[1] for each in usual]
    )


def parse_round_trips(text: str, source: str) -> dict[tuple[str, str], float]:
    """CSV with src, dst and one of `RTT_COLUMNS`. Raises InvalidInput with all problems."""
    reader = table_of(text)
    columns = reader.fieldnames or ()
    column = next((each for each in RTT_COLUMNS if each in columns), None)
    if column is None or "src" not in columns or "dst" not in columns:
        raise InvalidInput([
            f"{source}: no table of round trips; expected the columns src, dst and one of "
            + ", ".join(RTT_COLUMNS)
        ])
    found: dict[tuple[str, str], float] = {}
    problems: list[str] = []
    for row in reader:
        try:
            rtt_ms = float(row[column])
        except (TypeError, ValueError):
            rtt_ms = -1.0
        if not 0.0 <= rtt_ms < MOST_MS:
            problems.append(
                f"{source}, line {reader.line_num}: {column} is {row[column]!r}; expected "
                f"milliseconds from 0 to {MOST_MS:g}"
            )
        elif not row["src"] or not row["dst"]:
            problems.append(f"{source}, line {reader.line_num}: src or dst is blank")
        else:
            found[row["src"], row["dst"]] = rtt_ms
    if problems:
        raise InvalidInput(problems[:MOST_TOLD])
    return found


def _by_distance(text: str, source: str) -> Spread:
    rows: list[tuple[float, ...]] = []
    problems: list[str] = []
    reader = table_of(text)
    for row in reader:
        try:
            values = tuple(float(row[name] or "") for name in DISTANCE_COLUMNS)
        except ValueError as error:
            problems.append(f"{source}, line {reader.line_num}: {error}")
            continue
        if not all(0.0 <= each < MOST_MS for each in values[1:]) or not (
            0.0 <= values[0] <= FARTHEST_KM
        ):
            problems.append(
                f"{source}, line {reader.line_num}: expected km from 0 to {FARTHEST_KM:g} and "
                f"milliseconds from 0 to {MOST_MS:g}"
            )
            continue
        rows.append(values)
    rows.sort()
    if problems or len(rows) < 2 or not rows[-1][0]:
        raise InvalidInput(
            problems[:MOST_TOLD] or [f"{source}: has no two rows, one of them above 0 km"]
        )
    return spread_of([row[0] for row in rows], [row[1:] for row in rows])
