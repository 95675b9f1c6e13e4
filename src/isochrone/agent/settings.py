"""Settings of one agent process, parsed once in wiring."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from isochrone.core.world.host import HOST_NAME, HOST_NAME_IN_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """`identity` is the file that joining wrote; `logs` the folder of the engines' logs; `tls_ca`
    a PEM file of authorities to trust besides the system's, for probes of peers with TLS; `host`
    how the machine is called that the agent runs on, by default its node name."""

    identity: Path
    logs: Path
    host: str | None = field(
        default=None, metadata={"pattern": HOST_NAME, "expected": HOST_NAME_IN_WORDS}
    )
    digest_interval_s: float = 1.0
    probe_interval_s: float = 5.0
    start_deadline_s: float = 60.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tls_ca: Path | None = None
