"""Settings of the console: one TOML file, parsed once at its start."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings:
    """`control_url` is the Control API that pages call. `public_url` is where browsers reach the
    console; with https, cookies go over TLS only. `state` is a folder that is its own."""

    port: int
    control_url: str
    public_url: str
    state: Path
    host: str = "127.0.0.1"
