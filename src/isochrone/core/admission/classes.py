"""What each class is sure of at one site for one model: floor, share, ceiling, queue; in slots.

A policy states fractions, so that it holds for any number of slots; `divide` turns it into whole
slots. Floors are rounded down and their sum is below one, so at least one slot is nobody's floor
and every class moves. See docs/admission.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from isochrone.core.world.site_policy import SitePolicy
from isochrone.core.world.tenant import Class

CLASSES: Final[tuple[Class, ...]] = ("reserved", "on_demand", "batch")  # by rank, the firmest first
RESERVED, ON_DEMAND, BATCH = 0, 1, 2
RANK: Final[dict[str, int]] = {class_: rank for rank, class_ in enumerate(CLASSES)}

MOST_FLOORS = 0.95  # all floors together
MOST_QUEUED = 100_000
SHARE_PARTS = 10_000  # shares are counted in parts of this
UNBOUNDED_SLOTS = 1_000_000  # of engines of which nobody says how many requests they take at once

_TIERS: Final[dict[str, Class]] = {"flex": "batch", "batch": "batch", "priority": "reserved"}


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


def sold_slots(tok_s: float, slot_ns: float) -> int:
    """The slots that so many weighted tokens/s need, where one token keeps a slot busy for
    `slot_ns`."""
    return ceil(tok_s * slot_ns / 1e9)


def wanted_class(service_tier: str | None) -> Class:
    """The class that OpenAI's `service_tier` asks for; absent, `auto` and unknown ones ask for
    `on_demand`."""
    return _TIERS.get(service_tier or "", "on_demand")


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
