"""What a routing policy is asked by the simulation, what it may know, and what it can have done.

One `Router` stands for all the gateways of a fleet. It is told what happens where, each time with
the place, and says what to do through `Actions`. It must keep apart what is known where: a method
that is called for an ingress may use what that ingress knows, one that is called for a site what
that site knows. The rules, for ours as for every baseline:

- An ingress knows: its own requests, when they began and ended, what they were told; the fleet as
  it is planned (sites, replicas with their `stated` rates, round trips without jitter); of the
  sites' load the digests of `News.heard`, which come late as they do in life.
- A site knows exactly what its own replicas do: what it sent them and what came back.
- Nobody knows a request's `output_tokens` before it has ended, nor another place's knowledge.
- A policy with one balancer for all (its own paper says so) sends each request there first:
  `Actions.go` with `extra_s`, the detour over the balancer; it may then use what the balancer was
  told, at the time at which it was.
- Where a request may go is asked of `Rules.allowed`, by the product's own residency rules. A
  request that runs elsewhere fails the simulation.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from isochrone.core.estimate.service import Work
from isochrone.core.rng import Random
from isochrone.core.world.digest import SiteDigest
from isochrone.twin.fast.arrivals import Arrival
from isochrone.twin.fast.fleet import Fleet

__all__ = ["Actions", "Arrival", "Fleet", "Flight", "News", "Router", "Rules", "Setting"]


AT_INGRESS: Final = 0
ON_ITS_WAY: Final = 1
AT_SITE: Final = 2
AT_REPLICA: Final = 3
DONE: Final = 4  # with its replica, or lost: the ingress does not know yet
OVER: Final = 5


NOWHERE: Final[list[int]] = []  # of all flights that nobody refused: never changed


class Flight:
    """One request on its way through the fleet. Instants are seconds, -1 before they come; those at
    a site are that site's to know. `site` and `replica` are where it is or goes, -1 before that;
    `tried` the sites that refused or lost it, the latest last. `cached_tokens`: what the engine
    said, once it ended, that it had of the prompt. `note` and `site_note` are the router's own
    memory, of the ingress and of the site. `stage` is the simulation's.
    """

    __slots__ = (
        "arrival", "cached_tokens", "done_s", "first_s", "hops", "ident", "note", "reached_s",
        "replica", "site", "site_note", "stage", "tried",
    )

    def __init__(self, ident: int, arrival: Arrival) -> None:
        self.ident = ident
        self.arrival = arrival
        self.site = -1
        self.replica = -1
        self.hops = 0
        self.stage = AT_INGRESS
        self.tried = NOWHERE
        self.cached_tokens = 0
        self.reached_s = -1.0  # its site
        self.first_s = -1.0    # its first token left the replica
        self.done_s = -1.0     # its last one did
        self.note: object = None
        self.site_note: object = None


class Actions(Protocol):
    """What a router can have done. Each call is the last word on the flight until the next event
    about it."""

    def go(self, flight: Flight, site: int, now_s: float, extra_s: float = 0.0) -> None:
        """From where it is (its ingress, or the site that got it) to a site: `Router.arrived` is
        called there after half a round trip, and `extra_s`."""

    def serve(self, flight: Flight, replica: int, now_s: float) -> None:
        """At the site that got it: to one of the site's replicas, which queues it by itself where
        it has no room."""

    def refuse(self, flight: Flight, now_s: float) -> None:
        """At the site that got it: its ingress hears of it after half a round trip, with
        `Router.refused`."""

    def give_up(self, flight: Flight, now_s: float) -> None:
        """At the ingress: the client is refused."""

    def wake(self, place: int, at_s: float) -> None:
        """Call `Router.woken` with this number at this instant."""


class Rules(Protocol):
    """Where requests may be processed."""

    def allowed(self, ingress: int, tenant: int, model: int) -> Sequence[int]:
        """Sites that have a deployment of the model and that the tenant's policy allows for what
        enters there, in ascending order; those that are down included."""


class News(Protocol):
    """The digests as they arrive."""

    def heard(self, site: int, ingress: int, now_s: float) -> SiteDigest | None:
        """The last digest of the site that has reached the ingress by now; None before the first.
        It counts every replica of the site by itself too (`replicas`)."""

    def heard_at(self, site: int, at_site: int, now_s: float) -> SiteDigest | None:
        """The same, as it has reached another site."""

    def age_s(self, site: int, ingress: int, now_s: float) -> float:
        """How long ago that digest was made; infinite before the first."""

    def age_at_s(self, site: int, at_site: int, now_s: float) -> float:
        """The same of what has reached another site."""


Waiting = Callable[[int, int], tuple[Work, int]]


class Setting:
    """What a router is given at the start. One whose sites keep requests may set `waiting`: what
    waits at a site for a model (by their numbers), and how many requests were pushed there since
    the start; it goes into the site's digests."""

    __slots__ = ("actions", "fleet", "news", "rng", "rules", "waiting")

    def __init__(
        self, fleet: Fleet, actions: Actions, rules: Rules, news: News, rng: Random
    ) -> None:
        self.fleet = fleet
        self.actions = actions
        self.rules = rules
        self.news = news
        self.rng = rng  # of this router alone
        self.waiting: Waiting | None = None


class Router(Protocol):
    """A policy. `name` is as reports have it; `digest_s` the interval between digests of one site
    (1 s where a system does not say another)."""

    name: str
    digest_s: float

    def start(self, setting: Setting) -> None:
        """Once, before all else."""

    # At an ingress.

    def began(self, flight: Flight, now_s: float) -> None:
        """A request has come to its ingress: `Actions.go`, `give_up`, or keep it and do so later.
        """

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        """The site `flight.tried[-1]` refused it, or (`lost`) failed before the first token was
        there: the ingress hears it now, and sends it elsewhere or gives up."""

    def ended(self, flight: Flight, now_s: float) -> None:
        """Its answer is with the ingress to the last token."""

    def broke(self, flight: Flight, now_s: float) -> None:
        """Its answer broke off after the first token: the ingress hears it now. Nothing is to be
        done."""

    # At a site.

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        """It has come to a site: `Actions.serve`, `refuse`, `go`, or keep it and do so later. A
        request whose replica died before its first token is here once more (after `served`)."""

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        """One of its replicas has begun to answer."""

    def served(self, flight: Flight, site: int, now_s: float) -> None:
        """One of its replicas is done with a request, or died with it (`done_s` is then -1)."""

    def replicas_changed(self, site: int, ready: Sequence[int], now_s: float) -> None:
        """The replicas of a site that are ready now; first at the start. Whoever is kept there and
        has no replica left should be sent on or refused."""

    # Everywhere.

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        """A digest leaves a site now. Nobody else knows it yet: see `News`."""

    def woken(self, place: int, now_s: float) -> None:
        """The instant of `Actions.wake` has come."""
