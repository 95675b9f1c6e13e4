"""Decides which host a replica runs on, as far as its agent can know."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from isochrone.core.ids import HostName
from isochrone.core.world.model import EngineSpec


def host_of(engine: EngineSpec, own: HostName) -> HostName | None:
    """Where a replica with this engine runs, for the agent on the host `own`: there, when the agent
    starts the engine or reaches its upstream at a loopback address. None for any other upstream,
    since an address says nothing about machines."""
    if engine.kind == "llamacpp" or _is_loopback(engine.source):
        return own
    return None


def _is_loopback(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
