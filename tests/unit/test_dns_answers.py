"""What the name server answers: the worked example of docs/dns.md, names, errors, protocol."""

from collections.abc import Mapping
from dataclasses import replace

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from isochrone.core.ids import OrgId, PolicyId, SiteName
from isochrone.core.steering.steer import Unfit
from isochrone.core.world.tenant import Policy
from isochrone.dns.director import OfPolicy
from isochrone.dns.estate import Estate
from isochrone.dns.server import EXPLANATIONS_PER_S, Service
from tests.fixtures.name_server import (
    ZONE,
    StillClock,
    a_director,
    a_service,
    an_address,
    example_file,
)

RESOLVER = "192.168.1.1"  # no subnet of the example holds it
SYDNEY, FRANKFURT, BERLIN, ASHBURN = "192.0.2.4", "192.0.2.1", "192.0.2.2", "192.0.2.3"
DEAD = Unfit(rule="unreachable", detail="its gateway does not answer probes")


def ask(
    service: Service, name: str = ZONE, type_: str = "A", *, client: str | None = None,
    resolver: str = RESOLVER, tcp: bool = False, edns: bool = True,
) -> dns.message.Message:
    """The answer to one query, `client` as `198.51.100.0/24`, read by a parser that is not ours."""
    options: list[dns.edns.Option] | None = None
    if client is not None:
        address, _, length = client.partition("/")
        options = [dns.edns.ECSOption(address, int(length))]
    asked = dns.message.make_query(name, type_, use_edns=0 if edns else None, options=options)
    said = (service.over_tcp if tcp else service.over_udp)(asked.to_wire(), an_address(resolver))
    assert said is not None
    answer = dns.message.from_wire(said)
    assert asked.is_response(answer)
    return answer


def addresses(answer: dns.message.Message) -> set[str]:
    assert answer.rcode() == dns.rcode.NOERROR
    return {str(record) for rrset in answer.answer for record in rrset}


def scope(answer: dns.message.Message) -> int:
    found = [each for each in answer.options if isinstance(each, dns.edns.ECSOption)]
    assert len(found) == 1
    return found[0].scopelen


def why(answer: dns.message.Message) -> str:
    found = [each for each in answer.options if isinstance(each, dns.edns.EDEOption)]
    return found[0].text or "" if found else ""


@pytest.fixture
def service() -> Service:
    return a_service(example_file())


def unhealthy(*names: str) -> Mapping[SiteName, Unfit]:
    return {SiteName(name): DEAD for name in names}


@pytest.mark.parametrize(
    ("name", "client", "expected", "scope_bits"),
    [
        (ZONE, "198.51.100.0/25", {SYDNEY}, 25),
        (ZONE, "198.51.100.128/25", {FRANKFURT}, 25),      # Paris
        (ZONE, "203.0.113.0/24", {ASHBURN}, 24),           # at the site
        (ZONE, "192.0.2.0/24", {FRANKFURT}, 6),            # unknown, so as in [unknown]
        (f"de.{ZONE}", "198.51.100.0/25", {FRANKFURT, BERLIN}, 25),
        (f"us.{ZONE}", "198.51.100.0/25", {ASHBURN}, 0),   # the same for everybody
        (f"northern-bank.{ZONE}", "203.0.113.0/24", {ASHBURN}, 24),
        (f"northern-bank.{ZONE}", "198.51.100.0/25", {ASHBURN, FRANKFURT, BERLIN}, 25),  # all far
        (f"DE.{ZONE}", "198.51.100.0/25", {FRANKFURT, BERLIN}, 25),
    ],
)
def test_worked_example(
    service: Service, name: str, client: str, expected: set[str], scope_bits: int
) -> None:
    answer = ask(service, name, client=client)
    assert addresses(answer) == expected
    assert scope(answer) == scope_bits


def test_the_round_trips_of_the_worked_example(service: Service) -> None:
    answer = ask(service, f"de.{ZONE}", "TXT", client="198.51.100.0/25", tcp=True)
    (record,) = answer.answer[0]
    lines = [text.decode() for text in record.strings]
    assert lines[:3] == [
        "may enter in: DE", "resolver 192.168.1.1, client subnet 198.51.100.0/25",
        "198.51.100.0/24 is at -33.96, 145.06",
    ]
    assert sorted(lines[3:5]) == [
        "IPv4: berlin 192.0.2.2 271.9 ms", "IPv4: frankfurt 192.0.2.1 277.0 ms"
    ]
    assert lines[5:] == [
        "IPv6: frankfurt 2001:db8:1::1 277.0 ms",
        "not sydney: transit: the site is in AU, the policy allows DE",
        "not ashburn: transit: the site is in US, the policy allows DE",
    ]


def test_a_subnet_shorter_than_what_is_known_says_so(service: Service) -> None:
    answer = ask(service, client="198.51.100.0/24")
    assert addresses(answer) == {SYDNEY}
    assert scope(answer) == 25


def test_without_a_client_subnet_the_resolvers_place_counts(service: Service) -> None:
    answer = ask(service, resolver="203.0.113.77")
    assert addresses(answer) == {ASHBURN}
    assert not answer.options


def test_a_client_that_wants_to_be_private_has_its_resolvers_place(service: Service) -> None:
    answer = ask(service, client="0.0.0.0/0", resolver="203.0.113.77")
    assert addresses(answer) == {ASHBURN}
    assert scope(answer) == 0


def test_an_unknown_client_subnet_has_its_resolvers_place(service: Service) -> None:
    answer = ask(service, client="100.64.0.0/24", resolver="203.0.113.77")
    assert addresses(answer) == {ASHBURN}
    assert scope(answer) > 0, "a client elsewhere would be answered otherwise"


def test_ipv6_goes_to_the_nearest_that_has_it() -> None:
    service = a_service(example_file(('site = "ashburn"', 'site = "berlin"')))
    assert addresses(ask(service, client="203.0.113.0/24")) == {BERLIN}
    answer = ask(service, type_="AAAA", client="203.0.113.0/24")
    assert addresses(answer) == {"2001:db8:1::1"}, "Berlin has none, Frankfurt is next"


def test_the_dead_and_the_drained_are_left_out() -> None:
    service = a_service(example_file(), unfit=unhealthy("frankfurt"))
    assert addresses(ask(service, f"de.{ZONE}", client="198.51.100.0/25")) == {BERLIN}
    drained = a_service(
        example_file(('addresses = ["192.0.2.2"]', 'addresses = ["192.0.2.2"]\ndraining = true'))
    )
    assert addresses(ask(drained, f"de.{ZONE}", client="198.51.100.0/25")) == {FRANKFURT}


def test_when_nobody_allowed_is_healthy_it_fails_and_goes_nowhere_else() -> None:
    service = a_service(example_file(), unfit=unhealthy("frankfurt", "berlin"))
    answer = ask(service, f"de.{ZONE}", client="198.51.100.0/25")
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert not answer.answer
    assert why(answer) == "every ingress that this name allows is unhealthy"
    assert addresses(ask(service)) == {ASHBURN}, "others are served"


def test_a_rule_without_sites_is_a_name_without_addresses(service: Service) -> None:
    answer = ask(service, f"fr.{ZONE}")
    assert addresses(answer) == set()
    assert answer.authority[0].rdtype == dns.rdatatype.SOA
    assert why(answer) == "no ingress is allowed for this name"


def test_no_address_of_a_family_is_no_failure() -> None:
    service = a_service(example_file(), unfit=unhealthy("frankfurt"))
    answer = ask(service, f"de.{ZONE}", "AAAA")
    assert addresses(answer) == set()
    assert why(answer) == "no allowed healthy ingress has such an address"


@pytest.mark.parametrize("unfit", [(), ("ashburn",)], ids=["open", "unhealthy"])
def test_an_allowed_ingress_without_any_address_is_said_to_have_none(
    unfit: tuple[str, ...],
) -> None:
    file = example_file()
    director, estate = a_director(file, unhealthy(*unfit)), file.told.estate
    assert estate is not None
    named = replace(
        estate.sites[SiteName("ashburn")], host="", public_url="https://ashburn.example.org/v1"
    )
    director.learn(replace(estate, sites={**estate.sites, named.name: named}), {})
    service = a_service(file, director=director)
    answer = ask(service, f"us.{ZONE}")
    assert addresses(answer) == set()
    assert why(answer) == "no allowed healthy ingress has such an address"
    assert service.answerer.outcomes == {"no_address": 1}


@pytest.mark.parametrize(
    "label", ["xx", "de-xx", "any", "de-any", "de-de", "-", "de-", "frankfurt", "www.de", "\\255"]
)
def test_other_names_do_not_exist(service: Service, label: str) -> None:
    answer = ask(service, f"{label}.{ZONE}")
    assert answer.rcode() == dns.rcode.NXDOMAIN
    (soa,) = answer.authority
    assert (str(soa.name), soa.ttl) == (f"{ZONE}.", 10)


def test_several_places_may_be_named(service: Service) -> None:
    assert addresses(ask(service, f"de-us.{ZONE}", resolver="203.0.113.1")) == {ASHBURN}
    assert addresses(ask(service, f"eea-au.{ZONE}", client="198.51.100.0/25")) == {SYDNEY}


def test_the_zones_own_records(service: Service) -> None:
    servers = ask(service, type_="NS")
    assert addresses(servers) == {f"ns1.{ZONE}."}
    assert {str(record) for rrset in servers.additional for record in rrset} == {
        "192.0.2.53", "2001:db8::53"
    }
    assert addresses(ask(service, f"ns1.{ZONE}")) == {"192.0.2.53"}
    assert addresses(ask(service, f"ns1.{ZONE}", "AAAA")) == {"2001:db8::53"}
    (soa,) = ask(service, type_="SOA").answer[0]
    assert (str(soa.mname), soa.serial, soa.minimum) == (f"ns1.{ZONE}.", 7, 10)
    assert addresses(ask(service, type_="MX")) == set()


def test_an_alias_leads_elsewhere_whatever_is_asked(service: Service) -> None:
    for type_ in ("TXT", "A", "CNAME"):
        answer = ask(service, f"_ACME-challenge.{ZONE}", type_)
        assert addresses(answer) == {"api-challenge.example.org."}
        assert answer.answer[0].rdtype == dns.rdatatype.CNAME
    assert ask(service, f"_acme-challenge.{ZONE}", "ANY").rcode() == dns.rcode.REFUSED


def test_a_name_above_one_that_exists_exists() -> None:
    service = a_service(
        example_file(
            ('name = "_acme-challenge"', 'name = "_acme-challenge.deep.down"'),
            ('name = "ns1.api.example.net"', 'name = "ns1.dns.api.example.net"'),
        )
    )
    for label in ("down", "deep.down", "dns"):
        assert addresses(ask(service, f"{label}.{ZONE}")) == set()
    for label in ("deep", "x.down", "ns2.dns"):
        assert ask(service, f"{label}.{ZONE}").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(
    ("name", "type_"),
    [("example.net", "A"), ("example.org", "A"), (".", "NS"), (ZONE, "ANY"), (ZONE, "AXFR"),
     (ZONE, "IXFR"), (f"x{ZONE}", "A")],
)
def test_what_is_not_ours_or_too_much_is_refused(
    service: Service, name: str, type_: str
) -> None:
    answer = ask(service, name, type_, tcp=True)
    assert answer.rcode() == dns.rcode.REFUSED
    assert not answer.flags & dns.flags.AA


def test_another_class_is_refused(service: Service) -> None:
    asked = dns.message.make_query("version.bind", "TXT", "CH")
    said = service.over_udp(asked.to_wire(), an_address(RESOLVER))
    assert said is not None
    assert dns.message.from_wire(said).rcode() == dns.rcode.REFUSED


def test_explanations_are_for_those_who_prove_their_address(service: Service) -> None:
    answer = ask(service, type_="TXT")
    assert answer.flags & dns.flags.TC
    assert not answer.answer
    for _ in range(2 * EXPLANATIONS_PER_S):
        assert ask(service, type_="TXT", tcp=True).rcode() == dns.rcode.NOERROR
    assert ask(service, type_="TXT", tcp=True).rcode() == dns.rcode.REFUSED
    for _ in range(3):  # what is no explanation costs none
        proof = ask(service, f"_acme-challenge.{ZONE}", "TXT", tcp=True)
        assert addresses(proof) == {"api-challenge.example.org."}
        assert ask(service, f"nowhere.{ZONE}", "TXT", tcp=True).rcode() == dns.rcode.NXDOMAIN


def test_answers_are_not_authoritative_beyond_the_zone_and_never_recursive(
    service: Service,
) -> None:
    answer = ask(service)
    assert answer.flags & dns.flags.AA
    assert answer.flags & dns.flags.RD, "as it was asked"
    assert not answer.flags & dns.flags.RA


def raw(service: Service, data: bytes) -> dns.message.Message | None:
    said = service.over_udp(data, an_address(RESOLVER))
    return None if said is None else dns.message.from_wire(said)


def ecs_query(option: bytes) -> bytes:
    generic = dns.edns.GenericOption(dns.edns.OptionType.ECS, option)
    return dns.message.make_query(ZONE, "A", use_edns=0, options=[generic]).to_wire()


@pytest.mark.parametrize(
    "option",
    [
        b"", b"\0\1\x18", b"\0\1\x18\0\xc6\x33",          # too few bytes of address
        b"\0\1\x18\0\xc6\x33\x64\0",                      # too many
        b"\0\1\x18\x18\xc6\x33\x64",                      # a scope in a query
        b"\0\1\x17\0\xc6\x33\x65",                        # bits beyond the length
        b"\0\1\x21\0\xc6\x33\x64\0\0",                    # longer than an address
        b"\0\3\x08\0\x01",                                # a family that nobody has
    ],
)
def test_a_client_subnet_against_its_rules_is_malformed(service: Service, option: bytes) -> None:
    answer = raw(service, ecs_query(option))
    assert answer is not None
    assert answer.rcode() == dns.rcode.FORMERR


@pytest.mark.parametrize("family", [0, 1, 2])
def test_an_empty_client_subnet_of_any_family_is_echoed(service: Service, family: int) -> None:
    data = ecs_query(bytes([0, family, 0, 0]))
    said = service.over_udp(data, an_address(RESOLVER))
    assert said is not None
    assert said.endswith(bytes([0, 8, 0, 4, 0, family, 0, 0]))


def test_protocol_errors(service: Service) -> None:
    good = dns.message.make_query(ZONE, "A", use_edns=0).to_wire()
    status = bytes([*good[:2], 2 << 3, *good[3:]])
    two_questions = good[:5] + b"\2" + good[6:]
    newer = dns.message.make_query(ZONE, "A", use_edns=1).to_wire()
    cases = {
        status: dns.rcode.NOTIMP, two_questions: dns.rcode.FORMERR, newer: dns.rcode.BADVERS,
        good + b"x": dns.rcode.FORMERR, good[:-3]: dns.rcode.FORMERR,
        good[:12] + b"\xc0\x0c" + good[12:]: dns.rcode.FORMERR,
    }
    for data, expected in cases.items():
        answer = raw(service, data)
        assert answer is not None
        assert answer.rcode() == expected
    response = bytes([*good[:2], good[2] | 0x80, *good[3:]])
    assert raw(service, response) is None, "answers are not answered"
    assert raw(service, good[:11]) is None


@pytest.mark.parametrize(
    ("query", "has_edns"),
    [
        (dns.message.make_query(ZONE, "A", use_edns=None).to_wire() + b"x", False),
        (dns.message.make_query(ZONE, "A", use_edns=None).to_wire()[:11] + b"\1"
         + dns.message.make_query(ZONE, "A", use_edns=None).to_wire()[12:], False),
        (dns.message.make_query(ZONE, "A", use_edns=0).to_wire() + b"x", True),
        (ecs_query(b"\0\1\x18"), True),
    ],
    ids=["more behind", "a record too few", "EDNS, more behind", "EDNS, a broken option"],
)
def test_who_asks_without_edns_is_refused_without(
    service: Service, query: bytes, has_edns: bool
) -> None:
    answer = raw(service, query)
    assert answer is not None
    assert answer.rcode() == dns.rcode.FORMERR
    assert (answer.edns >= 0) == has_edns


def test_near_equals_are_shared(service: Service) -> None:
    one = a_service(example_file(("[dns]\n", "[dns]\nmost_addresses = 1\n")))
    seen = [addresses(ask(one, f"de.{ZONE}", client="198.51.100.0/25")) for _ in range(200)]
    counts = [seen.count({each}) for each in (FRANKFURT, BERLIN)]
    assert sum(counts) == 200
    assert min(counts) > 60


def test_a_network_beyond_its_rate_is_told_to_use_tcp_or_dropped() -> None:
    clock = StillClock()
    service = a_service(example_file(), clock=clock, responses_per_s=10)
    data = dns.message.make_query(ZONE, "A").to_wire()
    crowd = [an_address(f"203.0.113.{host}") for host in range(40)]
    answers = [service.over_udp(data, each) for each in crowd]
    full = [each for each in answers[:20] if each is not None]
    assert all(dns.message.from_wire(each).answer for each in full)
    rest = [each for each in answers[20:] if each is not None]
    assert len(full) == 20
    assert len(rest) == 10
    for each in rest:
        assert dns.message.from_wire(each).flags & dns.flags.TC
        assert len(each) <= len(data)
    other = service.over_udp(data, an_address("198.51.100.1"))
    assert other is not None
    assert dns.message.from_wire(other).answer, "another network is not concerned"
    clock.now_ns += 10**9
    again = [service.over_udp(data, each) for each in crowd[:10]]
    assert all(each and dns.message.from_wire(each).answer for each in again)


def test_a_name_of_a_policy_follows_the_view() -> None:
    file = example_file()
    director = a_director(file)
    before = director.estate
    assert before is not None
    service = a_service(file, director=director)
    rule = OfPolicy(policy=PolicyId("p1"))
    openings = director.openings(rule)
    assert openings is not None
    assert not openings.is_open.any(), "a policy that is not in the view allows nothing"

    def publish(transit: tuple[str, ...]) -> None:
        policy = Policy(
            id=PolicyId("p1"), org_id=OrgId("o"), residency=("any",), transit=transit,
            max_view_age_s=60.0,
        )
        director.learn(
            Estate(
                sites=before.sites, joined=before.joined, reporting=before.reporting,
                links=before.links, policies={policy.id: policy},
            ),
            file.told.zone.addresses,
        )

    def open_sites() -> list[str]:
        openings = director.openings(rule)
        assert openings is not None
        ingresses = openings.map.ingresses
        return [ingresses[number].site for number in openings.is_open.nonzero()[0]]

    publish(("DE",))
    assert open_sites() == ["berlin", "frankfurt"]
    publish(("AU",))
    assert open_sites() == ["sydney"]
    director.judge({}, view_age_s=61.0)
    assert open_sites() == [], "the view is older than the policy allows"
    assert addresses(ask(service)) == {FRANKFURT}, "names without a policy go on"
