"""Decides which site looks after the slices of a home: itself, or another while it is gone.

The steward of a home alone uses and lends its slices. A site becomes it, for `TERM_NS`, by the
votes of more than half of the voters, of whom each has one vote a home until it lapses. The term
counts from before the votes were asked for, and by a clock a little fast, so it is over at the
steward before any vote lapses at a voter: two stewards at a time cannot be, whatever is lost,
doubled, late or crashes. A voter that starts anew is silent for a term, having forgotten its votes.
The idea is PaxosLease (Trencseni, Gazso, Reinhardt 2012) without ballots: a vote that led to
nothing is given back. Voters are changed as in Raft (Ongaro, Ousterhout 2014, section 6): for as
long as anybody may still count by the old ones, majorities of both are needed.
"""

from dataclasses import dataclass

from isochrone.core.ids import SiteName
from isochrone.core.world.entitlement import Voters

TERM_NS = 15_000_000_000
RENEW_NS = TERM_NS // 3
DRIFT = 500  # clocks differ by less than one part in this
_KEPT_ASKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """`site`, in this `life` of its gateway, stands as steward of `home`. `number` grows and is
    never used twice in a life, so that late votes are known for what they are. `epoch` is that of
    the voters by whom it counts."""

    home: SiteName
    site: SiteName
    life: int
    number: int
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A voter's answer to that `Stand`: its vote, or in `steward` who has it already."""

    home: SiteName
    voter: SiteName
    site: SiteName
    life: int
    number: int
    steward: SiteName | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StandDown:
    """`site` stands no more: votes up to this number are free."""

    home: SiteName
    site: SiteName
    life: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandBack:
    """The home itself is back: its steward should not ask for another term."""

    home: SiteName


@dataclass(frozen=True, slots=True)
class _Cast:
    site: SiteName
    life: int
    number: int
    until_ns: int


class Voter:
    """The votes of one voter. `started_ns`: since when it remembers."""

    def __init__(self, site: SiteName, started_ns: int) -> None:
        self._site = site
        self._silent_until_ns = started_ns + TERM_NS
        self._cast: dict[SiteName, _Cast] = {}

    def hear(self, stand: Stand, now_ns: int) -> Vote | None:
        """The answer; none to what is old, or as long as earlier votes may be forgotten."""
        if now_ns < self._silent_until_ns:
            return None
        cast = self._cast.get(stand.home)
        steward: SiteName | None = None
        if cast is None or now_ns >= cast.until_ns:
            steward = None
        elif (cast.site, cast.life) != (stand.site, stand.life):
            steward = cast.site
        elif stand.number < cast.number:
            return None
        if steward is None:
            self._cast[stand.home] = _Cast(
                stand.site, stand.life, stand.number, now_ns + TERM_NS
            )
        return Vote(
            home=stand.home, voter=self._site, site=stand.site, life=stand.life,
            number=stand.number, steward=steward,
        )

    def release(self, down: StandDown) -> None:
        """The vote is free again, unless a later stand has it."""
        cast = self._cast.get(down.home)
        if cast is None or (cast.site, cast.life) != (down.site, down.life):
            return
        if cast.number <= down.number:
            del self._cast[down.home]


class Candidate:
    """One site standing for one home. `until_ns`: the end of its term by its own clock; 0 before
    the first."""

    def __init__(self, home: SiteName, site: SiteName, life: int) -> None:
        self.home = home
        self.until_ns = 0
        self.asked_ns = 0
        self.refused_by: dict[SiteName, SiteName] = {}  # voter -> who has its vote
        self._site = site
        self._life = life
        self._number = 0
        self._asked: dict[int, int] = {}
        self._votes: dict[SiteName, int] = {}

    def stand(self, number: int, now_ns: int, epoch: int = 0) -> Stand:
        """Ask for (another) term, from now on, of the voters of this epoch."""
        self._number = number
        self.asked_ns = now_ns
        self._asked[self._number] = now_ns
        if len(self._asked) > _KEPT_ASKS:
            del self._asked[min(self._asked)]
        self.refused_by.clear()
        return Stand(
            home=self.home, site=self._site, life=self._life, number=number, epoch=epoch
        )

    def hear(self, vote: Vote, voters: Voters) -> None:
        """Count a vote; one for another life or for a stand that was given up counts nothing."""
        asked_ns = self._asked.get(vote.number)
        if asked_ns is None or vote.voter not in (*voters.sites, *voters.former):
            return
        if (vote.home, vote.site, vote.life) != (self.home, self._site, self._life):
            return
        if vote.steward is not None:
            if vote.number == self._number:
                self.refused_by[vote.voter] = vote.steward
            return
        until_ns = asked_ns + TERM_NS - TERM_NS // DRIFT
        self._votes[vote.voter] = max(until_ns, self._votes.get(vote.voter, 0))
        until_ns = self._agreed_until_ns(voters.sites)
        if voters.former:
            until_ns = min(until_ns, self._agreed_until_ns(voters.former))
        self.until_ns = max(self.until_ns, until_ns)

    def _agreed_until_ns(self, sites: tuple[SiteName, ...]) -> int:
        """Until when the votes of more than half of them last."""
        untils = sorted((self._votes.get(each, 0) for each in sites), reverse=True)
        return untils[len(sites) // 2]

    def stand_down(self, now_ns: int) -> StandDown | None:
        """Give up; None, and nothing happens, while the term lasts."""
        if now_ns < self.until_ns:
            return None
        self._asked.clear()
        self._votes.clear()
        return StandDown(home=self.home, site=self._site, life=self._life, number=self._number)
