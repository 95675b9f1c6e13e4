"""Parses the file of a name server (TOML), or lists every problem of it at once.

`[dns]` holds the settings of the process. With `identity` the sites come from the signed view, and
a `[[site]]` only states the addresses of one; without, the `[[site]]` tables are the fleet.
"""

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isochrone.adapters.packaged import load_blocs, load_country_centres
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import check_axis, parse_axis
from isochrone.core.steering.host_name import transit_of_label
from isochrone.core.steering.place import NOWHERE, AtSite, Place, Places, Subnet
from isochrone.core.world.site import Site
from isochrone.dns import codes
from isochrone.dns.director import OfPolicy, Rule
from isochrone.dns.estate import Estate, IpAddress, usable_address
from isochrone.dns.process import Told
from isochrone.dns.settings import DnsSettings
from isochrone.dns.zone import MOST_SERVERS, Name, NameServer, Zone
from isochrone.wiring.settings import values_of
from isochrone.wiring.subnet_file import (
    Entry,
    Known,
    country_place,
    load_subnets,
    parse_subnet,
    position,
    site_place,
)
from isochrone.wiring.toml_table import Problems, TomlTable
from isochrone.wiring.world_file import SITE_NAME, country_of

LABEL = r"[a-z0-9_]([a-z0-9-]{0,61}[a-z0-9])?"
HTTPS_PORT = 443
DEFAULT_STATE = "dns-state"
MOST_NAME_CHARACTERS = 200  # leaves room for a label in front


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsFile:
    """`skipped`: lines of geofeeds without use."""

    settings: DnsSettings
    told: Told
    skipped: int


def load_dns(path: Path, *, serial: int) -> DnsFile:
    """Read the file; `serial` becomes that of the zone. Raises InvalidInput with every problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput([f"{path}: cannot be read: {reason}"]) from error
    return parse_dns(text, source=str(path), path=path.absolute(), serial=serial)


def files_of(path: Path) -> tuple[Path, ...]:
    """The file and those of subnets that it names, as far as it can be read."""
    path = path.absolute()
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))["dns"]["subnet_files"]
        return (path, *(path.parent / name for name in given))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return (path,)


def parse_dns(text: str, *, source: str, path: Path, serial: int) -> DnsFile:
    """Parse the text of a file; relative paths are relative to the folder of `path`."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput([f"{source}: not a TOML file: {error}"]) from error
    problems = Problems(source)
    settings = _settings(content.pop("dns", {}), path.parent, problems)
    unknown = content.pop("unknown", None)
    top = TomlTable("", content, problems)
    reader = _Reader(settings, load_blocs(), problems)
    if settings.identity is None:
        reader.read_fleet(top.tables("site", name_key="name"))
    else:
        reader.read_addresses(top.tables("site", name_key="name"))
    zone_name = _name(settings.zone)
    servers = [
        _server(each, zone_name) for each in top.tables("name_server", name_key="name")
    ]
    names = reader.read_names(top.tables("name", name_key="label"))
    aliases = [_alias(each) for each in top.tables("alias", name_key="name")]
    places, skipped = reader.read_places(top.tables("subnet"), unknown, path.parent)
    top.finish()
    reader.judge(zone_name, servers, names, aliases)
    problems.raise_if_any()
    zone = Zone(
        name=zone_name, servers=tuple(servers),
        contact=_name(settings.contact or f"hostmaster.{settings.zone}"),
        rule=parse_axis(",".join(settings.transit)), names=dict(names),
        aliases=dict(aliases), addresses=reader.addresses, places=places, serial=serial,
    )
    told = Told(zone=zone, places_at=frozenset(reader.places_at), estate=reader.estate)
    return DnsFile(settings=settings, told=told, skipped=skipped)


def _settings(given: object, folder: Path, problems: Problems) -> DnsSettings:
    """The table [dns]; a harmless one where it has problems."""
    if not isinstance(given, dict):
        problems.add("", "dns is not a table; write [dns]")
        return DnsSettings(zone="invalid")
    found: list[str] = []
    if "identity" in given:
        given = {"state": DEFAULT_STATE, **given}
    values: dict[str, Any] = values_of(given, DnsSettings, folder, found)
    for problem in found:
        problems.add("dns", problem)
    if found:
        return DnsSettings(zone="invalid", identity=values.get("identity"))
    settings = DnsSettings(**values)
    for key, name in (("zone", settings.zone), ("contact", settings.contact)):
        if name is not None and not _is_name(name):
            problems.add("dns", f'{key} is "{name}"; expected a name such as "api.example.net"')
    for host in settings.hosts:
        if usable_address(host) is None and host not in ("0.0.0.0", "::"):
            problems.add("dns", f'hosts names "{host}"; expected IP addresses of this machine')
    if not settings.hosts:
        problems.add("dns", "hosts is empty; expected IP addresses of this machine")
    return settings


def _is_name(text: str) -> bool:
    labels = text.rstrip(".").split(".")
    return len(text) <= MOST_NAME_CHARACTERS and all(
        label.isascii() and 0 < len(label) <= codes.LONGEST_LABEL
        and label.replace("-", "").replace("_", "").isalnum()
        for label in labels
    )


def _name(text: str) -> Name:
    """The labels of a name; what is no name was noted before."""
    return tuple(label.encode("ascii", "replace") for label in text.lower().rstrip(".").split("."))


def _server(table: TomlTable, zone: Name) -> NameServer:
    text = table.need_text("name", expected='a name such as "ns1.example.net"')
    if text and not _is_name(text):
        table.problem(f'name is "{text}"; expected a name such as "ns1.example.net"')
    name = _name(text)
    addresses = _addresses(table, default=())
    below = name[-len(zone) :] == zone
    if below and not addresses:
        table.problem("addresses are missing; a name server below the zone's name needs them")
    if not below and addresses:
        table.problem("addresses are answered by the zone that the name is in; remove them")
    if name == zone:
        table.problem("name is the zone's own, which is answered with ingresses; expected another")
    table.finish()
    return NameServer(name=name, addresses=addresses)


def _alias(table: TomlTable) -> tuple[Name, Name]:
    """(name without the zone's, where it leads)."""
    names = []
    for key, expected in (
        ("name", 'a name without the zone\'s, such as "_acme-challenge"'),
        ("target", 'a name such as "challenge.example.org"'),
    ):
        text = table.need_text(key, expected=expected)
        if text and not _is_name(text):
            table.problem(f'{key} is "{text}"; expected {expected}')
        names.append(_name(text))
    table.finish()
    return names[0], names[1]


def _addresses(table: TomlTable, *, default: tuple[str, ...] | None) -> tuple[IpAddress, ...]:
    found: list[IpAddress] = []
    for text in table.names("addresses", default=default):
        address = usable_address(text)
        if address is None:
            table.problem(f'addresses has "{text}"; expected IPv4 or IPv6 addresses of a host')
        else:
            found.append(address)
    return tuple(found)


class _Reader:
    """Reads the tables of one file; problems are noted."""

    def __init__(self, settings: DnsSettings, blocs: Blocs, problems: Problems) -> None:
        self.addresses: dict[SiteName, tuple[IpAddress, ...]] = {}
        self.estate: Estate | None = None
        self.places_at: set[SiteName] = set()
        self._settings = settings
        self._blocs = blocs
        self._problems = problems
        self._site_names: list[str] = []

    def read_addresses(self, tables: Iterable[TomlTable]) -> None:
        """Sites of the view, whose addresses are stated here."""
        for table in tables:
            self._site(table)
            table.finish()

    def read_fleet(self, tables: Iterable[TomlTable]) -> None:
        """Sites of a name server without a view."""
        sites: dict[SiteName, Site] = {}
        for table in tables:
            name = self._site(table)
            port = table.integer("port", 1, 65_535, default=HTTPS_PORT)
            addresses = self.addresses.get(name, ())
            host = str(addresses[0]) if addresses else ""
            url = table.text("url", pattern=r"https?://[^\s]+", expected="a URL of its gateway")
            sites[name] = Site(
                name=name, country=country_of(table, self._blocs.countries), operator=None,
                parent=None, latitude_deg=table.number("latitude", -90, 90),
                longitude_deg=table.number("longitude", -180, 180), host=host, port=port,
                public_url=url or ("" if port == HTTPS_PORT else f"http://{host}:{port}/v1"),
                peer_key=None,
                draining=table.boolean("draining", default=False),
            )
            table.finish()
        if not sites:
            self._problems.add(
                "", "there is no [[site]], and no identity in [dns] to read a view with"
            )
        self.estate = Estate(
            sites=sites, joined=frozenset(sites), reporting=frozenset(), links={}, policies={}
        )

    def _site(self, table: TomlTable) -> SiteName:
        name = SiteName(
            table.need_text(
                "name", pattern=SITE_NAME, expected="1 to 32 lower-case letters, digits or hyphens"
            )
        )
        self._site_names.append(name)
        self.addresses[name] = _addresses(table, default=None)
        return name

    def read_names(self, tables: Iterable[TomlTable]) -> list[tuple[str, Rule]]:
        """Labels that are no countries or blocs, and what they stand for."""
        found = []
        for table in tables:
            label = table.need_text(
                "label", pattern=LABEL, expected="1 to 63 lower-case letters, digits or hyphens"
            )
            if label and transit_of_label(label, self._blocs) is not None:
                table.problem(f'label "{label}" already says where requests may enter; use another')
            found.append((label, self._rule(table)))
            table.finish()
        return found

    def _rule(self, table: TomlTable) -> Rule:
        policy = table.text("policy", expected="the id of a policy")
        terms = table.names("transit", default=())
        if (policy is None) == (not terms):
            table.problem("expected either transit, a list of countries and blocs, or policy")
        if policy is not None:
            if self._settings.identity is None:
                table.problem("policy needs the view, and there is no identity in [dns]")
            return OfPolicy(policy=PolicyId(policy))
        axis = parse_axis(",".join(terms))
        if terms:
            for fault in check_axis(axis, self._blocs):
                table.problem(f"transit: {fault}")
        return axis

    def read_places(
        self, tables: Iterable[TomlTable], unknown: object, folder: Path
    ) -> tuple[Places, int]:
        """(places, files that they come from, lines that were skipped). Tables of the file come
        after its CSV files, so that they count where both name a subnet."""
        known = Known(
            centres=load_country_centres(),
            sites=self._site_names if self._settings.identity is None else None,
        )
        entries: list[Entry] = []
        skipped = 0
        for name in self._settings.subnet_files:
            path = folder / name
            try:
                read = load_subnets(path, known)
            except InvalidInput as error:
                self._problems.found += error.problems
            else:
                entries += read.entries
                skipped += read.skipped
        entries += [self._subnet(table, known) for table in tables]
        rest: Place = NOWHERE
        if isinstance(unknown, dict):
            table = TomlTable("unknown", unknown, self._problems)
            rest = self._place(table, known)
            table.finish()
        elif unknown is not None:
            self._problems.add("", "unknown is not a table; write [unknown]")
        for place in (rest, *(place for _, place in entries)):
            if isinstance(place, AtSite):
                self.places_at.add(place.site)
        return Places(entries, rest), skipped

    def _subnet(self, table: TomlTable, known: Known) -> Entry:
        text = table.need_text("network", expected='a network such as "203.0.113.0/24"')
        try:
            subnet = parse_subnet(text)
        except ValueError as error:
            subnet = Subnet(family=4, bits=0, length=0)
            if text:
                table.problem(f"network: {error}")
        place = self._place(table, known)
        table.finish()
        return subnet, place

    def _place(self, table: TomlTable, known: Known) -> Place:
        site, country = table.text("site"), table.text("country")
        given: list[Callable[[], Place]] = []
        if site is not None:
            given.append(lambda: site_place(site, known))
        if country is not None:
            given.append(lambda: country_place(country, known))
        if table.has("latitude") or table.has("longitude"):
            latitude = table.number("latitude", -90, 90)
            longitude = table.number("longitude", -180, 180)
            given.append(lambda: position(str(latitude), str(longitude)))
        if len(given) != 1:
            table.problem("expected one of site, country, or latitude and longitude")
            return NOWHERE
        try:
            return given[0]()
        except ValueError as error:
            table.problem(str(error))
            return NOWHERE

    def judge(
        self, zone: Name, servers: list[NameServer], names: list[tuple[str, Rule]],
        aliases: list[tuple[Name, Name]],
    ) -> None:
        """What no table can tell alone."""
        said = {label for label, _ in names}
        leading = {b".".join(alias).decode() for alias, _ in aliases}
        own = {
            b".".join(server.name[: -len(zone)]).decode(): b".".join(server.name).decode()
            for server in servers if server.name[-len(zone) :] == zone
        }
        others = [(f'alias "{text}"', text) for text in leading]
        others += [(f'name_server "{name}"', text) for text, name in own.items()]
        for where, text in sorted(others):
            if text in said or transit_of_label(text, self._blocs) is not None:
                self._problems.add(where, "the name is answered with ingresses already")
        for text in sorted(leading & own.keys()):
            self._problems.add(f'alias "{text}"', "the name is that of a name server already")
        self._once("alias", [b".".join(alias).decode() for alias, _ in aliases])
        if not 1 <= len(servers) <= MOST_SERVERS:
            self._problems.add(
                "", f"there are {len(servers)} [[name_server]]; expected 1 to {MOST_SERVERS}, as "
                "in the zone above, which delegates to them",
            )
        axis = parse_axis(",".join(self._settings.transit))
        for fault in check_axis(axis, self._blocs):
            self._problems.add("dns", f"transit: {fault}")
        self._once("site", self._site_names)
        self._once("name", [label for label, _ in names])
        self._once("name_server", [b".".join(server.name).decode() for server in servers])
        identity = self._settings.identity
        if identity is not None and not identity.is_file():
            self._problems.add(
                "dns", f"identity: {identity} is not there; make it with `isochrone site join`"
            )

    def _once(self, what: str, names: Iterable[str]) -> None:
        for name, count in Counter(names).items():
            if count > 1 and name:
                self._problems.add("", f'{what} "{name}" is described {count} times; expected once')


def settings_that_differ(before: DnsSettings, now: DnsSettings) -> list[str]:
    """Names of the settings that a running process does not take from a changed file."""
    names = [field.name for field in dataclasses.fields(now)]
    taken = ("subnet_files", "transit", "contact", "zone")
    return [
        name for name in names
        if name not in taken and getattr(before, name) != getattr(now, name)
    ]
