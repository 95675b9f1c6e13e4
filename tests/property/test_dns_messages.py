"""DNS messages under fire: whatever arrives is answered in form, briefly, or not at all; what we
write a parser that is not ours reads, and the same parser's messages we read."""

from ipaddress import IPv4Network, IPv6Network
from random import Random

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.adapters.packaged import load_blocs
from isochrone.core.ids import SiteName
from isochrone.core.residency.rule import Admitted, admits
from isochrone.core.steering.steer import Unfit
from isochrone.dns import codes
from isochrone.dns.query import Malformed, Query, parse_query
from tests.builders import a_site
from tests.fixtures.fuzzing import damaged, seeds
from tests.fixtures.name_server import ZONE, a_service, an_address, example_file

COOKIE = dns.edns.OptionType.COOKIE  # which we do not know
FILE = example_file()
SERVICE = a_service(FILE)
SOURCE = an_address("203.0.113.9")
COUNTRY_OF = {"frankfurt": "DE", "berlin": "DE", "ashburn": "US", "sydney": "AU"}
SITE_OF = {
    "192.0.2.1": "frankfurt", "2001:db8:1::1": "frankfurt", "192.0.2.2": "berlin",
    "192.0.2.3": "ashburn", "2001:db8:3::1": "ashburn", "192.0.2.4": "sydney",
}
MOST_GROWTH = 5      # times the query, and
MOST_MORE_BYTES = 150  # for an OPT record and the SOA record of what does not exist

labels = st.binary(min_size=1, max_size=63)
names = st.builds(
    lambda before, below: dns.name.Name((*before, *(below.split(b".") if below else ()), b"")),
    st.lists(labels, max_size=2),
    st.sampled_from([ZONE.encode(), b"example.net", b"API.Example.NET", b""]),
)
subnets = st.one_of(
    st.none(),
    st.builds(
        lambda bits, length: an_option(IPv4Network((bits, length), strict=False)),
        st.integers(0, 2**32 - 1), st.integers(0, 32),
    ),
    st.builds(
        lambda bits, length: an_option(IPv6Network((bits, length), strict=False)),
        st.integers(0, 2**128 - 1), st.integers(0, 128),
    ),
)


def an_option(network: IPv4Network | IPv6Network) -> dns.edns.ECSOption:
    return dns.edns.ECSOption(str(network.network_address), network.prefixlen)


@given(
    names, st.sampled_from(["A", "AAAA", "TXT", "NS", "SOA", "ANY", "MX", "AXFR", "HTTPS"]),
    subnets, st.sampled_from([None, 512, 1232, 4096, 100]), st.booleans(),
)
@settings(max_examples=500)
def test_a_real_clients_query_is_read_as_it_was_meant_and_answered_in_form(
    name: dns.name.Name, type_: str, subnet: dns.edns.ECSOption | None, payload: int | None,
    over_tcp: bool,
) -> None:
    asked = dns.message.make_query(name, type_)
    if payload is not None:
        asked.use_edns(0, payload=payload, options=None if subnet is None else [subnet])
    data = asked.to_wire()
    query = parse_query(data)
    assert isinstance(query, Query)
    assert query.labels == tuple(label.lower() for label in name.labels[:-1])
    assert query.type == dns.rdatatype.from_text(type_)
    assert (query.edns is None) == (payload is None)
    said = SERVICE.over_tcp(data, SOURCE) if over_tcp else SERVICE.over_udp(data, SOURCE)
    assert said is not None
    if not over_tcp:
        assert len(said) <= 512 if payload is None else len(said) <= max(512, payload)
        assert len(said) <= MOST_GROWTH * len(data) + MOST_MORE_BYTES
    answer = dns.message.from_wire(said)
    assert asked.is_response(answer), "id and question are the query's"
    assert answer.flags & dns.flags.QR
    assert not answer.flags & dns.flags.RA
    inside = name.is_subdomain(dns.name.from_text(ZONE))
    assert inside or answer.rcode() == dns.rcode.REFUSED
    if payload is not None and subnet is not None:
        echoed = [each for each in answer.options if isinstance(each, dns.edns.ECSOption)]
        assert [(each.address, each.srclen) for each in echoed] == [(subnet.address, subnet.srclen)]
        assert 0 <= echoed[0].scopelen <= (32 if subnet.family == 1 else 128)
    if answer.rcode() in (dns.rcode.NXDOMAIN,) or (
        inside and answer.rcode() == dns.rcode.NOERROR and not answer.answer
        and not answer.flags & dns.flags.TC
    ):
        assert [each.rdtype for each in answer.authority] == [dns.rdatatype.SOA]


@given(
    st.lists(st.sampled_from(["de", "us", "au", "fr", "eu", "eea", "gdpr", "xx"]), min_size=1,
             max_size=3),
    st.sets(st.sampled_from(sorted(COUNTRY_OF))),
    st.sets(st.sampled_from(sorted(COUNTRY_OF))),
    st.sampled_from(["198.51.100.0", "198.51.100.128", "203.0.113.0", "192.0.2.0"]),
    st.sampled_from(["A", "AAAA"]),
)
@settings(max_examples=400)
def test_whoever_asks_a_bound_name_is_told_an_allowed_healthy_ingress_or_nothing(
    terms: list[str], dead: set[str], drained: set[str], client: str, type_: str
) -> None:
    changes = [
        (f'name = "{site}"\n', f'name = "{site}"\ndraining = true\n') for site in sorted(drained)
    ]
    unfit = {SiteName(site): Unfit(rule="unreachable", detail="dead") for site in dead}
    service = a_service(example_file(*changes), unfit=unfit)
    asked = dns.message.make_query(
        f"{'-'.join(terms)}.{ZONE}", type_, use_edns=0, options=[dns.edns.ECSOption(client, 25)]
    )
    said = service.over_udp(asked.to_wire(), SOURCE)
    assert said is not None
    answer = dns.message.from_wire(said)
    told = {str(record) for rrset in answer.answer for record in rrset}
    axis, blocs = tuple(term.upper() for term in terms), load_blocs()
    may = {
        site for site, country in COUNTRY_OF.items()
        if isinstance(admits(axis, a_site(name=site, country=country), blocs), Admitted)
    }
    for address in told:
        site = SITE_OF[address]
        assert site in may - dead - drained
    if "xx" in terms or len(set(terms)) < len(terms):
        assert answer.rcode() == dns.rcode.NXDOMAIN
    elif may and not may - dead - drained:
        assert answer.rcode() == dns.rcode.SERVFAIL
    else:
        assert answer.rcode() == dns.rcode.NOERROR
        assert bool(told) == any(
            site in may - dead - drained and (":" in address) == (type_ == "AAAA")
            for address, site in SITE_OF.items()
        )


def whole_queries() -> list[bytes]:
    """Queries of several kinds, for damage."""
    options: list[dns.edns.Option] = [
        dns.edns.ECSOption("198.51.100.0", 24), dns.edns.GenericOption(COOKIE, b"12345678"),
    ]
    return [
        dns.message.make_query(ZONE, "A").to_wire(),
        dns.message.make_query(f"de.{ZONE}", "AAAA", use_edns=0, options=options).to_wire(),
        dns.message.make_query(f"eu-ch.{ZONE}", "TXT", use_edns=0, payload=4096).to_wire(),
        dns.message.make_query(ZONE, "NS", want_dnssec=True).to_wire(),
        dns.message.make_query("x" * 63 + f".{ZONE}", "MX").to_wire(),
    ]


def test_damaged_queries_are_answered_in_form_or_not_at_all() -> None:
    queries = whole_queries()
    for seed in seeds(4000):
        random = Random(seed)
        data = damaged(random, random.choice(queries), queries)
        judge(data, seed)


@given(st.binary(max_size=80))
@settings(max_examples=500)
def test_noise_is_answered_in_form_or_not_at_all(data: bytes) -> None:
    judge(data, None)
    judge(bytes.fromhex("abcd01000001000000000000") + data, None)


def judge(data: bytes, seed: int | None) -> None:
    for over_tcp in (False, True):
        said = SERVICE.over_tcp(data, SOURCE) if over_tcp else SERVICE.over_udp(data, SOURCE)
        if said is None:
            assert len(data) < codes.HEADER_BYTES or data[2] & 0x80, seed
            continue
        assert said[:2] == data[:2], seed
        assert said[2] & 0x80, seed
        answer = dns.message.from_wire(said)  # raises for what no resolver would read
        if isinstance(parse_query(data), Malformed):
            assert answer.rcode() in (
                dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS
            ), seed
            assert not answer.answer, seed
        if not over_tcp:
            assert len(said) <= MOST_GROWTH * len(data) + MOST_MORE_BYTES, seed
