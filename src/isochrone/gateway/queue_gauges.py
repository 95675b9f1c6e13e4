"""Reads how the queues of this gateway's engines stand, and what was counted of them."""

from collections.abc import Callable, Iterator, Mapping

from isochrone.core.admission.class_line import ClassLine
from isochrone.core.admission.classes import CLASSES, UNBOUNDED_SLOTS
from isochrone.gateway import metrics
from isochrone.gateway.site_queues import SiteQueues
from isochrone.ports.telemetry import Distribution, Family, Metric, Sample


def queue_families(queues: SiteQueues) -> Iterator[Family]:
    """Everything, as it stands now; models at several sites together."""
    yield _by_class(queues, metrics.QUEUE_RUNNING, lambda line: line.running)
    yield _by_class(queues, metrics.QUEUE_WAITING, lambda line: line.order.queued)
    slots: dict[str, int] = {}
    for place in queues.places.values():
        slots[place.model] = slots.get(place.model, 0) + place.queue.slots
    yield Family(metrics.QUEUE_SLOTS, [
        Sample((model,), float(count)) for model, count in slots.items()
        if count < UNBOUNDED_SLOTS
    ])
    yield _by_class(queues, metrics.QUEUE_FLOOR, lambda line: line.floor)
    yield Family(metrics.QUEUE_REFUSALS, [
        Sample(labels, float(count)) for labels, count in queues.refusals.items()
    ])
    yield Family(metrics.QUEUE_STOPS, [
        Sample((class_,), float(queues.stops[class_])) for class_ in CLASSES
    ])
    yield _spread(metrics.QUEUE_WAIT, queues.waits, queues.waited_s)
    yield _spread(metrics.RECLAIM, queues.reclaims, queues.reclaimed_s)


def _by_class(
    queues: SiteQueues, metric: Metric, read: Callable[[ClassLine], int]
) -> Family:
    counts: dict[tuple[str, str], int] = {}
    for place in queues.places.values():
        if metric is metrics.QUEUE_FLOOR and place.queue.slots >= UNBOUNDED_SLOTS:
            continue  # a part of what nobody knows
        for class_ in CLASSES:
            labels = (place.model, class_)
            counts[labels] = counts.get(labels, 0) + read(place.queue.line(class_))
    return Family(metric, [Sample(labels, float(count)) for labels, count in counts.items()])


def _spread(
    metric: Metric, counts: Mapping[str, list[int]], sums_s: Mapping[str, float]
) -> Family:
    return Family(metric, [
        Distribution((class_,), tuple(each), sums_s[class_]) for class_, each in counts.items()
    ])
