"""Makes the way of a gateway's spans to a collector, as its settings want it."""

from isochrone import __version__
from isochrone.gateway.settings import GatewaySettings
from isochrone.ports.telemetry import SpanSink

SERVICE = "isochrone-gateway"


def spans_of(settings: GatewaySettings, site: str) -> SpanSink | None:
    """Where spans go; None when nobody traces."""
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return None
    # Only who traces pays for the SDK: several megabytes, and a tenth of a second at the start.
    from isochrone.adapters.telemetry.otlp import OtlpSpans

    return OtlpSpans(
        endpoint, service=SERVICE, version=__version__, instance=f"{site}-{settings.worker}"
    )
