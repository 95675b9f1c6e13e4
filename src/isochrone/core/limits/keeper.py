"""A custodian's part in keeping one limit: the tally of grants, and who decides about it.

The tally says what each gateway may use at most. One custodian decides at a time, at first the
home; a grant is sent only when a majority of the custodians has the tally with it. Whoever wants to
decide instead asks for an epoch of its own, learns the tally from a majority, and by that majority
everybody before is refused from then on. So what is granted is never more than what is left,
whatever messages are lost, doubled or late and whoever dies; no clock decides who decides. It is
Paxos (Lamport 1998) with one register a limit, in which the home needs no first phase.

A custodian that starts anew has forgotten whom it follows: its word counts for nothing until a
majority that remembers has told it the tally, or until all that it may have granted is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from isochrone.core.ids import SiteName
from isochrone.core.limits.messages import (
    AskGrant,
    Behind,
    Copied,
    Copy,
    Follow,
    Grant,
    Granted,
    Lead,
    Led,
    LimitLetter,
)
from isochrone.core.limits.terms import (
    AMNESIA_NS,
    LONGEST_NS,
    MINUTE_NS,
    RETRY_NS,
    TERM_NS,
)
from isochrone.core.world.limit import Limit

SHORT_NS = 2 * TERM_NS  # after somebody lacked something, nobody is granted more than needed
HEADROOM_PART = 4       # of what is free, for one gateway


@dataclass(slots=True)
class _Line:
    """What one life of a gateway may use. `lent`: (number, amount) of grants that it may still go
    by; the largest counts. `until_ns`: the end of the last of them, `until` the same as a wall
    instant."""

    number: int
    lent: list[tuple[int, int]]
    until_ns: int
    until: int
    mark: int
    used: int = 0
    held: int = 0
    frees_at_ns: int = 0

    def most(self) -> int:
        return max((amount for _, amount in self.lent), default=0)

    def counted(self) -> int:
        """What of the limit is not free because of it."""
        return max(self.most(), self.used + self.held)


class Keeper:
    """One custodian's. Mutable, owned by one event loop; `remembers`: the limit is new, so there is
    nothing to have forgotten."""

    def __init__(
        self, limit: Limit, site: SiteName, custodians: tuple[SiteName, ...], *, remembers: bool,
        now_ns: int,
    ) -> None:
        self.limit = limit
        self.mark = 0           # of a budget: since when gateways count, and what was spent before
        self.spent = 0
        self.custodians = custodians
        self.leads = False
        self._site = site
        self._is_new = remembers
        self._remembers_ns = 0 if remembers else now_ns + AMNESIA_NS
        self._promised = 0      # the highest epoch that it follows
        self._epoch = 0         # in which the tally was made, and its version
        self._version = 0
        self._tally: dict[tuple[SiteName, int], _Line] = {}
        self._led_by: SiteName | None = None
        self._led_ns = 0
        self._stands = False
        self._stood_ns = 0
        self._followers: set[SiteName] = set()
        self._asks: dict[tuple[SiteName, int], AskGrant] = {}  # to be answered once it decides
        self._copied = 0        # the version that a majority has
        self._sent = 0          # the version that was sent last, and when
        self._sent_ns = 0
        self._grants: list[tuple[int, LimitLetter]] = []  # wait until a majority has the version
        self._short_until_ns = 0

    def take_over(self, before: "Keeper") -> None:
        """Other sites came or went, and this one stays a custodian: it goes on with what it knows,
        following nobody in particular."""
        alone = len(self.custodians) == 1
        self._is_new = False
        self.leads = alone and before.leads
        if not alone or before.leads or len(before.custodians) == 1:
            self._remembers_ns = before._remembers_ns
        # else another decided, and may have granted what this one was never told: it waits as one
        # that starts anew, until that is over and everybody has said anew what they use
        self._promised = max(before._promised, 1)
        self._epoch, self._version = before._epoch, before._version
        self._tally = before._tally

    # -- what others see -------------------------------------------------------------------------

    def lines(self, now_ns: int) -> tuple[Granted, ...]:
        """The tally as it is told to others."""
        return tuple(
            Granted(
                site=site, life=life, number=line.number, amount=line.most(),
                for_ns=line.until_ns - now_ns, until=line.until, mark=line.mark, used=line.used,
                held=line.held,
            )
            for (site, life), line in self._tally.items()
        )

    @property
    def has_lines(self) -> bool:
        """Whether anybody was granted anything."""
        return bool(self._tally)

    def left(self) -> int:
        """What nobody has been granted; below zero where more was used than there is."""
        counted = sum(line.counted() for line in self._tally.values())
        return self.limit.amount - self.spent - counted

    # -- gateways --------------------------------------------------------------------------------

    def hear_ask(self, ask: AskGrant, now_ns: int, now: int) -> list[LimitLetter]:
        """Somebody asks for a grant."""
        self._asks[ask.site, ask.life] = ask
        if not self._decides(now_ns):
            if self._led_by is not None and not ask.insists and now_ns - self._led_ns < TERM_NS:
                del self._asks[ask.site, ask.life]
                return [LimitLetter(ask.site, Led(limit=self.limit.id, by=self._led_by))]
            return self._stand(now_ns)
        return self._decide(now_ns, now)

    def tick(self, now_ns: int, now: int) -> list[LimitLetter]:
        """A few times a second: forget what is over, send again what was not answered."""
        self._prune(now_ns, now)
        letters: list[LimitLetter] = []
        if self._stands and now_ns - self._stood_ns >= RETRY_NS:
            self._stands = False
            if self._asks:
                letters += self._stand(now_ns)
        if self._asks and self._decides(now_ns):
            letters += self._decide(now_ns, now)
        if self.leads and self._copied < self._version and now_ns - self._sent_ns >= RETRY_NS:
            letters += self._copy(now_ns)
        return letters

    # -- custodians ------------------------------------------------------------------------------

    def hear_lead(self, lead: Lead, now_ns: int) -> list[LimitLetter]:
        """Another custodian wants to decide."""
        if lead.epoch < self._promised or (lead.epoch == self._promised and self.leads):
            return [LimitLetter(lead.site, Behind(
                limit=self.limit.id, site=self._site, epoch=self._promised
            ))]
        self._yield(lead.epoch, lead.site, now_ns)
        return [LimitLetter(lead.site, Follow(
            limit=self.limit.id, site=self._site, epoch=lead.epoch, of_epoch=self._epoch,
            version=self._version, tally=self.lines(now_ns), remembers=self._remembers(now_ns),
        ))]

    def hear_follow(self, follow: Follow, now_ns: int, now: int) -> list[LimitLetter]:
        """Another custodian follows."""
        if not self._stands or follow.epoch != self._promised or not follow.remembers:
            return []
        self._followers.add(follow.site)
        if (follow.of_epoch, follow.version) > (self._epoch, self._version):
            self._take_tally(follow.tally, now_ns)
            self._epoch, self._version = follow.of_epoch, follow.version
        return self._win(now_ns, now)

    def hear_copy(self, copy: Copy, now_ns: int) -> list[LimitLetter]:
        """The tally of whoever decides; one epoch is one custodian's."""
        if copy.epoch < self._promised:
            return [LimitLetter(copy.site, Behind(
                limit=self.limit.id, site=self._site, epoch=self._promised
            ))]
        self._yield(copy.epoch, copy.site, now_ns)
        if (copy.epoch, copy.version) > (self._epoch, self._version):
            self._take_tally(copy.tally, now_ns)
            self._epoch, self._version = copy.epoch, copy.version
        if not self._remembers(now_ns):
            return []  # it may have promised to follow somebody else
        return [LimitLetter(copy.site, Copied(
            limit=self.limit.id, site=self._site, epoch=self._epoch, version=self._version
        ))]

    def hear_copied(self, copied: Copied, now_ns: int) -> list[LimitLetter]:
        """A custodian has the tally: with this one it is a majority of three."""
        if not self.leads or copied.epoch != self._epoch:
            return []
        self._copied = max(self._copied, copied.version)
        return self._flush(now_ns)

    def hear_behind(self, behind: Behind, now_ns: int) -> list[LimitLetter]:
        """Somebody else decides: give up, and perhaps stand again."""
        if behind.epoch <= self._promised or not (self.leads or self._stands):
            return []
        self.leads = self._stands = False
        self._promised = behind.epoch
        self._grants.clear()
        return self._stand(now_ns) if self._asks else []

    # -- deciding --------------------------------------------------------------------------------

    def _remembers(self, now_ns: int) -> bool:
        return now_ns >= self._remembers_ns

    def _decides(self, now_ns: int) -> bool:
        """Whether it decides. The home does, as long as nobody ever stood; where it started anew,
        somebody may have."""
        if self.leads or self.custodians[0] != self._site:
            return self.leads
        if len(self.custodians) == 1:  # nobody else can, whatever was promised to those who left
            self.leads = self._is_new or self._remembers(now_ns)
        elif not self._promised:
            self.leads = self._is_new
        return self.leads

    def _stand(self, now_ns: int) -> list[LimitLetter]:
        if self._stands or len(self.custodians) == 1:
            return []
        # No two sites ever name the same epoch.
        own = int.from_bytes(blake2b(self._site.encode(), digest_size=4).digest(), "big")
        self._promised = ((self._promised >> 32) + 1) << 32 | own
        self._stands, self._stood_ns = True, now_ns
        self._followers = {self._site} if self._remembers(now_ns) else set()
        return [
            LimitLetter(each, Lead(limit=self.limit.id, site=self._site, epoch=self._promised))
            for each in self.custodians if each != self._site
        ]

    def _win(self, now_ns: int, now: int) -> list[LimitLetter]:
        if len(self._followers) < self._majority:
            return []
        self._stands, self.leads = False, True
        self._remembers_ns = 0
        self._epoch, self._version = self._promised, self._version + 1
        self._copied, self._sent = 0, 0
        letters = self._decide(now_ns, now)
        return letters if self._sent == self._version else [*letters, *self._copy(now_ns)]

    @property
    def _majority(self) -> int:
        return len(self.custodians) // 2 + 1

    def _yield(self, epoch: int, to: SiteName, now_ns: int) -> None:
        if epoch > self._promised or to != self._site:
            self.leads = self._stands = False
            self._grants.clear()
            self._asks.clear()
        self._promised = epoch
        self._led_by, self._led_ns = to, now_ns

    def _take_tally(self, lines: Sequence[Granted], now_ns: int) -> None:
        self._tally = {
            (each.site, each.life): _Line(
                number=each.number, lent=[(each.number, each.amount)],
                until_ns=now_ns + each.for_ns, until=each.until, mark=each.mark, used=each.used,
                held=each.held,
            )
            for each in lines
        }

    def _decide(self, now_ns: int, now: int) -> list[LimitLetter]:
        """Answer everybody who asked: first what was used, which is so, then what they want."""
        self._prune(now_ns, now)
        asks = [ask for ask in self._asks.values() if self._note(ask, now_ns)]
        self._asks.clear()
        for ask in asks:
            self._lend(ask, now_ns, now)
        letters: list[LimitLetter] = []
        if asks:
            self._version += 1
            if len(self.custodians) == 1:
                self._copied = self._version
            elif self._copied >= self._sent or now_ns - self._sent_ns >= RETRY_NS:
                letters = self._copy(now_ns)
        return [*letters, *self._flush(now_ns)]

    def _note(self, ask: AskGrant, now_ns: int) -> bool:
        """Write down what was used; False for an ask that is old."""
        line = self._tally.get((ask.site, ask.life))
        if line is None:
            line = self._tally[ask.site, ask.life] = _Line(0, [], now_ns, 0, ask.mark)
        elif ask.number <= line.number:
            return False
        newer = ask.mark > self.mark and ask.mark > line.mark
        line.used = max(ask.used, line.used) if newer else ask.used
        line.held, line.number, line.mark = ask.held, ask.number, ask.mark
        line.frees_at_ns = now_ns + ask.frees_ns if ask.frees_ns else 0
        line.lent = [each for each in line.lent if each[0] >= ask.heard]
        return True

    def _lend(self, ask: AskGrant, now_ns: int, now: int) -> None:
        """As much as is needed and left, and beforehand a part of what is free then."""
        line = self._tally[ask.site, ask.life]
        # It counts what was spent before, too, and with this mark may have used less: it is granted
        # what it holds, and asks anew.
        is_before = self.mark > ask.mark
        facts = line.held if is_before else line.used + line.held
        mine = line.counted()
        left = self.left() + mine
        if is_before:
            need, want = facts, facts
        else:
            need, want = ask.need, ask.want
        if need > left:
            self._short_until_ns = now_ns + SHORT_NS
        amount = min(need, left)
        if amount < need and amount - facts < ask.least:
            amount = facts  # it could not use it, and others might
        if now_ns >= self._short_until_ns:
            amount += max(min(want - need, (left - amount) // HEADROOM_PART), 0)
        amount = max(amount, facts)
        line.lent.append((ask.number, amount))
        line.until_ns, line.until = now_ns + TERM_NS, now + TERM_NS
        after = self.left() + (line.used if is_before else 0)
        spare = sum(
            max(each.most() - each.used - each.held, 0)
            for each in self._tally.values() if each is not line
        )
        used = sum(each.used for each in self._tally.values())
        unused = self.limit.amount - self.spent - used
        grant = Grant(
            limit=self.limit.id, life=ask.life, number=ask.number, mark=self.mark, amount=amount,
            for_ns=TERM_NS, free=max(after, 0), spare=spare, unused=max(unused, 0),
            frees_ns=self._frees_ns(now_ns),
        )
        self._grants.append((self._version + 1, LimitLetter(ask.site, grant)))

    def _copy(self, now_ns: int) -> list[LimitLetter]:
        self._sent, self._sent_ns = self._version, now_ns
        tally = self.lines(now_ns)
        return [
            LimitLetter(each, Copy(
                limit=self.limit.id, site=self._site, epoch=self._epoch, version=self._version,
                tally=tally,
            ))
            for each in self.custodians if each != self._site
        ]

    def _flush(self, now_ns: int) -> list[LimitLetter]:
        """Send the grants that a majority knows of; then the tally again, if it has changed."""
        letters = [letter for version, letter in self._grants if version <= self._copied]
        self._grants = [each for each in self._grants if each[0] > self._copied]
        if self._copied >= self._sent and self._version > self._sent and len(self.custodians) > 1:
            letters += self._copy(now_ns)
        return letters

    def _frees_ns(self, now_ns: int) -> int:
        waits = [
            line.frees_at_ns - now_ns for line in self._tally.values() if line.frees_at_ns > now_ns
        ]
        return min(waits, default=0)

    def _prune(self, now_ns: int, now: int) -> None:
        """What nobody may go by any more, and no longer counts, is forgotten."""
        kind = self.limit.kind
        linger_ns = LONGEST_NS if kind == "concurrent" else MINUTE_NS
        for who, line in list(self._tally.items()):
            if kind == "budget":
                over = line.until and line.until < self.mark
            else:
                over = now_ns >= line.until_ns + linger_ns
            if over or not (line.counted() or line.lent):
                del self._tally[who]
