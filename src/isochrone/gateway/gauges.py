"""Reads how things stand in a gateway, for the gauges that are declared in `metrics.py`.

Nothing here is counted as requests pass: it is looked up when somebody scrapes.
"""

from collections.abc import Callable, Iterator, Mapping

from isochrone import __version__
from isochrone.gateway import metrics
from isochrone.gateway.context import Context
from isochrone.gateway.entitled_gauges import entitled_families
from isochrone.gateway.health_gauges import health_families
from isochrone.gateway.letters import Letters
from isochrone.gateway.limit_gauges import limit_families
from isochrone.gateway.queue_gauges import queue_families
from isochrone.gateway.server import Server
from isochrone.gateway.shipping import Shipper
from isochrone.ports.telemetry import Family, Metric, ProcessUse, Sample, SpanCounts

_SOURCES = ("client", "peer")
_NO_SPANS = SpanCounts(exported=0, dropped=0, failed=0)


class Gauges:
    """Of one gateway: what its requests share, its server, and who ships its usage."""

    def __init__(
        self, context: Context, server: Server, shipper: Shipper, letters: Letters,
        process_use: Callable[[], ProcessUse],
    ) -> None:
        self._letters = letters
        self._context = context
        self._server = server
        self._shipper = shipper
        self._process_use = process_use

    def families(self) -> Iterator[Family]:
        """Everything, as it stands now."""
        now_ns = self._context.clock.monotonic_ns()
        yield from self._open()
        yield from self._tries(now_ns)
        yield from entitled_families(self._context.entitled, self._letters, now_ns)
        yield from limit_families(self._context.shared_limits, now_ns)
        yield from queue_families(self._context.queues)
        yield from health_families(self._context, now_ns)
        yield from self._calibrations()
        yield from self._usage(now_ns)
        yield from self._knowledge(now_ns)
        yield from self._states(now_ns)
        yield from self._process()

    def _open(self) -> list[Family]:
        requests, streams = dict.fromkeys(_SOURCES, 0), dict.fromkeys(_SOURCES, 0)
        busy = 0
        for exchange in self._context.exchanges:
            source = "client" if exchange.reply.hop is None else "peer"
            requests[source] += 1
            streams[source] += exchange.head_sent
            busy += exchange.attempt is not None
        idle = self._context.pool.idle_count
        return [
            _by_label(metrics.OPEN_REQUESTS, requests),
            _by_label(metrics.OPEN_STREAMS, streams),
            _one(metrics.CLIENT_CONNECTIONS, len(self._server.connections)),
            _by_label(metrics.UPSTREAM_CONNECTIONS, {"busy": busy, "idle": idle}),
        ]

    def _tries(self, now_ns: int) -> list[Family]:
        context = self._context
        retries = context.retries
        return [
            _by_label(metrics.RETRIES, {"yes": retries.spent, "no": retries.refused}),
            _one(metrics.RETRY_BUDGET, retries.left(now_ns)),
        ]

    def _calibrations(self) -> list[Family]:
        known = self._context.outcomes.calibrations.items()
        return [
            _by_label(metrics.CALIBRATION_ERROR, {name: each.error for name, each in known}),
            _by_label(metrics.CALIBRATION_BIAS, {name: each.bias for name, each in known}),
        ]

    def _usage(self, now_ns: int) -> list[Family]:
        context = self._context
        journal = context.journal.figures()
        spans = _NO_SPANS if context.spans is None else context.spans.counts()
        began_ns = journal.sync_began_ns
        return [
            _one(metrics.JOURNAL_RESERVED, journal.reserved_bytes),
            _one(metrics.JOURNAL_FREE, journal.free_bytes),
            _one(metrics.JOURNAL_BATCHES, journal.waiting_batches),
            _one(metrics.JOURNAL_HELD, journal.held_records),
            _one(metrics.JOURNAL_SYNC, 0 if began_ns is None else (now_ns - began_ns) / 1e9),
            _one(metrics.SHIPPING, self._shipper.away_s(now_ns)),
            _by_label(metrics.SPANS, {
                "exported": spans.exported, "dropped": spans.dropped, "failed": spans.failed,
            }),
        ]

    def _knowledge(self, now_ns: int) -> list[Family]:
        context = self._context
        cache, view = context.view, context.view.table.view
        states = dict.fromkeys(("fresh", "stale", "unreachable", "unheard"), 0)
        oldest_ms = 0.0
        for site in view.sites:
            load = context.loads.of(site)
            if load is None or load.epoch is None:
                states["unheard"] += 1
            elif load.unreachable:
                states["unreachable"] += 1
            elif context.loads.is_stale(load, now_ns):
                states["stale"] += 1
            else:
                states["fresh"] += 1
                oldest_ms = max(oldest_ms, context.loads.stale_ms(load, now_ns))
        offset_ms = context.skew.offset_ms()
        return [
            _one(metrics.VIEW_AGE, cache.age_s),
            _by_label(metrics.VIEW_ENTRIES, {
                "sites": len(view.sites), "models": len(view.models),
                "policies": len(view.policies), "keys": len(cache.keys),
            }),
            _by_label(metrics.DIGESTS, states),
            _one(metrics.DIGEST_AGE, oldest_ms / 1000),
            _one(metrics.PREFIXES, len(context.prefixes)),
            _one(metrics.SESSIONS, len(context.sessions)),
            Family(metrics.CLOCK_OFFSET, []) if offset_ms is None
            else _one(metrics.CLOCK_OFFSET, offset_ms / 1000),
        ]

    def _states(self, now_ns: int) -> list[Family]:
        context = self._context
        heard = context.view.synced and context.has_heard(now_ns)
        ready = heard and context.journal.refusal() is None
        names = (
            __version__, context.site, context.country or "unknown", str(context.settings.worker),
        )
        return [
            _one(metrics.READY, ready),
            _one(metrics.DRAINING, self._server.draining),
            Family(metrics.INFO, [Sample(names, 1)]),
        ]

    def _process(self) -> list[Family]:
        use = self._process_use()
        return [
            _one(metrics.CPU, use.cpu_s),
            _one(metrics.MEMORY, use.resident_bytes),
            _one(metrics.OPEN_FDS, use.open_fds),
            _one(metrics.MOST_FDS, use.most_fds),
            _one(metrics.STARTED, use.started_at),
        ]


def _one(metric: Metric, value: float) -> Family:
    return Family(metric, [Sample((), float(value))])


def _by_label(metric: Metric, values: Mapping[str, float]) -> Family:
    return Family(metric, [Sample((name,), value) for name, value in values.items()])
