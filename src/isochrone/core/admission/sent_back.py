"""What a site asks of its queue about a request that would rather go elsewhere than wait for long.

How long it may wait is its ingress's to say, see `core/routing/patience.py`.
"""

from isochrone.core.admission.class_line import victim_of
from isochrone.core.admission.classes import CLASSES, RANK
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.site_queue import SiteQueue
from isochrone.core.world.tenant import Class


def begins_in_ms(
    queue: SiteQueue, class_: Class, tenant: str, engines_ms: float, now_ns: int
) -> float:
    """When a request that came now would begin to be read: in its turn, and once the engines have
    read what they were sent before; with a slot free or given back for it, or while nobody knows
    how long a turn takes, when the engine that is soonest done has done that (`engines_ms`)."""
    if queue.running < queue.slots and queue.reading.is_full():
        return _read_in_ns(queue, class_) / 1e6
    if (queue.queued or queue.running >= queue.slots) and not queue.guessed:
        if _has_way(queue, class_):
            return engines_ms
        return queue.expected_wait_ns(class_, tenant, now_ns) / 1e6
    return engines_ms


def costs_others(queue: SiteQueue, class_: Class, tenant: str) -> bool:
    """Whether a request that came now would have another one turned away, whose place in a full
    queue it took, or stopped: who goes elsewhere anyway is not even offered then."""
    line = queue.line(class_)
    if line.order.queued >= line.queue_most:
        return line.order.crowder(tenant) is not None
    return queue.running >= queue.slots and _has_way(queue, class_)


def leave(queue: SiteQueue, ticket: Ticket, now_ns: int) -> None:
    """A request that the queue has just taken goes elsewhere after all."""
    if ticket.state == "queued":
        queue.withdrawn(ticket, now_ns)
    else:
        queue.finished(ticket, 0, now_ns)


def _has_way(queue: SiteQueue, class_: Class) -> bool:
    """Whether its class is below its floor, and a request is there that stops for it."""
    line = queue.line(class_)
    if line.running + line.order.queued >= line.floor:
        return False
    return victim_of([queue.line(each) for each in CLASSES], RANK[class_]) is not None


def _read_in_ns(queue: SiteQueue, class_: Class) -> int:
    """Once engines have read what they were sent, and what waits in its class and in firmer ones.
    """
    tokens = 0
    for each in CLASSES[: RANK[class_] + 1]:
        tokens += queue.line(each).order.prompt_tokens
    return queue.reading.ahead_ns() + queue.reading.takes_ns(tokens)
