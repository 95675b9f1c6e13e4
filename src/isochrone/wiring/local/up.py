"""`isochrone up`: from a world to a running cloud, until a signal stops it.

    choose world -> lock state -> claim ports -> start -> wait until ready -> up.json, kept true

Whatever happens after the first process has started, everything started is stopped again.
"""

import asyncio
import contextlib
import io
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import structlog

from isochrone.core.errors import InvalidInput
from isochrone.core.ids import ModelName
from isochrone.core.world.world import World
from isochrone.wiring.local.cloud import LocalCloud, Tell
from isochrone.wiring.local.ports import HOST, Claims, choose_ports
from isochrone.wiring.local.state import open_state
from isochrone.wiring.local.supervise import Note, Supervisor, trim_log
from isochrone.wiring.local.watch import keep_up_json, wait_known, wait_ready, write_up
from isochrone.wiring.local.world import choose_world

READY_DEADLINE_S = 180.0
UP_LOG_LIMIT_BYTES = 4 * 2**20

T = TypeVar("T")

OnReady = Callable[[Mapping[str, Any], ModelName | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What the user asked for; None takes the default."""

    state: Path
    port: int | None
    sites: Path | None
    model: str | None
    host: str = HOST


def run_up(
    options: UpOptions, *, tell: Tell, on_ready: OnReady
) -> None:
    """Run the cloud in the foreground until SIGINT, SIGTERM or SIGHUP.

    `on_ready` gets the content of up.json and a chat model to try. Raises InvalidInput when nothing
    could be started as asked, Unavailable when something did not start; nothing runs then.
    """
    world = choose_world(options.sites, options.model)
    if options.host in ("0.0.0.0", "::", ""):  # sites must be told where to come
        raise InvalidInput([f"--host {options.host}: name one address that other hosts can reach"])
    os.umask(0o077)
    state = open_state(options.state)
    claims = Claims(options.host)
    names = [site.name for site in world.sites if not site.elsewhere]
    ports = choose_ports(
        len(names), wanted=options.port, kept=state.kept_ports(names), claims=claims,
    )
    state.keep_ports(names, ports)
    note = note_in(state.path("up.log"))
    changed = asyncio.Event()
    supervisor = Supervisor(note=note, on_change=changed.set)
    cloud = LocalCloud(
        state, world, ports, supervisor=supervisor, note=note, tell=tell, host=options.host,
    )
    note("up", pid=os.getpid(), ports=ports.all)
    asyncio.run(_until_stopped(cloud, changed, on_ready))
    note("down")


async def _until_stopped(
    cloud: LocalCloud, changed: asyncio.Event, on_ready: OnReady
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        if stop.is_set():
            cloud.supervisor.kill_all()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked_to_stop)
    try:
        await _unless(stop, _serve(cloud, changed, on_ready))
    finally:
        cloud.tell("cloud", "stopping")
        cloud.state.remove_up()
        await cloud.stop()


def chat_model(world: World) -> ModelName | None:
    """The first model that one can talk to, None when there is none."""
    return next((model.name for model in world.models if model.kind == "chat"), None)


async def _serve(
    cloud: LocalCloud, changed: asyncio.Event, on_ready: OnReady
) -> None:
    await cloud.start()
    status = await wait_ready(cloud, deadline_s=READY_DEADLINE_S)
    key = await asyncio.to_thread(cloud.customer_key)
    await asyncio.to_thread(cloud.give_first_password)
    await cloud.supervisor.children["console"].wait_ready()
    cloud.tell("console", "ready")
    await wait_known(cloud, key, deadline_s=READY_DEADLINE_S)
    content = write_up(cloud, key, status)
    on_ready(content, chat_model(cloud.world))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cloud.supervisor.trim_logs())
        tasks.create_task(keep_up_json(cloud, key, changed))


async def _unless(stop: asyncio.Event, work: Awaitable[None]) -> None:
    """Run `work` until it ends, fails, or `stop` is set."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


class _UpLog(io.TextIOBase):
    """Lines that a disk without room does not take are lost: who speaks supervises the others."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(self._fd, text.encode(errors="replace"))
        return len(text)


def note_in(path: Path) -> Note:
    """Events with keys, one JSON line each, in up.log."""
    trim_log(path, UP_LOG_LIMIT_BYTES)
    log = structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, _UpLog(path))),
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )
    note: Note = log.info
    return note
