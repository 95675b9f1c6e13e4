"""Composition root of a name server: one file in, live adapters around it."""

import asyncio
import secrets
from pathlib import Path

import structlog
import uvloop

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.disk.files import FileDisk
from isochrone.adapters.nats.bus import NatsBus, open_bus
from isochrone.adapters.nats.identity import Credentials
from isochrone.adapters.network.datagrams import listen_datagrams
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.adapters.packaged import load_blocs, load_round_trips
from isochrone.core.errors import Unavailable
from isochrone.core.rng import Random
from isochrone.dns.process import Dns, Ports
from isochrone.wire.identity import SiteIdentity
from isochrone.wiring.dns_file import DnsFile, load_dns
from isochrone.wiring.dns_reload import DnsReloader, Stamps, stamps_of
from isochrone.wiring.joining import load_identity
from isochrone.wiring.log import configure_log
from isochrone.wiring.stopping import asked_to_stop

NS_PER_S = 1_000_000_000

log = structlog.get_logger()


def run(config: Path) -> None:
    """Answer as `config` says until SIGTERM or SIGINT. Raises InvalidInput for a bad file,
    Unavailable when a port cannot be had."""
    clock = SystemClock()
    taken = stamps_of(config)
    file = load_dns(config, serial=clock.wall_ns() // NS_PER_S)
    configure_log("dns", file.settings.log_level)
    if file.skipped:
        log.warning("geofeed_lines_skipped", lines=file.skipped)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, file, taken, clock))
    except OSError as error:
        raise Unavailable(f"the name server cannot run: {error}") from error
    except ExceptionGroup as group:
        failed, others = group.split(OSError)
        if failed is None or others is not None:
            raise
        causes = "; ".join(str(each) for each in failed.exceptions)
        raise Unavailable(f"the name server cannot run: {causes}") from group


async def _serve(config: Path, file: DnsFile, taken: Stamps, clock: SystemClock) -> None:
    settings = file.settings
    rng = Random(secrets.randbits(128))
    identity = None if settings.identity is None else load_identity(settings.identity)
    bus = None if identity is None else await _bus_of(identity, clock, rng)
    disk = None if bus is None or settings.state is None else FileDisk(settings.state)
    ports = Ports(
        clock=clock, network=SocketNetwork(authorities=settings.tls_ca), rng=rng, bus=bus,
        disk=disk, listen_udp=listen_datagrams,
    )
    dns = Dns(
        settings, file.told, ports, control_key=None if identity is None else identity.control_key,
        blocs=load_blocs(), by_distance=load_round_trips().by_distance,
    )
    reloader = DnsReloader(config, file, taken, dns.tell, lambda: clock.wall_ns() // NS_PER_S)
    stop = asyncio.Event()
    following = asyncio.ensure_future(reloader.run())
    try:
        with asked_to_stop(stop.set, hang_up=reloader.ask):
            await dns.run(stop)
    finally:
        following.cancel()
        await asyncio.wait([following])
        if bus is not None:
            await bus.close()
        if disk is not None:
            disk.close()


async def _bus_of(identity: SiteIdentity, clock: SystemClock, rng: Random) -> NatsBus:
    return await open_bus(
        identity.nats_urls, Credentials(jwt=identity.nats_jwt, seed=identity.nats_seed),
        name=f"dns-{identity.site}", clock=clock, rng=rng,
    )
