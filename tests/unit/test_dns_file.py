"""The file of a name server and files of subnets: what they say, and every problem at once."""

from pathlib import Path

import pytest

from isochrone.adapters.packaged import load_blocs, load_country_centres
from isochrone.core.errors import InvalidInput
from isochrone.core.estimate.round_trip import Position, great_circle_km
from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.steering.place import AtSite
from isochrone.dns.director import OfPolicy
from isochrone.wiring.dns_file import load_dns, parse_dns, settings_that_differ
from isochrone.wiring.subnet_file import Known, load_subnets, parse_subnet
from tests.fixtures.name_server import EXAMPLE, example_file

KNOWN = Known(centres=load_country_centres(), sites=("frankfurt",))

ONE_SITE = """
[dns]
zone = "api.example.net"
[[site]]
name = "here"
latitude = 0
longitude = 0
country = "DE"
addresses = ["192.0.2.1"]
"""

FULL_OF_FAULTS = """
[dns]
zone = "api.example.net"
transit = ["any", "DE"]
subnet_files = ["nowhere.csv"]
[[name_server]]
name = "ns1.api.example.net"
[[name_server]]
name = "ns2.example.org"
addresses = ["192.0.2.1"]
[[site]]
name = "here"
latitude = 91
longitude = 0
country = "de"
addresses = ["gateway.example.net", "0.0.0.0"]
[[name]]
label = "de"
transit = ["DE"]
[[name]]
label = "acme"
policy = "p1"
[[name]]
label = "none"
[[alias]]
name = "eu"
target = "elsewhere.example.org"
[[alias]]
name = "a b"
[[subnet]]
network = "198.51.100.1/24"
site = "there"
[[subnet]]
network = "198.51.100.0/24"
country = "ZZ"
latitude = 1
[unknown]
contry = "DE"
[[sight]]
"""


def problems_of(text: str, tmp_path: Path) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse_dns(text, source="dns.toml", path=tmp_path / "dns.toml", serial=1)
    return list(caught.value.problems)


def test_the_example_is_good() -> None:
    told = load_dns(EXAMPLE, serial=3).told
    assert told.zone.name == (b"api", b"example", b"net")
    assert told.zone.contact == (b"hostmaster", b"api", b"example", b"net")
    assert told.zone.names == {"northern-bank": ("DE", "US")}
    assert told.zone.serial == 3
    assert told.places_at == {"ashburn", "frankfurt"}
    assert told.estate is not None
    assert sorted(told.estate.joined) == ["ashburn", "berlin", "frankfurt", "sydney"]


def test_every_problem_is_listed_with_its_place(tmp_path: Path) -> None:
    found = problems_of(FULL_OF_FAULTS, tmp_path)
    text = "\n".join(found)
    assert all(each.startswith(("dns.toml: ", str(tmp_path))) for each in found)
    for expected in (
        "dns: transit: 'any' stands alone",
        "nowhere.csv: cannot be read: No such file",
        'name_server "ns1.api.example.net": addresses are missing',
        'name_server "ns2.example.org": addresses are answered by the zone that the name is in',
        'site "here": latitude is 91',
        'country is "de", which is no country',
        'addresses has "gateway.example.net"', 'addresses has "0.0.0.0"',
        'name "de": label "de" already says where requests may enter',
        "policy needs the view, and there is no identity in [dns]",
        'name "none": expected either transit',
        'alias "eu": the name is answered with ingresses already',
        'alias "a b": name is "a b"; expected a name without the zone', "target is missing",
        "subnet 1: network: 198.51.100.1/24 has host bits set", "site 'there' is not described",
        "subnet 2: expected one of site, country, or latitude and longitude",
        'unknown: unknown key "contry"; did you mean "country"?',
        'unknown key "sight"; did you mean "site"?',
    ):
        assert expected in text, text


def test_a_name_server_takes_the_place_of_no_other_name(tmp_path: Path) -> None:
    text = ONE_SITE + """
    [[name]]
    label = "acme"
    transit = ["DE"]
    [[alias]]
    name = "proof"
    target = "elsewhere.example.org"
    """
    for label in ("de", "acme", "proof"):
        text += f"""
        [[name_server]]
        name = "{label}.api.example.net"
        addresses = ["192.0.2.9"]
        """
    assert problems_of(text, tmp_path) == [
        'dns.toml: name_server "acme.api.example.net": the name is answered with ingresses already',
        'dns.toml: name_server "de.api.example.net": the name is answered with ingresses already',
        'dns.toml: alias "proof": the name is that of a name server already',
    ]


def test_settings_have_their_problems_listed_too(tmp_path: Path) -> None:
    found = problems_of(
        '[dns]\nzone = "a..b"\nhosts = ["localhost"]\nprobe = "ping"\nttl_s = 0\n', tmp_path
    )
    text = "\n".join(found)
    assert "probe: must be one of 'ready', 'connect', 'none'" in text
    assert "ttl_s: must be at least 1" in text
    found = problems_of('[dns]\nzone = "a..b"\nhosts = ["localhost"]\n', tmp_path)
    text = "\n".join(found)
    assert 'zone is "a..b"' in text
    assert 'hosts names "localhost"' in text
    assert "there is no [[site]]" in text
    assert "there are 0 [[name_server]]" in text


def test_with_an_identity_sites_are_the_views(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{}")
    text = """
[dns]
zone = "api.example.net"
identity = "identity.json"
[[name_server]]
name = "ns1.example.net"
[[site]]
name = "frankfurt"
addresses = ["192.0.2.1"]
[[name]]
label = "acme"
policy = "p1"
[[subnet]]
network = "2001:db8::/32"
site = "oslo"
"""
    file = parse_dns(text, source="dns.toml", path=tmp_path / "dns.toml", serial=1)
    assert file.told.estate is None
    assert file.told.zone.names == {"acme": OfPolicy(policy=PolicyId("p1"))}
    assert [str(each) for each in file.told.zone.addresses[SiteName("frankfurt")]] == ["192.0.2.1"]
    assert file.told.places_at == {"oslo"}
    missing = problems_of(text.replace("identity.json", "other.json"), tmp_path)
    assert missing == [
        f"dns.toml: dns: identity: {tmp_path}/other.json is not there; make it with "
        "`isochrone site join`"
    ]


@pytest.mark.parametrize(
    ("said", "url"), [("", ""), ("port = 4101", "http://192.0.2.1:4101/v1"), ("port = 443", "")]
)
def test_the_url_of_a_site_is_not_guessed_where_it_has_tls(
    tmp_path: Path, said: str, url: str
) -> None:
    text = ONE_SITE + f"""
    {said}
    [[name_server]]
    name = "ns1.api.example.net"
    addresses = ["192.0.2.9"]
    """
    told = parse_dns(text, source="dns.toml", path=tmp_path / "dns.toml", serial=1).told
    assert told.estate is not None
    assert told.estate.sites[SiteName("here")].public_url == url


def test_settings_that_need_a_restart_are_known() -> None:
    before = example_file().settings
    assert settings_that_differ(before, before) == []
    after = example_file(("port = 5353", "port = 5354\nttl_s = 60")).settings
    assert sorted(settings_that_differ(before, after)) == ["port", "ttl_s"]


def test_our_own_csv(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_text(
        "network,latitude,longitude,country,site\n"
        "198.51.100.0/24,48.86,2.35,FR,\n"
        "203.0.113.0/24,,,NA,\n"
        "\n"
        "2001:db8::/32,,,,frankfurt\n"
    )
    entries = dict(load_subnets(path, KNOWN).entries)
    assert entries[parse_subnet("198.51.100.0/24")] == Position(
        latitude_deg=48.86, longitude_deg=2.35
    )
    assert entries[parse_subnet("203.0.113.0/24")] == KNOWN.centres["NA"]
    assert entries[parse_subnet("2001:db8::/32")] == AtSite(site=SiteName("frankfurt"))


def test_faults_of_our_own_csv_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_text(
        "country,network\nDE,198.51.100.0/33\nXX,198.51.100.0/24\n,198.51.100.0/24\nDE\n"
    )
    with pytest.raises(InvalidInput) as caught:
        load_subnets(path, KNOWN)
    lines = [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]
    assert [line.partition(":")[0] for line in lines] == ["line 2", "line 3", "line 4", "line 5"]
    path.write_text("network,place\n" + "nonsense,DE\n" * 1000)
    with pytest.raises(InvalidInput) as caught:
        load_subnets(path, KNOWN)
    assert len(caught.value.problems) == 21
    assert "unknown column 'place'" in caught.value.problems[0]


def test_our_own_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    line = "198.51.100.0/24,48.86,2.35\r\n"
    for head in (
        "\ufeffnetwork,latitude,longitude\r\n", '"network","latitude","longitude"\r\n',
        "\r\nnetwork, latitude, longitude\r\n",
    ):
        path.write_text(head + line, encoding="utf-8", newline="")
        read = load_subnets(path, KNOWN)
        assert (len(read.entries), read.skipped) == (1, 0)
    path.write_text("\n\nnetwork,country\nnonsense,DE\n")
    with pytest.raises(InvalidInput, match="line 4: 'nonsense'"):
        load_subnets(path, KNOWN)
    path.write_text("\ufeff198.51.100.0/24,DE\n", encoding="utf-8")
    assert len(load_subnets(path, KNOWN).entries) == 1


def test_a_geofeed(tmp_path: Path) -> None:
    path = tmp_path / "geofeed.csv"
    path.write_text(
        "# a comment, as the standard has them\n"
        "198.51.100.0/24,DE,DE-BE,Berlin,\n"
        "2001:db8::/32,no,,Oslo,\n"
        "203.0.113.0/24,,,,\n"             # wants to be nowhere
        "192.0.2.0/24,UK,,London,\n"        # no such code
        "192.0.2.1/24,DE,,,\n"              # no such network
        "192.0.2.7,FR,,Paris,\n"
    )
    read = load_subnets(path, KNOWN)
    assert dict(read.entries) == {
        parse_subnet("198.51.100.0/24"): KNOWN.centres["DE"],
        parse_subnet("2001:db8::/32"): KNOWN.centres["NO"],
        parse_subnet("192.0.2.7/32"): KNOWN.centres["FR"],
    }
    assert read.skipped == 2


def test_what_is_no_text_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(InvalidInput, match="is no CSV text"):
        load_subnets(path, KNOWN)


def test_countries_have_centres_near_their_people() -> None:
    centres = load_country_centres()
    assert load_blocs().countries - centres.keys() == {"AQ", "BV", "HM", "IO", "TK", "UM"}
    for country, latitude_deg, longitude_deg, within_km in (
        ("DE", 51.2, 10.4, 150), ("NA", -22.6, 17.1, 250), ("SG", 1.35, 103.8, 30),
        ("FJ", -17.8, 178.0, 150), ("US", 39.8, -98.6, 700),
    ):
        there = Position(latitude_deg=latitude_deg, longitude_deg=longitude_deg)
        assert great_circle_km(centres[country], there) < within_km, country
