"""SitePolicy: how the classes share the slots that a site has for a model."""

from dataclasses import dataclass, field


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
