"""Composes a replay: the trace from a file or the package, live sockets, the system's clock."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.adapters.packaged import bundled_trace
from isochrone.core.errors import InvalidInput, NotFound
from isochrone.replay.client import Ingress, Sent, Target
from isochrone.replay.report import Report
from isochrone.replay.session import Plan, Ready, replay
from isochrone.replay.trace import Trace, parse_trace


def open_trace(name: str) -> Trace:
    """The trace in the file `name`, or the packaged one of that name. Raises InvalidInput."""
    path = Path(name)
    if not path.exists():
        try:
            path = bundled_trace(name)
        except NotFound as error:
            raise InvalidInput([f"no file {name}, and {error.message}"]) from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read: {error.strerror}"]) from error
    return parse_trace(data, path.name)


def ingress(name: str, endpoint: str) -> Ingress:
    """The ingress at an endpoint URL that ends in /v1. Raises InvalidInput."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise InvalidInput([f"{endpoint} is no http(s) URL"])
    tls = parts.scheme == "https"
    return Ingress(
        name=name, host=parts.hostname, port=parts.port or (443 if tls else 80), tls=tls,
        base_path=parts.path.rstrip("/"),
    )


def run_replay(
    trace: Trace, plan: Plan, target: Target, *, on_ready: Callable[[Ready], None],
    on_sent: Callable[[Sent], None],
) -> Report:
    """Replay against a live cloud. Raises InvalidInput and Unavailable."""
    return asyncio.run(
        replay(
            trace, plan, target, SocketNetwork(), SystemClock(), on_ready=on_ready,
            on_sent=on_sent,
        )
    )
