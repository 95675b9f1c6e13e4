"""Limits: how much a key, a project or an organisation may use over all sites, and what it costs.

What a request costs is told to gateways as a rate card: a price sheet without what depends on the
quantity of a period, so that a gateway can say it of one request.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from isochrone.core.ids import KeyId, LimitId, OrgId, ProjectId

LimitKind = Literal["requests_per_min", "tokens_per_min", "concurrent", "budget"]
LIMIT_KINDS: tuple[LimitKind, ...] = get_args(LimitKind)
BudgetPeriod = Literal["day", "month"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """So much (`amount`) of a kind, over all sites: of one key, of a project or of all of an
    organisation. An organisation, a project or a key has at most one of each kind.

    Tokens are input and output together. A budget is in 10^-12 of `currency`, for each `period` of
    UTC; of requests that came before `spent_before` (wall ns, the start of an hour) it had spent
    `spent_pico` in that hour's period, which is as the book has it.
    """

    id: LimitId
    org_id: OrgId
    kind: LimitKind
    amount: int
    created_at: int
    project_id: ProjectId | None = None
    key_id: KeyId | None = None
    period: BudgetPeriod | None = None
    currency: str | None = None
    spent_before: int = 0
    spent_pico: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRule:
    """What something on a card is about; what is empty or None fits all."""

    meters: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    bound: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPrice:
    """`price_pico` for every `per` of what `rule` fits, where no price before it does."""

    rule: CardRule
    price_pico: int
    per: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CardChange:
    """Changes every price that fits by so many basis points."""

    rule: CardRule
    basis_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateCard:
    """Holds from `valid_from` (wall ns) until the next card does."""

    currency: str
    valid_from: int
    prices: tuple[CardPrice, ...]
    changes: tuple[CardChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrgLimits:
    """All limits of an organisation; with budgets, what its requests cost."""

    org_id: OrgId
    limits: tuple[Limit, ...]
    cards: tuple[RateCard, ...] = ()
