"""What the zone answers: its own records, names that are rules, and why a name is answered so.

A name exists if it is the zone's own, if its one label spells a rule (`de`, `eu-ch`), if the file
names it, or if it is a name server's. Everything outside the zone is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isochrone.core.ids import SiteName
from isochrone.core.rng import Random
from isochrone.core.steering.host_name import transit_of_label
from isochrone.core.steering.place import Family, Found, Places, Subnet
from isochrone.core.steering.steer import Outcome, Steering, Ties, steer
from isochrone.dns import codes
from isochrone.dns.director import Director, Rule
from isochrone.dns.estate import IpAddress
from isochrone.dns.explain import explanation
from isochrone.dns.query import Query
from isochrone.dns.response import Record, Response, encode_name, encode_soa, encode_texts

Name = tuple[bytes, ...]  # labels in lower case, the first one first

MOST_SERVERS = 8

# Said to resolvers that take extended errors.
WHY: Mapping[Outcome, str] = {
    "no_address": "no allowed healthy ingress has such an address",
    "none_healthy": "every ingress that this name allows is unhealthy",
    "none_allowed": "no ingress is allowed for this name",
}
STARTING = "the name server knows no sites yet"
TOO_MANY = Response(
    rcode=codes.REFUSED, authoritative=False, why="too many explanations were asked for"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameServer:
    """A name server of the zone; `addresses` only where its name is below the zone's."""

    name: Name
    addresses: tuple[IpAddress, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """What the file of a name server says about its zone. `rule` binds the zone's own name, `names`
    the labels that are no countries or blocs. `aliases`, names without the zone's, lead to names
    elsewhere (to prove the zone to who signs certificates, say). `addresses` of ingresses take
    precedence over what the view says. `serial` of the SOA record grows with every reading of the
    file."""

    name: Name
    servers: tuple[NameServer, ...]
    contact: Name
    rule: Rule
    names: Mapping[str, Rule]
    aliases: Mapping[Name, Name]
    addresses: Mapping[SiteName, tuple[IpAddress, ...]]
    places: Places
    serial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRules:
    """How long answers hold, how many addresses they have, and whether TXT queries are told why."""

    ttl_s: int
    negative_ttl_s: int
    most_addresses: int
    ties: Ties
    explain: bool


class Answerer:
    """Answers queries for one zone; `zone` may be replaced between two of them."""

    def __init__(self, zone: Zone, director: Director, rules: AnswerRules, rng: Random) -> None:
        self.zone = zone
        self.outcomes: dict[Outcome, int] = {}
        self._director = director
        self._rules = rules
        self._rng = rng

    def respond(
        self, query: Query, resolver: Subnet, *, over_tcp: bool,
        may_explain: Callable[[], bool] = lambda: True,
    ) -> Response:
        """The answer to a query from this resolver's address. `may_explain` is asked before an
        explanation is made, and before nothing else."""
        zone = self.zone.name
        below = len(query.labels) - len(zone)
        if below < 0 or query.labels[below:] != zone or query.class_ != codes.CLASS_IN:
            return Response(rcode=codes.REFUSED, authoritative=False)
        if query.type == codes.TYPE_ANY or query.type in codes.TRANSFERS:
            return Response(rcode=codes.REFUSED, authoritative=False)
        if below == 0 and query.type in (codes.TYPE_SOA, codes.TYPE_NS):
            return self._own_records(query.type)
        if any(server.name == query.labels for server in self.zone.servers):
            return self._server(query)
        target = self.zone.aliases.get(query.labels[:below])
        if target is not None:
            alias = Record(
                type=codes.TYPE_CNAME, ttl_s=self._rules.ttl_s, data=encode_name(target)
            )
            return Response(answers=(alias,))
        rule = self._rule(query.labels[:below])
        if rule is None:
            # A name above an existing one exists, too.
            others = [server.name for server in self.zone.servers]
            others += [(*alias, *zone) for alias in self.zone.aliases]
            exists = any(other[-len(query.labels) :] == query.labels for other in others)
            return self._nothing(query, codes.NO_ERROR if exists else codes.NAME_ERROR)
        if query.type in (codes.TYPE_A, codes.TYPE_AAAA):
            return self._steered(query, rule, resolver)
        if query.type == codes.TYPE_TXT and self._rules.explain:
            if not over_tcp:  # only who has proved his address gets the long answer
                return Response(truncated=True)
            return self._explained(query, rule, resolver) if may_explain() else TOO_MANY
        return self._nothing(query)

    def _rule(self, labels: Name) -> Rule | None:
        """The rule that the labels before the zone's name stand for; None when there is none."""
        if not labels:
            return self.zone.rule
        if len(labels) > 1:
            return None
        try:
            label = labels[0].decode("ascii")
        except UnicodeDecodeError:
            return None
        named = self.zone.names.get(label)
        return transit_of_label(label, self._director.blocs) if named is None else named

    def _find(self, query: Query, resolver: Subnet) -> Found:
        """The client's place: by its subnet where that is told and known, else its resolver's."""
        found = self.zone.places.find(resolver)
        client = None if query.edns is None else query.edns.client
        if client is None or client.subnet is None:
            return Found(place=found.place, subnet=found.subnet, scope=0)
        told = self.zone.places.find(client.subnet)
        if told.subnet is None and found.subnet is not None:
            return Found(place=found.place, subnet=found.subnet, scope=told.scope)
        return told

    def _steered(self, query: Query, rule: Rule, resolver: Subnet) -> Response:
        openings = self._director.openings(rule)
        if openings is None:
            return Response(rcode=codes.SERVER_FAILURE, why=STARTING)
        found = self._find(query, resolver)
        family: Family = 4 if query.type == codes.TYPE_A else 6
        steering = steer(
            openings, found.place, family, most=self._rules.most_addresses,
            ties=self._rules.ties, rng=self._rng,
        )
        self.outcomes[steering.outcome] = self.outcomes.get(steering.outcome, 0) + 1
        if steering.outcome == "served":
            return Response(
                answers=self._addresses(query, steering),
                scope=found.scope if steering.depends else 0,
            )
        if steering.outcome == "none_healthy":
            # Not "there is none": another name server may know better, and a resolver that keeps
            # an old answer (RFC 8767) has one that was allowed.
            return Response(rcode=codes.SERVER_FAILURE, why=WHY["none_healthy"])
        return self._nothing(query, why=WHY[steering.outcome])

    def _addresses(self, query: Query, steering: Steering) -> tuple[Record, ...]:
        found = [
            address
            for each in steering.chosen
            for address in each.ingress.addresses(steering.family)
        ]
        return tuple(
            Record(type=query.type, ttl_s=self._rules.ttl_s, data=address)
            for address in dict.fromkeys(found[: self._rules.most_addresses])
        )

    def _explained(self, query: Query, rule: Rule, resolver: Subnet) -> Response:
        openings = self._director.openings(rule)
        if openings is None:
            return Response(rcode=codes.SERVER_FAILURE, why=STARTING)
        found = self._find(query, resolver)
        client = None if query.edns is None else query.edns.client
        lines = explanation(
            openings, found, resolver=resolver, client=None if client is None else client.subnet,
            most=self._rules.most_addresses, ties=self._rules.ties, rng=self._rng,
        )
        record = Record(type=codes.TYPE_TXT, ttl_s=0, data=encode_texts(lines))
        return Response(answers=(record,), scope=found.scope)

    def _own_records(self, type_: int) -> Response:
        if type_ == codes.TYPE_SOA:
            return Response(answers=(self._soa(0, self._rules.ttl_s),))
        return Response(
            answers=tuple(
                Record(type=codes.TYPE_NS, ttl_s=self._rules.ttl_s, data=encode_name(server.name))
                for server in self.zone.servers
            ),
            additional=tuple(
                self._record(address, server.name)
                for server in self.zone.servers
                for address in server.addresses
            ),
        )

    def _server(self, query: Query) -> Response:
        answers = tuple(
            self._record(address, None)
            for server in self.zone.servers
            if server.name == query.labels
            for address in server.addresses
            if query.type == (codes.TYPE_A if address.version == 4 else codes.TYPE_AAAA)
        )
        return Response(answers=answers) if answers else self._nothing(query)

    def _record(self, address: IpAddress, owner: Name | None) -> Record:
        return Record(
            type=codes.TYPE_A if address.version == 4 else codes.TYPE_AAAA,
            ttl_s=self._rules.ttl_s, data=address.packed, owner=owner,
        )

    def _nothing(self, query: Query, rcode: int = codes.NO_ERROR, why: str = "") -> Response:
        """No such name, or no such record: with the SOA record, which says for how long."""
        soa = self._soa(len(query.labels) - len(self.zone.name), self._rules.negative_ttl_s)
        return Response(rcode=rcode, authority=(soa,), why=why)

    def _soa(self, skip: int, ttl_s: int) -> Record:
        zone = self.zone
        data = encode_soa(
            zone.servers[0].name, zone.contact, serial=zone.serial,
            negative_ttl_s=self._rules.negative_ttl_s,
        )
        return Record(type=codes.TYPE_SOA, ttl_s=ttl_s, data=data, skip=skip)
