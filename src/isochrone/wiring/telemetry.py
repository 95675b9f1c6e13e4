"""Makes the way of a gateway's spans to a collector, as its settings want it."""

from urllib.parse import urlsplit

from isochrone import __version__
from isochrone.core.errors import InvalidInput
from isochrone.gateway.settings import GatewaySettings
from isochrone.ports.telemetry import SpanSink
from isochrone.wiring.settings import masked

SERVICE = "isochrone-gateway"


def spans_of(settings: GatewaySettings, site: str) -> SpanSink | None:
    """Where spans go; None when nobody traces. Raises InvalidInput for an endpoint that is none."""
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or len(parts.path) < 2:
        raise InvalidInput([
            "otlp_endpoint: must be a collector's full URL, such as "
            f"http://127.0.0.1:4318/v1/traces, not {masked(repr(endpoint))}"
        ])
    # Only who traces pays for the SDK: several megabytes, and a tenth of a second at the start.
    from isochrone.adapters.telemetry.otlp import OtlpSpans

    return OtlpSpans(
        endpoint, service=SERVICE, version=__version__, instance=f"{site}-{settings.worker}"
    )
