"""Reads the table `admission` of a site or a deployment: floors, shares, ceilings and queues."""

from isochrone.core.admission.classes import (
    CLASSES,
    MOST_QUEUED,
    SHARE_PARTS,
    check_policy,
)
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.wiring.toml_table import TomlTable

LONGEST_WAIT_MS = 86_400_000.0
LONGEST_RECLAIM_MS = 3_600_000.0
MOST_OUTPUT_WEIGHT = 100


def read_admission(owner: TomlTable) -> SitePolicy | None:
    """The policy that the table of `owner` states, None when there is no such table. What it leaves
    out is as usual; problems are noted."""
    table = owner.table("admission")
    if table is None:
        return None
    usual = SitePolicy()
    reserved, on_demand, batch = (
        _rule(table.table(class_), rule)
        for class_, rule in zip(CLASSES, usual.rules(), strict=True)
    )
    policy = SitePolicy(
        reserved=reserved, on_demand=on_demand, batch=batch,
        reclaim_ms=table.number("reclaim_ms", 0, LONGEST_RECLAIM_MS, default=usual.reclaim_ms),
        output_weight=table.integer(
            "output_weight", 1, MOST_OUTPUT_WEIGHT, default=usual.output_weight
        ),
    )
    table.finish()
    for problem in check_policy(policy):
        table.problem(problem)
    return policy


def _rule(table: TomlTable | None, usual: ClassRule) -> ClassRule:
    if table is None:
        return usual
    rule = ClassRule(
        floor=table.number("floor", 0, 1, default=usual.floor),
        share=table.number("share", 1 / SHARE_PARTS, SHARE_PARTS, default=usual.share),
        ceiling=table.number("ceiling", 0, 1, default=usual.ceiling),
        queue_most=table.integer("queue_most", 0, MOST_QUEUED, default=usual.queue_most),
        wait_ms=table.number("wait_ms", 0, LONGEST_WAIT_MS, default=usual.wait_ms),
    )
    table.finish()
    return rule
