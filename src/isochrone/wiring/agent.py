"""Composition root of an agent process: settings and identity in, live adapters around it."""

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.engines.llamacpp import LlamaCppDriver
from isochrone.adapters.engines.openai import OpenAiDriver
from isochrone.adapters.host import find_host
from isochrone.adapters.nats.bus import open_bus
from isochrone.adapters.nats.identity import Credentials
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.adapters.packaged import DATA, load_hardware
from isochrone.agent.process import Agent, AgentPlan, AgentPorts
from isochrone.agent.settings import AgentSettings
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import SiteName
from isochrone.core.rng import stream
from isochrone.core.world.host import HOST_NAME_IN_WORDS, Host, is_host_name
from isochrone.wire.identity import SiteIdentity
from isochrone.wiring.joining import load_identity
from isochrone.wiring.log import configure_log
from isochrone.wiring.settings import load
from isochrone.wiring.stopping import asked_to_stop
from isochrone.wiring.world_file import BUNDLED

BUS_WAIT_S = 0.5  # engines run while the bus is still away


def run(config: Path, *, host: str | None = None) -> None:
    """Run the agent of `config`, on a host that is called `host` if that is given, until SIGTERM or
    SIGINT. Raises InvalidInput."""
    settings = load(config, AgentSettings)
    if host is not None:
        if not is_host_name(host):
            raise InvalidInput([f"--host {host!r}: expected {HOST_NAME_IN_WORDS}"])
        settings = replace(settings, host=host)
    identity = load_identity(settings.identity)
    configure_log("agent", settings.log_level)
    found = find_host(settings.host)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_agent(settings, identity, found))


async def run_agent(settings: AgentSettings, identity: SiteIdentity, host: Host) -> None:
    """Work until a signal asks to stop, then stop the engines."""
    plan = AgentPlan(
        site=SiteName(identity.site),
        host=host,
        control_key=_control_key(settings, identity),
        hardware=load_hardware(),
        digest_interval_s=settings.digest_interval_s,
        probe_interval_s=settings.probe_interval_s,
        start_deadline_s=settings.start_deadline_s,
    )
    clock = SystemClock()
    bus = await open_bus(
        identity.nats_urls, Credentials(jwt=identity.nats_jwt, seed=identity.nats_seed),
        name=f"agent-{identity.site}", clock=clock, rng=stream(secrets.randbits(64), "bus"),
        wait_s=BUS_WAIT_S,
    )
    ports = AgentPorts(
        bus=bus,
        network=SocketNetwork(authorities=settings.tls_ca),
        clock=clock,
        drivers={
            "llamacpp": LlamaCppDriver(settings.logs, find=model_path),
            "openai": OpenAiDriver(clock),
        },
    )
    working = asyncio.ensure_future(Agent(plan, ports).run())
    try:
        with asked_to_stop(working.cancel):
            await working
    except asyncio.CancelledError:
        return
    finally:
        await bus.close()


def model_path(source: str) -> Path:
    """Where a deployment's model lies on this host: bundled with this package, or at its path."""
    if source.startswith(BUNDLED):
        return DATA / "models" / source.removeprefix(BUNDLED)
    return Path(source)


def _control_key(settings: AgentSettings, identity: SiteIdentity) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity.control_key))
    except ValueError as error:
        raise InvalidInput(
            [f"{settings.identity}: control_key is no Ed25519 key; join the site again"]
        ) from error
