"""Settings of the control process: one TOML file, parsed once at its start."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """`database` is the PostgreSQL connection string that control works with, `owner_database` that
    of the tables' owner, who only migrates; without it control logs in as the owner and steps
    down. `nats_credentials` is the login of control; `nats_secrets` what site logins are signed
    with; `signing_key` the Ed25519 seed (hex) of the view; `admin_key` the operator's key. The hash
    of the latter is kept in the book. `world` is made to hold in the book at the start, and the
    sheet of the TOML file `prices` is added to a book that has none of its id. `public_url` is
    where sites and people reach the API. `archive` is the folder that days of usage are detached to
    `retain_usage_days` after they are over; all copies of control share it. Without one all days
    stay in the book. `experiments` is the folder of experiments that operators have control play,
    shared as well; without one it plays none. None may take longer than `experiment_most_s`.
    """

    port: int
    database: str
    nats_urls: tuple[str, ...]
    nats_credentials: Path
    nats_secrets: Path
    signing_key: Path
    admin_key: Path
    public_url: str
    host: str = "127.0.0.1"
    world: Path | None = None
    prices: Path | None = None
    evidence_wait_s: float = 30.0
    owner_database: str | None = None
    archive: Path | None = None
    retain_usage_days: int = field(default=92, metadata={"min": 32, "max": 36_500})
    experiments: Path | None = None
    experiment_most_s: float = 7200.0
