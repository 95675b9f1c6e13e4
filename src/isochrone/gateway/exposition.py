"""Writes metrics as text that scrapers read: Prometheus's format, or OpenMetrics.

Written here because it runs in the event loop of a gateway that is busy: prometheus_client, by
whose parser the tests check this, takes 10 to 30 microseconds a line, and there may be thousands.
"""

from collections.abc import Iterable

from isochrone.ports.telemetry import Distribution, Family

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OPENMETRICS_END = "# EOF\n"


def accepts_openmetrics(accept: str) -> bool:
    """Whether a scraper that sends this `accept` header reads OpenMetrics, which has units."""
    kind = OPENMETRICS.partition(";")[0]
    return any(each.partition(";")[0].strip() == kind for each in accept.split(","))


def text_of(family: Family, *, openmetrics: bool) -> str:
    """The lines of one metric."""
    metric = family.metric
    name = metric.name
    if metric.kind == "counter" and openmetrics:
        name = name.removesuffix("_total")
    lines = [f"# HELP {name} {metric.help}\n# TYPE {name} {metric.kind}\n"]
    if metric.unit and openmetrics:
        lines.append(f"# UNIT {name} {metric.unit}\n")
    bounds = [f'le="{float(bound)!r}"' for bound in metric.buckets] + ['le="+Inf"']
    for sample in family.samples:
        pairs = ",".join(
            f'{label}="{_escaped(value)}"'
            for label, value in zip(metric.labels, sample.labels, strict=True)
        )
        labels = f"{{{pairs}}}" if pairs else ""
        if isinstance(sample, Distribution):
            lines += _histogram(name, sample, bounds, labels, f"{pairs}," if pairs else "")
        else:
            lines.append(f"{metric.name}{labels} {_number(sample.value)}\n")
    return "".join(lines)


def _histogram(
    name: str, sample: Distribution, bounds: Iterable[str], labels: str, before: str
) -> list[str]:
    lines, total = [], 0
    for bound, count in zip(bounds, sample.counts, strict=True):
        total += count
        lines.append(f"{name}_bucket{{{before}{bound}}} {total}\n")
    lines.append(f"{name}_count{labels} {total}\n{name}_sum{labels} {_number(sample.sum)}\n")
    return lines


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return repr(value)


def _escaped(text: str) -> str:
    if "\\" in text or '"' in text or "\n" in text:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text
