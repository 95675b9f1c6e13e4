"""Settings of one gateway process; parsed once from its TOML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """`identity` is the file that joining wrote; `journal` the folder of the usage journal.

    `connect_timeout_s` is shared by all connection attempts of one request, so that a request for
    which nobody is healthy is refused within it. `drain_timeout_s` is how long open requests may
    go on after SIGTERM. A view that is older than `view_warn_s` is warned of. `tls_certificate` and
    `tls_key` are PEM files, both or none; `tls_ca` holds authorities to trust besides the system's.
    `alone`: this process tells its gateway everything, from one file; replicas of other sites are
    then asked directly. It may be `worker` number 0.. of `workers` on one port.

    A request of the class batch may take `batch_wait_s` longer than others until its first byte,
    and in all, while it waits for its turn.

    Where requests come one by one and answers lately came within `awake_us`, the process waits so
    long without sleeping; 0 lets it always sleep. A request stays at this site while its first
    token is expected within `ttft_target_ms`; 0 for wherever it is soonest.

    A stream that says nothing for `between_events_timeout_s` is over. Retries are at most
    `retry_ratio` of all requests and `retry_min_per_s` besides. A replica is not asked after
    `breaker_failures` in a row, or a share of `breaker_failure_rate` of the last 20 answers, for a
    hold between the two that are given; at most `eject_share` of the replicas of a site, or of the
    sites, are left out so. What comes back gets its usual work within `recovery_s`.

    Bodies that have not come in whole may take `max_uploading_bytes` together. Beyond
    `max_connections` of clients, new ones are closed.

    The whole choice is kept of a share of `explain_sample` of the requests to which nothing unusual
    happened, and of all others.

    Metrics are served at `metrics_port` (0: any), worker n's at n ports above it, if one is given.
    A share of `otlp_sample_ratio` of all traces goes to the collector at `otlp_endpoint`, its full
    URL, if one is given.
    """

    identity: Path
    port: int
    journal: Path
    host: str = "127.0.0.1"
    max_head_bytes: int = 32_768
    max_body_bytes: int = 16_777_216
    max_answer_bytes: int = 67_108_864
    digest_stale_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    batch_wait_s: float = field(default=600.0, metadata={"min": 0})
    total_timeout_s: float = 600.0
    connect_timeout_s: float = 2.0
    head_timeout_s: float = 30.0
    body_timeout_s: float = 120.0
    idle_timeout_s: float = 75.0
    drain_timeout_s: float = 5.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    view_warn_s: float = 60.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    alone: bool = False
    worker: int = 0
    workers: int = 1
    between_events_timeout_s: float = 60.0
    retry_ratio: float = field(default=0.1, metadata={"min": 0, "max": 1})
    retry_min_per_s: float = field(default=10.0, metadata={"min": 0, "max": 1_000_000})
    breaker_failures: int = field(default=5, metadata={"min": 1, "max": 20})
    breaker_failure_rate: float = field(default=0.5, metadata={"min": 0.05, "max": 1})
    breaker_first_hold_s: float = 1.0
    breaker_longest_hold_s: float = 30.0
    eject_share: float = field(default=0.5, metadata={"min": 0, "max": 1})
    recovery_s: float = field(default=10.0, metadata={"min": 0})
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = field(default=None, metadata={"min": 0, "max": 65_000})
    otlp_endpoint: str | None = None
    otlp_sample_ratio: float = field(default=1.0, metadata={"min": 0, "max": 1})
    max_uploading_bytes: int = 536_870_912
    max_connections: int = field(default=20_000, metadata={"min": 1})
    explain_sample: float = field(default=0.0625, metadata={"min": 0, "max": 1})
    awake_us: float = field(default=100.0, metadata={"min": 0, "max": 1000})
    ttft_target_ms: float = field(default=200.0, metadata={"min": 0})


def contradictions(settings: GatewaySettings) -> list[str]:
    """What no setting tells alone."""
    found = []
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        found.append("tls_certificate and tls_key belong together: only one is set")
    if settings.otlp_endpoint is not None and not _is_collector(settings.otlp_endpoint):
        found.append(
            "otlp_endpoint: must be a collector's full URL, such as http://127.0.0.1:4318/v1/traces"
        )
    if settings.metrics_port and settings.metrics_port == settings.port:
        found.append("metrics_port and port are the same")
    elif settings.metrics_port and 0 < settings.port - settings.metrics_port < settings.workers:
        last = settings.metrics_port + settings.workers - 1
        found.append(
            f"port {settings.port} is a port of metrics: {settings.workers} workers have "
            f"{settings.metrics_port} to {last}"
        )
    if settings.breaker_first_hold_s > settings.breaker_longest_hold_s:
        found.append("breaker_first_hold_s is longer than breaker_longest_hold_s")
    return found


def _is_collector(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and len(parts.path) > 1
