"""Reads a table of sites: CSV with the columns site_id, country_iso2, lat and lon at least.

Used where there are any: `operator`; `metro` and `metro_city_pop`, for demand; `in_1100`, which
marks the sites of a fleet (others are left out). The code of Namibia is the text `NA`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from isochrone.core.errors import InvalidInput
from isochrone.twin.table import table_of

MOST_TOLD = 20
MOST_PEOPLE = 1e9  # of a city
NEEDED = ("site_id", "country_iso2", "lat", "lon")
# As other tables call them: Cloudflare's edge cities.
ALSO = {"colo": "site_id", "cca2": "country_iso2", "city": "metro"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSite:
    """`metro_people` live in the city that `metro` is named for; 0 where the table does not say.
    Sites without a metro are one of their own."""

    name: str
    country: str
    operator: str | None
    latitude_deg: float
    longitude_deg: float
    metro: str
    metro_people: float


def parse_sites(text: str, source: str) -> tuple[PlacedSite, ...]:
    """All sites of the fleet, in the order of the file. Raises InvalidInput with all problems."""
    reader = table_of(text)
    columns = reader.fieldnames or ()
    edge = "site_id" not in columns and "colo" in columns
    if edge:
        columns = reader.fieldnames = [ALSO.get(name, name) for name in columns]
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise InvalidInput(
            [f"{source}: no column {name}; a table of sites has {', '.join(NEEDED)}"
             for name in missing]
        )
    found: list[PlacedSite] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    for record in reader:
        if record.get("in_1100") == "0":
            continue
        if edge and not record["lat"] and not record["lon"]:
            continue  # some of its cities have no position
        site = _site(record)
        if isinstance(site, str):
            problems.append(f"{source}, line {reader.line_num}: {site}")
            continue
        before = lines.setdefault(site.name, reader.line_num)
        if before != reader.line_num:
            problems.append(
                f"{source}, line {reader.line_num}: site {site.name} is in line {before} already"
            )
            continue
        found.append(site)
    if problems:
        more = len(problems) - MOST_TOLD
        told = problems[:MOST_TOLD]
        raise InvalidInput([*told, f"{source}: {more} more such lines"] if more > 0 else told)
    if not found:
        raise InvalidInput([f"{source}: has no site" + (
            " that in_1100 marks" if "in_1100" in columns else ""
        )])
    return tuple(found)


def _site(record: Mapping[str, str | None]) -> PlacedSite | str:
    name, country = record["site_id"] or "", record["country_iso2"] or ""
    if not name:
        return "site_id is blank; every site needs a name of its own"
    if len(country) != 2 or not country.isalpha() or not country.isupper():
        return f'country_iso2 is "{country}"; expected two capital letters, as DE'
    try:
        latitude, longitude = float(record["lat"] or ""), float(record["lon"] or "")
        people = float(record.get("metro_city_pop") or 0)
    except ValueError as error:
        return f"{error}; lat, lon and metro_city_pop are numbers"
    if not (-90.0 <= latitude <= 90.0 and -180.0 <= longitude <= 180.0):
        return f"lat {latitude:g}, lon {longitude:g} is no place; expected degrees, WGS 84"
    if not 0.0 <= people <= MOST_PEOPLE:
        return f"metro_city_pop is {people:g}; expected a count of people"
    return PlacedSite(
        name=name, country=country, operator=record.get("operator") or None,
        latitude_deg=latitude, longitude_deg=longitude,
        metro=f"{record.get('metro') or name}, {country}", metro_people=people,
    )
