"""Composition root of a gateway that runs alone: one file in, no NATS and no control around it.

The process makes a signing key, tells its own gateway what the file says, and tells it again what
changed whenever the file changes. A file with problems changes nothing.
"""

import asyncio
import dataclasses
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.alone.bus import AloneBus, DurableStore, NoStore
from isochrone.adapters.alone.usage_file import UsageFile
from isochrone.adapters.clock import SystemClock
from isochrone.adapters.counters.alone import LoneCounters
from isochrone.adapters.counters.mapped import MappedCounters
from isochrone.adapters.credentials import read_credential
from isochrone.adapters.disk.files import FileDisk
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.adapters.network.tls import certificate_of
from isochrone.adapters.packaged import load_blocs, load_hardware
from isochrone.adapters.telemetry.process import process_use
from isochrone.core.errors import Unavailable
from isochrone.core.rng import Random
from isochrone.gateway.key_counts import ROW_CELLS
from isochrone.gateway.process import Gateway, Ports
from isochrone.gateway.settings import GatewaySettings
from isochrone.gateway.view_cache import Data
from isochrone.ports.counters import Counters
from isochrone.wire.identity import SiteIdentity
from isochrone.wiring.alone_entries import Teller, told_by
from isochrone.wiring.alone_file import STANDARD_OUTPUT, AloneFile, load_alone
from isochrone.wiring.alone_leftover import folders_left_over, ship_left_over, worker_folder
from isochrone.wiring.alone_reload import Reloader
from isochrone.wiring.gateway_start import LineFile, freeze_start
from isochrone.wiring.log import configure_log, write_output
from isochrone.wiring.peer_secret import kept_peer_secret, peer_public, read_peer_secret
from isochrone.wiring.stopping import asked_to_stop
from isochrone.wiring.telemetry import spans_of
from isochrone.wiring.watched import watched

log = structlog.get_logger()


def run_alone(
    config: Path, *, worker: int = 0, workers: int = 1, port: int | None = None,
    journal: Path | None = None,
) -> None:
    """Run the gateway of `config` until SIGTERM or SIGINT, as `worker` of `workers`.

    `port` and `journal` replace the file's. Raises InvalidInput for a bad file, Unavailable when
    the port or a folder cannot be had.
    """
    file = load_alone(config)
    if journal is not None:
        own = dataclasses.replace(file.settings, journal=journal)
        file = dataclasses.replace(file, settings=own)
    configure_log("gateway", file.settings.log_level)
    if workers > 1:
        structlog.contextvars.bind_contextvars(worker=worker)
    settings = dataclasses.replace(
        file.settings, alone=True, worker=worker, workers=workers,
        journal=worker_folder(file.settings.journal, worker),
        port=file.settings.port if port is None else port,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, file, settings))
    except OSError as error:
        raise Unavailable(f"the gateway cannot run: {error}") from error
    except ExceptionGroup as group:
        failed, others = group.split(OSError)
        if failed is None or others is not None:
            raise
        causes = "; ".join(str(each) for each in failed.exceptions)
        raise Unavailable(f"the gateway cannot run: {causes}") from group


async def _serve(config: Path, file: AloneFile, settings: GatewaySettings) -> None:
    spans = spans_of(settings, file.site)
    clock, signer = SystemClock(), Ed25519PrivateKey.generate()
    identity = _identity(file, signer)
    outputs = _Outputs(file, clock)
    bus = AloneBus(clock, outputs.store)
    teller = Teller(bus, file.site, signer)
    told = partial(
        told_by, peer_key=identity.peer_key, worker=settings.worker, workers=settings.workers
    )
    await teller.tell(told(file))
    disk = FileDisk(settings.journal)
    network = SocketNetwork(
        shared_port=settings.port if settings.workers > 1 else None, authorities=settings.tls_ca
    )
    ports = Ports(
        clock=clock, network=network, bus=bus, disk=disk, rng=Random(secrets.randbits(128)),
        read_credential=read_credential, write_lines=outputs.write_lines,
        counters=_counters(file, settings),
        certificate=certificate_of(settings.tls_certificate, settings.tls_key),
        process_use=process_use, spans=spans,
    )
    gateway = Gateway(settings, identity, ports, Data(blocs=load_blocs(), hardware=load_hardware()))
    reloader = Reloader(config, file, teller, told, outputs.reopen)
    stop = asyncio.Event()
    beside = [asyncio.ensure_future(watched("reload", reloader.run))]
    if settings.worker == 0:
        # Each by itself: one that fails keeps no other from being shipped.
        beside += [
            asyncio.ensure_future(
                watched(folder.name, partial(ship_left_over, folder, bus, file.site, clock))
            )
            for folder in folders_left_over(file.settings.journal, settings.workers)
        ]
    try:
        with asked_to_stop(stop.set, hang_up=reloader.ask):
            await gateway.run(stop, freeze_start)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
        if spans is not None:
            spans.close()
        await bus.close()
        outputs.close()
        disk.close()


def _counters(file: AloneFile, settings: GatewaySettings) -> Counters:
    """What all workers of one gateway count together."""
    if settings.workers == 1:
        return LoneCounters(ROW_CELLS)
    folder = file.settings.journal / "counters"
    return MappedCounters(
        folder, own=settings.worker, workers=settings.workers, cells=ROW_CELLS
    )


class _Outputs:
    """The files that a gateway alone appends to."""

    def __init__(self, file: AloneFile, clock: SystemClock) -> None:
        self._usage = None if file.usage is None else UsageFile(file.usage, clock)
        self.store: DurableStore = self._usage or NoStore()
        self._lines: LineFile | None = None
        self.write_lines: Callable[[bytes], None] = write_output
        if isinstance(file.request_log, Path):
            self._lines = LineFile(file.request_log)
            self.write_lines = self._lines.write
        elif file.request_log != STANDARD_OUTPUT:
            self.write_lines = _nowhere

    def reopen(self) -> None:
        """Somebody may have moved the files away."""
        for each in (self._usage, self._lines):
            try:
                if each is not None:
                    each.reopen()
            except OSError as error:
                log.error("file_not_reopened", why=str(error))

    def close(self) -> None:
        """The bus has closed the usage file."""
        if self._lines is not None:
            self._lines.close()


def _nowhere(lines: bytes) -> None:
    return


def _identity(file: AloneFile, signer: Ed25519PrivateKey) -> SiteIdentity:
    """The site's own word for who it is; entries are trusted that `signer` signed."""
    own = next((site.site for site in file.sites if site.site.name == file.site), None)
    path = file.peer_secret
    if path is None:
        secret = kept_peer_secret(file.settings.journal / "secret")
    else:
        secret = read_peer_secret(path)
    return SiteIdentity(
        site=file.site, country=None if own is None else own.country, nats_urls=(), nats_jwt="",
        nats_seed="", peer_key=peer_public(secret), peer_secret=secret,
        control_key=signer.public_key().public_bytes_raw().hex(), control_url="",
        host=file.settings.host, port=file.settings.port,
    )
