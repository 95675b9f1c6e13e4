"""Composition root of control: settings in, adapters picked, one process run."""

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.child.experiments import ChildPlayer
from isochrone.adapters.clock import SystemClock
from isochrone.adapters.nats.bus import open_bus
from isochrone.adapters.nats.identity import (
    Credentials,
    NatsSecrets,
    load_credentials,
    load_secrets,
    site_user_jwt,
)
from isochrone.adapters.nats.logins import open_logins
from isochrone.adapters.network.web import UvicornServer, listen
from isochrone.adapters.packaged import bundled_model, load_blocs, load_power, load_round_trips
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.migrate import migrate
from isochrone.adapters.postgres.pool import check_conninfo, check_role, open_pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.control.api.app import build_app
from isochrone.control.api.context import Context, Playing
from isochrone.control.joining import Hub, hash_of
from isochrone.control.loops import ControlLoops, ControlPlan, ControlPorts
from isochrone.control.process import run_process
from isochrone.control.settings import ControlSettings
from isochrone.control.world import Weights, intent_of, seed_of
from isochrone.core.billing.sheet import PriceSheet
from isochrone.core.errors import InvalidInput, StoreUnavailable
from isochrone.core.ids import ModelName
from isochrone.core.rng import stream
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.core.world.world import World
from isochrone.ports.prices import Prices, StoredSheet
from isochrone.ports.registry import Registry
from isochrone.ports.tenants import Once
from isochrone.wiring.log import configure_log
from isochrone.wiring.settings import load
from isochrone.wiring.sheet_file import read_sheet
from isochrone.wiring.stopping import asked_to_stop
from isochrone.wiring.world_file import BUNDLED, parse_world

T = TypeVar("T")

STORE_RETRY_S = 0.5
BUS_WAIT_S = 0.5  # control serves its API while the bus is still away

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFiles:
    """What the files of the settings hold; all are read before anything starts."""

    signer: Ed25519PrivateKey
    admin_key: str
    nats: NatsSecrets
    login: Credentials
    world: World | None
    prices: PriceSheet | None = None


def run(config: Path) -> None:
    """Run control from a settings file until SIGTERM or SIGINT."""
    settings = load(config, ControlSettings)
    configure_log("control")
    asyncio.run(run_control(settings))


async def run_control(settings: ControlSettings) -> None:
    """Run control until SIGTERM or SIGINT. Raises InvalidInput for a bad file or a port in use."""
    files = read_files(settings)
    stop = asyncio.Event()
    with listen("control", settings.host, settings.port) as listener, asked_to_stop(stop.set):
        clock = SystemClock()
        bus = await open_bus(
            settings.nats_urls, files.login, name="control", clock=clock,
            rng=stream(secrets.randbits(64), "bus"), wait_s=BUS_WAIT_S,
        )
        logins = await open_logins(
            settings.nats_urls, files.nats, files.login,
            rng=stream(secrets.randbits(64), "logins"), wait_s=0.0,
        )
        pool = open_pool(settings.database)
        try:
            registry = open_registry(pool, settings.archive)
            owner = settings.owner_database or settings.database
            await prepare_book(owner, files, registry, clock, stop)
            if not stop.is_set():
                await _on_thread(lambda: check_role(pool))
                if settings.owner_database is None:
                    log.warning("control_logs_in_as_owner", advice="docs/tenancy.md, Logins")
                if settings.archive is None:
                    log.warning("no_archive_of_usage", advice="docs/metering.md, Days")
                loops = ControlLoops(
                    ControlPlan(
                        holder=settings.public_url, signer=files.signer,
                        evidence_wait_s=settings.evidence_wait_s,
                        retain_usage_days=(
                            None if settings.archive is None else settings.retain_usage_days
                        ),
                    ),
                    ControlPorts(
                        registry=registry, book=PostgresBook(pool), bus=bus, clock=clock,
                        offload=_on_thread, player=_player(settings), logins=logins,
                    ),
                )
                app = build_app(_context(settings, files, loops, clock))
                await run_process(loops, UvicornServer(app, listener), stop)
        finally:
            await logins.close()
            await bus.close()
            pool.close()


def read_files(settings: ControlSettings) -> ControlFiles:
    """Read every file that the settings name. Raises InvalidInput with all problems."""
    problems: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except InvalidInput as error:
            problems.extend(error.problems)
            return None

    signer = attempt(lambda: _signer(settings.signing_key))
    admin_key = attempt(lambda: _text(settings.admin_key))
    nats = attempt(lambda: load_secrets(settings.nats_secrets))
    login = attempt(lambda: load_credentials(settings.nats_credentials))
    attempt(lambda: check_conninfo(settings.database))
    attempt(lambda: check_conninfo(settings.owner_database or ""))
    path = settings.world
    world = None if path is None else attempt(lambda: _world(path))
    wanted = settings.prices
    prices = None if wanted is None else attempt(lambda: read_sheet(_text(wanted), str(wanted)))
    if problems or signer is None or admin_key is None or nats is None or login is None:
        raise InvalidInput(problems)
    return ControlFiles(
        signer=signer, admin_key=admin_key, nats=nats, login=login, world=world, prices=prices
    )


async def prepare_book(
    database: str, files: ControlFiles, registry: Registry, clock: SystemClock, stop: asyncio.Event
) -> None:
    """Migrate, seed, and make the book match the world; waits for a book that is away."""
    weights = await _on_thread(lambda: weights_of(files.world))
    while not stop.is_set():
        try:
            await _on_thread(lambda: _prepare(database, files, registry, weights, clock.wall_ns()))
            return
        except StoreUnavailable as error:
            log.warning("start_waits_for_the_book", reason=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STORE_RETRY_S):
                    await stop.wait()


def _prepare(
    database: str,
    files: ControlFiles,
    registry: Registry,
    weights: Mapping[ModelName, Weights],
    now: int,
) -> None:
    migrate(database)
    registry.tenants.seed(seed_of(hash_of(files.admin_key), now=now), now=now)
    if files.world is not None:
        intent = intent_of(files.world, weights, load_round_trips(), now=now)
        if registry.estate.reconcile(intent, now=now):
            log.info("world_reconciled", sites=len(intent.sites), models=len(intent.models))
    if files.prices is not None:
        _add_first_sheet(registry.prices, files.prices, now)


def _add_first_sheet(prices: Prices, sheet: PriceSheet, now: int) -> None:
    """Add the sheet of the settings where the book has none of its id."""
    if all(each.sheet.id != sheet.id for each in prices.sheets(EVERY_TENANT)):
        once = Once(caller="control", key=f"first sheet {sheet.id}", body_sha256="")
        added = StoredSheet(sheet=sheet, only_for=None, created_at=now)
        prices.add_sheet(EVERY_TENANT, added, once=once)
        log.info("price_sheet_added", sheet=sheet.id, currency=sheet.currency)


def weights_of(world: World | None) -> dict[ModelName, Weights]:
    """Path and sha256 of every model file; the latter is unknown for a file on another host."""
    found = {}
    for model in () if world is None else world.models:
        if model.file is None:
            continue
        if model.file.startswith(BUNDLED):
            path = bundled_model(model.file.removeprefix(BUNDLED))
        else:
            path = Path(model.file)
        try:
            with path.open("rb") as file:
                revision: str | None = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            revision = model.revision
        except OSError as error:
            raise InvalidInput(
                [f"model {model.name}: {path} cannot be read: {error.strerror}"]
            ) from error
        # A bundled model lies elsewhere on another host, so its name travels, not its path.
        place = model.file if model.file.startswith(BUNDLED) else str(path)
        found[model.name] = Weights(path=place, revision=revision)
    return found


def _player(settings: ControlSettings) -> ChildPlayer | None:
    if settings.experiments is None:
        return None
    return ChildPlayer(settings.experiments, most_s=settings.experiment_most_s)


def _context(
    settings: ControlSettings, files: ControlFiles, loops: ControlLoops, clock: SystemClock
) -> Context:
    """What the API works with; it wakes the loops from its worker threads."""
    loop = asyncio.get_running_loop()
    ports = loops.ports

    def changed() -> None:
        loop.call_soon_threadsafe(loops.wake)

    def playing() -> Playing | None:
        loop_of = loops.experimenting
        if ports.player is None or loop_of is None:
            return None

        def wake() -> None:
            loop.call_soon_threadsafe(loop_of.wake)

        return Playing(player=ports.player, wake=wake)

    return Context(
        registry=ports.registry,
        book=ports.book,
        fleet=loops.fleet,
        blocs=load_blocs(),
        clock=clock,
        entropy=secrets.token_bytes,
        changed=changed,
        bus_connected=lambda: ports.bus.connected,
        hub=Hub(
            nats_urls=settings.nats_urls,
            control_key=files.signer.public_key().public_bytes_raw().hex(),
            control_url=settings.public_url,
        ),
        site_credentials=lambda site, nats_key, issued_at: site_user_jwt(
            files.nats, site, nats_key, issued_at=issued_at
        ),
        secret_root=hmac.digest(
            files.signer.private_bytes_raw(), b"isochrone repeatable secrets v1", "sha256"
        ),
        power=load_power(),
        experiments=playing(),
    )


def _signer(path: Path) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(_text(path)))
    except ValueError as error:
        raise InvalidInput([f"{path}: must hold an Ed25519 seed, 64 hex digits"]) from error


def _world(path: Path) -> World:
    return parse_world(_text(path), source=str(path), folder=path.absolute().parent)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidInput([f"{path}: is not UTF-8 text"]) from error


async def _on_thread(call: Callable[[], T], /) -> T:
    return await asyncio.to_thread(call)
