"""Where `up` and the client commands meet unless told otherwise. Light: imported at every start."""

from collections.abc import Mapping
from pathlib import Path


def default_folder(environment: Mapping[str, str]) -> Path:
    """The default state folder, by the XDG base directories."""
    base = environment.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "isochrone" / "local"
