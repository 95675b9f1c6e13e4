"""Composition root of a gateway process: settings and identity in, live adapters around it."""

import asyncio
from pathlib import Path
from random import SystemRandom

import uvloop

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.counters.alone import LoneCounters
from isochrone.adapters.credentials import read_credential
from isochrone.adapters.disk.files import FileDisk
from isochrone.adapters.nats.bus import open_bus
from isochrone.adapters.nats.identity import Credentials
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.adapters.network.tls import certificate_of
from isochrone.adapters.packaged import load_blocs, load_hardware
from isochrone.adapters.telemetry.process import process_use
from isochrone.core.rng import Random
from isochrone.gateway.key_counts import ROW_CELLS
from isochrone.gateway.process import Gateway, Ports
from isochrone.gateway.settings import GatewaySettings
from isochrone.gateway.view_cache import Data
from isochrone.wiring.gateway_settings import load_gateway
from isochrone.wiring.gateway_start import freeze_start
from isochrone.wiring.joining import load_identity
from isochrone.wiring.log import configure_log, write_output
from isochrone.wiring.stopping import asked_to_stop
from isochrone.wiring.telemetry import spans_of


def run(config: Path) -> None:
    """Run the gateway of `config` until SIGTERM or SIGINT. Raises InvalidInput."""
    settings = load_gateway(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_gateway(settings))


async def run_gateway(settings: GatewaySettings) -> None:
    """Serve until a signal asks to stop."""
    configure_log("gateway", settings.log_level)
    identity = load_identity(settings.identity)
    spans = spans_of(settings, identity.site)
    certificate = certificate_of(settings.tls_certificate, settings.tls_key)
    network = SocketNetwork(authorities=settings.tls_ca)
    clock, rng = SystemClock(), Random(SystemRandom().getrandbits(128))
    bus = await open_bus(
        identity.nats_urls,
        Credentials(jwt=identity.nats_jwt, seed=identity.nats_seed),
        name=f"gateway-{identity.site}",
        clock=clock,
        rng=rng,
    )
    disk = FileDisk(settings.journal)
    ports = Ports(
        counters=LoneCounters(ROW_CELLS),
        clock=clock, network=network, bus=bus, disk=disk, rng=rng,
        read_credential=read_credential, write_lines=write_output,
        certificate=certificate, process_use=process_use, spans=spans,
    )
    data = Data(blocs=load_blocs(), hardware=load_hardware())
    gateway = Gateway(settings, identity, ports, data)
    stop = asyncio.Event()
    try:
        with asked_to_stop(stop.set):
            await gateway.run(stop, freeze_start)
    finally:
        if spans is not None:
            spans.close()
        await bus.close()
        disk.close()
