"""Settings of one agent process, parsed once in wiring."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """`identity` is the file that joining wrote; `logs` the folder of the engines' logs; `tls_ca`
    a PEM file of authorities to trust besides the system's, for probes of peers with TLS."""

    identity: Path
    logs: Path
    digest_interval_s: float = 1.0
    probe_interval_s: float = 5.0
    start_deadline_s: float = 60.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tls_ca: Path | None = None
