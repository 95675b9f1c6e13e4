"""What each class is sure of at one site for one model: floor, share, ceiling, queue; in slots.

A policy states fractions, so that it holds for any number of slots; `divide` turns it into whole
slots. Floors are rounded down and their sum is below one, so at least one slot is nobody's floor
and every class moves. See docs/admission.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from isochrone.core.world.tenant import Class

CLASSES: tuple[Class, ...] = ("reserved", "on_demand", "batch")  # by rank, the firmest first
RESERVED, ON_DEMAND, BATCH = 0, 1, 2
RANK: dict[str, int] = {class_: rank for rank, class_ in enumerate(CLASSES)}

MOST_FLOORS = 0.95  # all floors together
MOST_QUEUED = 100_000
SHARE_PARTS = 10_000  # shares are counted in parts of this


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRule:
    """One class. `floor` and `ceiling` are fractions of the slots, `share` is its weight among the
    classes that have work waiting; at most `queue_most` requests wait, each at most `wait_ms`."""

    floor: float = 0.0
    share: float = 1.0
    ceiling: float = 1.0
    queue_most: int = 256
    wait_ms: float = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePolicy:
    """The rules at a site for one model.

    A floor that its class does not use is lent, but so that it is back within `reclaim_ms` of
    being asked for. `output_weight`: how much more an output token counts than one of the prompt.
    """

    reserved: ClassRule = field(default=ClassRule(share=6.0))
    on_demand: ClassRule = field(default=ClassRule(share=3.0))
    batch: ClassRule = field(default=ClassRule(share=1.0, queue_most=2048, wait_ms=600_000.0))
    reclaim_ms: float = 15_000.0
    output_weight: int = 2

    def rules(self) -> tuple[ClassRule, ClassRule, ClassRule]:
        """By rank."""
        return self.reserved, self.on_demand, self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """What one class has of a number of slots."""

    floor: int
    ceiling: int


def check_policy(policy: SitePolicy) -> list[str]:
    """Every problem of a policy that somebody wants to use; empty when there is none."""
    problems = []
    for class_, rule in zip(CLASSES, policy.rules(), strict=True):
        if not 0 <= rule.floor <= rule.ceiling <= 1:
            problems.append(
                f"{class_}: expected 0 <= floor <= ceiling <= 1, "
                f"not floor {rule.floor:g} and ceiling {rule.ceiling:g}"
            )
        if not 1 / SHARE_PARTS <= rule.share <= SHARE_PARTS:
            problems.append(
                f"{class_}: share {rule.share:g}; expected {1 / SHARE_PARTS:g} to {SHARE_PARTS}: "
                "a class that nobody may use has the ceiling 0"
            )
        if not 0 <= rule.queue_most <= MOST_QUEUED:
            problems.append(f"{class_}: queue_most {rule.queue_most}; expected 0 to {MOST_QUEUED}")
        if not 0 <= rule.wait_ms <= 86_400_000:
            problems.append(f"{class_}: wait_ms {rule.wait_ms:g}; expected 0 to a day")
    floors = sum(rule.floor for rule in policy.rules())
    if floors > MOST_FLOORS:
        problems.append(f"the floors are {floors:g} together; at most {MOST_FLOORS:g} can be kept")
    if not 0 <= policy.reclaim_ms <= 3_600_000:
        problems.append(f"reclaim_ms {policy.reclaim_ms:g}; expected 0 to an hour")
    if not 1 <= policy.output_weight <= 100:
        problems.append(f"output_weight {policy.output_weight}; expected 1 to 100")
    return problems


def divide(policy: SitePolicy, slots: int, sold_slots: int = 0) -> tuple[Slots, ...]:
    """Floors and ceilings in slots, by rank.

    `sold_slots`: what the entitlements honoured here need; the floor of `reserved` is at least
    that. Floors never take the last slot: the later ones give way.
    """
    left = max(slots - 1, 0)
    found = []
    for rank, rule in enumerate(policy.rules()):
        ceiling = 0 if rule.ceiling == 0 else max(round(slots * rule.ceiling), min(slots, 1))
        floor = int(slots * rule.floor + 1e-9)
        if rank == RESERVED:
            floor = max(floor, sold_slots)
        floor = min(floor, ceiling, left)
        left -= floor
        found.append(Slots(floor=floor, ceiling=ceiling))
    return tuple(found)


def own_slots(slots: int, index: int, gateways: int) -> int:
    """The slots that gateway `index` of `gateways` at a site counts on.

    They part them without a word. With fewer slots than gateways each has one, and the engines
    queue the rest.
    """
    part, rest = divmod(slots, gateways)
    return max(part + (index < rest), min(slots, 1))


def clamp(wanted: Class, allowed: Sequence[Class]) -> Class:
    """The class that a request gets: what it wants if its key may, else the next less firm one that
    the key has, else the least firm one; `on_demand` for a key that states none."""
    if not allowed:
        return "on_demand"
    for class_ in CLASSES[RANK[wanted] :]:
        if class_ in allowed:
            return class_
    return CLASSES[max(RANK[class_] for class_ in allowed)]


def weighted_tokens(prompt_tokens: int, output_tokens: int, output_weight: int) -> int:
    """What a request counts in all sharing: tokens of the prompt, and output at its weight."""
    return prompt_tokens + output_weight * output_tokens
