"""What a run leaves behind to be judged: what clients saw, engines did, and the book says."""

from dataclasses import dataclass

from isochrone.core.ids import KeyId, OrgId, SiteName
from isochrone.core.metering.event import UsageEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as its client saw it, under the client's own `reference`.

    `countries`: where it may be processed; None: anywhere. `status` 0: no answer came. `tokens` are
    those that came, `whole`: with an orderly end, `told_error`: a stream ended by an error event,
    `code`: of an error body. `left`: the client did not wait. Times are seconds of the run;
    `ended_s` None: it never ended.
    """

    reference: str
    ingress: SiteName
    key_id: KeyId
    org_id: OrgId
    countries: frozenset[str] | None
    began_s: float
    ended_s: float | None
    status: int = 0
    reason: str | None = None
    code: str | None = None
    request_id: str | None = None
    serving_country: str | None = None
    tokens: int = 0
    whole: bool = False
    told_error: bool = False
    left: bool = False
    must_succeed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What one engine computed for one request."""

    reference: str
    site: SiteName
    country: str | None
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """A gateway that ended suddenly at `at_s`, or was not there yet, and was started again at
    `back_s`. `unsynced`: it ended with its host, so what it had not synced is gone. `full`: it
    ended while its disk took no records. `lives`: only its connections broke."""

    site: SiteName
    at_s: float
    back_s: float
    unsynced: bool = False
    full: bool = False
    lives: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """The ledger: what each organisation was charged, what its booked usage costs, both in
    10^-12 of the currency's unit; the sum of all entries; sums by hour that are not those of the
    requests."""

    charged: dict[OrgId, int]
    used: dict[OrgId, int]
    sum_pico: int
    wrong_hours: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A whole run. What a gear cannot know is left out: `worked` None where engines do not tell,
    `money` None where nothing was charged. `stuck` says what was still at work when everything
    should have been quiet, `broken` what was seen to be wrong on the way. `is_exact`: nothing
    failed, so that all counts agree to the token."""

    asked: tuple[Asked, ...]
    booked: tuple[UsageEvent, ...] | None = None
    worked: tuple[Worked, ...] | None = None
    downs: tuple[Down, ...] = ()
    money: Money | None = None
    stuck: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    is_exact: bool = False
