"""Reads how far this gateway trusts replicas and sites, for the gauges that are declared in
`metrics.py` and for what it reports.
"""

from collections import Counter
from collections.abc import Iterator

from isochrone.core.ids import SiteName
from isochrone.core.lifecycle.health import SHOWN, ShownState, worse
from isochrone.gateway import metrics
from isochrone.gateway.context import Context
from isochrone.ports.telemetry import Family, Sample


def health_families(context: Context, now_ns: int) -> Iterator[Family]:
    """Everything, as it stands now."""
    replicas = context.view.replicas
    by_state = Counter(state for _, state, _ in replicas.states())
    sites = Counter(state for state, _ in site_states(context, now_ns).values())
    for metric, counts in ((metrics.REPLICA_STATES, by_state), (metrics.SITE_STATES, sites)):
        yield Family(metric, [Sample((state,), float(counts[state])) for state in SHOWN])
    yield Family(metrics.EJECTIONS, [
        Sample(("replica",), float(replicas.ejections.total())),
        Sample(("site",), float(context.loads.health.ejections)),
    ])
    yield Family(metrics.PROBES, [
        Sample((outcome,), float(count)) for outcome, count in context.site_probes.items()
    ])


def site_states(context: Context, now_ns: int) -> dict[SiteName, tuple[ShownState, str]]:
    """Of every site that serves something: how far it is trusted, of its models the worst, and why
    it is not healthy."""
    view, loads = context.view.table.view, context.loads
    states: dict[SiteName, tuple[ShownState, str]] = {}
    for name in {site for sites in view.deployments.values() for site in sites}:
        noun, load = view.sites.get(name), loads.of(name)
        if noun is None:
            continue
        if noun.draining:
            states[name] = "draining", "it is being emptied"
        elif load is None or load.epoch is None:
            states[name] = "down", "nothing was heard from it"
        elif load.unreachable:
            states[name] = "down", "it could not be connected to"
        elif loads.is_stale(load, now_ns):
            states[name] = "down", "nothing was heard from it lately"
        else:
            states[name] = "healthy", ""
    for name, model, health in loads.health.doubtful():
        known = states.get(name)
        if known is not None and worse(health.state, known[0]):
            states[name] = health.state, f"{model}: {health.why}"
    return states
