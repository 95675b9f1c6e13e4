"""Reads files of client subnets and their places: our CSV, or a geofeed (RFC 8805).

A file whose first line names the column `network` is ours: `network,latitude,longitude,country` in
any order, `site` besides, of which each line fills what it knows; every fault is a problem. Any
other is a geofeed: `network,country,region,city,postal code`, of which network and country are
used. Geofeeds are other people's, so lines that cannot be used are skipped and counted.
"""

import csv
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import chain
from pathlib import Path

from isochrone.core.errors import InvalidInput
from isochrone.core.estimate.round_trip import Position
from isochrone.core.ids import SiteName
from isochrone.core.steering.place import AtSite, Place, Subnet

COLUMNS = ("network", "latitude", "longitude", "country", "site")
MOST_PROBLEMS = 20

Entry = tuple[Subnet, Place]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What places may refer to: the centre of each country, and sites (None: not known here)."""

    centres: Mapping[str, Position]
    sites: Collection[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetFile:
    """What a file says; `skipped` lines of a geofeed could not be used."""

    entries: tuple[Entry, ...]
    skipped: int


def parse_subnet(text: str) -> Subnet:
    """A subnet as `203.0.113.0/24` or `2001:db8::/32`; raises ValueError with what is wrong."""
    network = ip_network(text.strip())
    return Subnet(
        family=4 if network.version == 4 else 6, bits=int(network.network_address),
        length=network.prefixlen,
    )


def load_subnets(path: Path, known: Known) -> SubnetFile:
    """Read one file. Raises InvalidInput with the problems found, by line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return _parse(lines, known, str(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no CSV text: {error}"
        raise InvalidInput([f"{path}: cannot be read: {reason}"]) from error


def _parse(lines: Iterable[str], known: Known, source: str) -> SubnetFile:
    rest = enumerate(lines, start=1)
    number, first = next(((at, line) for at, line in rest if line.strip()), (1, ""))
    cells = next(csv.reader([first]), [])
    names = [name.strip().lower() for name in cells]
    behind = (line for _, line in rest)
    if "network" in names:
        return _own(csv.reader(behind), names, number, known, source)
    return _geofeed(csv.reader(chain([first], behind)), known)


def _own(
    rows: Iterable[list[str]], names: list[str], head_line: int, known: Known, source: str
) -> SubnetFile:
    problems = [
        f"{source}: line {head_line}: unknown column {name!r}; known columns: {', '.join(COLUMNS)}"
        for name in names if name not in COLUMNS
    ]
    entries: list[Entry] = []
    for number, cells in enumerate(rows, start=head_line + 1):
        if not cells or not any(cells):
            continue
        row = {name: cell.strip() for name, cell in zip(names, cells, strict=False)}
        try:
            entries.append((parse_subnet(row.get("network", "")), _place(row, known)))
        except ValueError as error:
            problems.append(f"{source}: line {number}: {error}")
        if len(problems) >= MOST_PROBLEMS:
            problems.append(f"{source}: there may be more; reading stopped here")
            break
    if problems:
        raise InvalidInput(problems)
    return SubnetFile(entries=tuple(entries), skipped=0)


def _geofeed(rows: Iterable[list[str]], known: Known) -> SubnetFile:
    entries: list[Entry] = []
    skipped = 0
    for cells in rows:
        if not cells or cells[0].lstrip().startswith("#") or not any(cells):
            continue
        country = cells[1].strip().upper() if len(cells) > 1 else ""
        if not country:
            continue  # its publisher wants it to be nowhere in particular
        try:
            entries.append((parse_subnet(cells[0]), country_place(country, known)))
        except ValueError:
            skipped += 1
    return SubnetFile(entries=tuple(entries), skipped=skipped)


def _place(row: Mapping[str, str], known: Known) -> Place:
    """The place of a line: a site before coordinates before a country. Raises ValueError."""
    site, country = row.get("site", ""), row.get("country", "")
    latitude, longitude = row.get("latitude", ""), row.get("longitude", "")
    if site:
        return site_place(site, known)
    if latitude or longitude:
        return position(latitude, longitude)
    if country:
        return country_place(country, known)
    raise ValueError("no place: expected latitude and longitude, a country, or a site")


def position(latitude: str, longitude: str) -> Position:
    """Coordinates in degrees. Raises ValueError."""
    try:
        found = Position(latitude_deg=float(latitude), longitude_deg=float(longitude))
    except ValueError:
        raise ValueError(f"{latitude!r}, {longitude!r} are no coordinates in degrees") from None
    if not -90 <= found.latitude_deg <= 90 or not -180 <= found.longitude_deg <= 180:
        raise ValueError(f"{latitude}, {longitude} is no place on this planet")
    return found


def country_place(country: str, known: Known) -> Position:
    """Where the people of a country live on average. Raises ValueError."""
    centre = known.centres.get(country)
    if centre is None:
        raise ValueError(f"{country!r} is no ISO 3166-1 alpha-2 code of a country with people")
    return centre


def site_place(site: str, known: Known) -> AtSite:
    """At a site. Raises ValueError for one that is known not to be."""
    if known.sites is not None and site not in known.sites:
        raise ValueError(f"site {site!r} is not described")
    return AtSite(site=SiteName(site))
