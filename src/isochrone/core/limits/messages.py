"""What gateways say to one another about limits. Each message is whole: lost, doubled or late, it
changes nothing but what it says. Amounts are in the unit of the limit's kind.
"""

from dataclasses import dataclass

from isochrone.core.ids import LimitId, SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class AskGrant:
    """The gateway of `site`, in this `life` of its, wants to use so much in all.

    `used` and `held` are facts: what it has used since `mark`, and what its running requests hold;
    `need` is both and what requests that wait need, of whom the smallest needs `least`; `want` is
    with what it expects. `number` grows;
    `heard` is the highest whose grant it has. `frees_ns`: in how long the first of `used` is
    forgotten. `insists`: who was asked before did not answer.
    """

    limit: LimitId
    site: SiteName
    life: int
    number: int
    heard: int
    mark: int
    used: int
    held: int
    need: int
    want: int
    least: int = 0
    frees_ns: int = 0
    insists: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The answer: `amount` in all, for `for_ns` from when it was asked for.

    `free`: what nobody has. `spare`: what others have and do not use as far as is known, and give
    back if asked. `unused`: what is not used up by anybody, granted or held or not. `frees_ns`: in
    how long more may be free at the earliest, 0 where nobody knows.
    """

    limit: LimitId
    life: int
    number: int
    mark: int
    amount: int
    for_ns: int
    free: int
    spare: int
    unused: int = 0
    frees_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Led:
    """A custodian that was asked is not the one that decides: `by` is, as far as it knows."""

    limit: LimitId
    by: SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A line of a tally: what a gateway may use at most by what it was told, and until when.

    `for_ns` is from when the line was sent, and negative once it is over; `until` is the same as a
    wall instant. `number` is that of its last ask.
    """

    site: SiteName
    life: int
    number: int
    amount: int
    for_ns: int
    until: int
    mark: int
    used: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """`site` wants to decide about a limit from `epoch` on."""

    limit: LimitId
    site: SiteName
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """A custodian follows in `epoch`, and what it knows: the tally with this version, made in
    `of_epoch`. `remembers` False: it started anew, so its word counts for nothing."""

    limit: LimitId
    site: SiteName
    epoch: int
    of_epoch: int
    version: int
    tally: tuple[Granted, ...]
    remembers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The tally of the custodian that decides in `epoch`."""

    limit: LimitId
    site: SiteName
    epoch: int
    version: int
    tally: tuple[Granted, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """`site` has that version, or one after it, and follows nobody else."""

    limit: LimitId
    site: SiteName
    epoch: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """Somebody else decides, or did, in `epoch` or after."""

    limit: LimitId
    site: SiteName
    epoch: int


Message = AskGrant | Grant | Led | Lead | Follow | Copy | Copied | Behind


@dataclass(frozen=True, slots=True)
class LimitLetter:
    """A message and whom it is for."""

    to: SiteName
    message: Message
