"""Settings of one name server process: the table `[dns]` of its TOML file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """`zone` is the name that is answered and everything below it. With `identity` the sites come
    from the signed view, as that site's gateway would read it, and `state` is the folder that
    keeps the last one; without, from the file itself.

    It listens at each of `hosts`, on UDP and TCP. Answers hold for `ttl_s`, those that a name or an
    address does not exist for `negative_ttl_s`. An answer has at most `most_addresses`, of
    ingresses within `tie_ms` or `tie_share` of the nearest. `transit` is the rule of the zone's own
    name. `subnet_files` are CSV files of client subnets and their places.

    A site whose digest is older than `digest_stale_s` is left out, and so is one whose gateway
    fails three probes in a row: `ready` asks it for /ready, `connect` only connects.

    A network (/24, /56) gets `responses_per_s` over UDP; beyond that it is told to use TCP. 0 is no
    limit. Datagrams have at most `udp_bytes`. `explain` answers TXT queries, over TCP.
    """

    zone: str
    identity: Path | None = None
    state: Path | None = None
    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 53
    contact: str | None = None
    ttl_s: int = field(default=30, metadata={"min": 1, "max": 3600})
    negative_ttl_s: int = field(default=10, metadata={"min": 1, "max": 3600})
    most_addresses: int = field(default=3, metadata={"min": 1, "max": 8})
    tie_ms: float = field(default=3.0, metadata={"min": 0, "max": 1000})
    tie_share: float = field(default=0.05, metadata={"min": 0, "max": 1})
    transit: tuple[str, ...] = ("any",)
    subnet_files: tuple[str, ...] = ()
    digest_stale_s: float = 5.0
    probe: Literal["ready", "connect", "none"] = "ready"
    probe_interval_s: float = 5.0
    probe_timeout_s: float = 2.0
    tls_ca: Path | None = None
    responses_per_s: int = field(default=500, metadata={"min": 0})
    udp_bytes: int = field(default=1232, metadata={"min": 512, "max": 4096})
    max_connections: int = field(default=256, metadata={"min": 1})
    idle_timeout_s: float = 10.0
    explain: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
