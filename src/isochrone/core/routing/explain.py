"""Puts a decision and its ground together again: every site that serves the model, once.

Pure, and the only way in which decisions are shown: by the Control API, the CLI and the tests.
"""

import numpy as np

from isochrone.core.estimate.transfer import transfer_ms
from isochrone.core.routing.choice import Candidate, Decision, Explanation, Ground, RunnerUp

DIGITS = 3  # of a millisecond; decisions keep float32


def explain(ground: Ground, decision: Decision) -> Explanation | None:
    """The choice as far as it was kept; None when the decision cannot have been made on this
    ground."""
    count = len(ground.open_sites)
    if decision.ground != ground.id or decision.chosen >= count:
        return None
    if decision.is_brief:
        return _in_brief(ground, decision)
    arrays = (decision.costs_ms, decision.queues_ms, decision.decodes_ms or bytes(4 * count))
    if any(len(array) != 4 * count for array in arrays):
        return None
    costs, queues, decodes = (np.frombuffer(array, dtype="<f4") for array in arrays)
    if not np.isfinite(np.stack([queues, decodes])[:, np.isfinite(costs)]).all():
        return None  # another site's word, and no time that anything takes
    order = sorted(range(count), key=lambda index: (index != decision.chosen, costs[index]))
    candidates = [
        _candidate(
            ground, decision, index,
            cost_ms=costs.item(index), queue_ms=queues.item(index), decode_ms=decodes.item(index),
        )
        for index in order
        if np.isfinite(costs[index])
    ]
    runner_up = None
    if decision.chosen >= 0 and len(candidates) > 1:
        runner_up = RunnerUp(site=candidates[1].site, cost_ms=candidates[1].cost_ms)
    return _explanation(ground, decision, candidates, runner_up, eligible=len(candidates))


def _in_brief(ground: Ground, decision: Decision) -> Explanation | None:
    """What is known of a choice whose other candidates' terms were not kept."""
    if decision.runner_up >= len(ground.open_sites) or decision.predicted_ttft_ms is None:
        return None
    runner_up = None
    if decision.runner_up >= 0:
        site = ground.open_sites[decision.runner_up].site
        runner_up = RunnerUp(site=site, cost_ms=round(decision.runner_up_ms, DIGITS))
    chosen = _candidate(
        ground, decision, decision.chosen,
        cost_ms=decision.predicted_ttft_ms + decision.decode_ms, queue_ms=decision.chosen_queue_ms,
        decode_ms=decision.decode_ms,
    )
    return _explanation(ground, decision, [chosen], runner_up, eligible=decision.eligible)


def _explanation(
    ground: Ground, decision: Decision, candidates: list[Candidate], runner_up: RunnerUp | None, *,
    eligible: int,
) -> Explanation:
    return Explanation(
        candidates=tuple(candidates),
        refused=(*decision.refused, *ground.refused),
        allowed_exists=ground.allowed_exists,
        elsewhere=ground.elsewhere,
        is_full=not decision.is_brief,
        eligible=eligible,
        runner_up=runner_up,
    )


def _candidate(
    ground: Ground, decision: Decision, index: int, *, cost_ms: float, queue_ms: float,
    decode_ms: float,
) -> Candidate:
    """One open site. What its cost leaves beside the other terms is prefill."""
    site, chosen = ground.open_sites[index], index == decision.chosen
    way_ms = transfer_ms(decision.body_bytes, site.rtt_ms)
    prefill_ms = max(cost_ms - site.rtt_ms - way_ms - queue_ms - decode_ms, 0.0)
    if chosen:
        prefill_ms, decode_ms = decision.prefill_ms, decision.decode_ms
    rtt_ms, way_ms, queue_ms, prefill_ms, decode_ms = (
        round(term, DIGITS) for term in (site.rtt_ms, way_ms, queue_ms, prefill_ms, decode_ms)
    )
    return Candidate(
        site=site.site,
        cost_ms=round(rtt_ms + way_ms + queue_ms + prefill_ms + decode_ms, DIGITS),
        rtt_ms=rtt_ms,
        rtt_source=site.rtt_source,
        queue_ms=queue_ms,
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        digest_age_ms=decision.digest_age_ms if chosen else None,
        transfer_ms=way_ms,
    )
