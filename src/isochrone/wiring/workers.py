"""Several processes of one gateway that runs alone, on one port: started, watched, stopped.

The parent serves nothing. Each worker listens on the same port, and the kernel deals connections
out to them; each has a journal of its own. Workers die with their parent, one that ends alone is
started again, and signals go to all of them.
"""

import asyncio
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from isochrone.adapters.child import child_command
from isochrone.core.errors import InvalidInput, Unavailable
from isochrone.gateway.settings import contradictions
from isochrone.wiring.alone_file import load_alone
from isochrone.wiring.log import configure_log
from isochrone.wiring.stopping import asked_to_stop, hang_ups_held

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
SETTLED_S = 10.0  # a worker that ran this long did not fail at its start

log = structlog.get_logger()


def run_workers(config: Path, workers: int) -> None:
    """Run `workers` gateways of `config` until SIGTERM or SIGINT and all have drained.

    Raises InvalidInput for a bad file, Unavailable when a worker cannot start at all.
    """
    settings = load_alone(config).settings
    problems = contradictions(dataclasses.replace(settings, workers=workers))
    if problems:
        raise InvalidInput([f"{config}: gateway: {problem}" for problem in problems])
    configure_log("gateway-workers", settings.log_level)
    reserved, port = None, settings.port
    if port == 0:
        # Bound and not listening, so that all workers get the port that the kernel chose.
        reserved = _reserve(settings.host)
        port = reserved.getsockname()[1]
    try:
        asyncio.run(_Workers(config, workers, port, settings.journal).run())
    finally:
        if reserved is not None:
            reserved.close()


def _reserve(host: str) -> socket.socket:
    """A socket that is bound to a port of this host, as workers are. Raises Unavailable."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        reserved = socket.socket(family, kind, protocol)
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(place)
        except OSError:
            reserved.close()
            raise
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"the gateway cannot listen on {host}: {error}") from error
    return reserved


class _Workers:
    def __init__(self, config: Path, workers: int, port: int, journal: Path) -> None:
        self._config = config
        self._workers = workers
        self._port = port
        self._journal = journal
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._unable: str | None = None

    async def run(self) -> None:
        log.info("workers_start", workers=self._workers, port=self._port)
        with asked_to_stop(self._stop, hang_up=partial(self._tell, signal.SIGHUP)):
            async with asyncio.TaskGroup() as group:
                for worker in range(self._workers):
                    group.create_task(self._keep(worker))
        if self._unable is not None:
            raise Unavailable(self._unable)
        log.info("workers_stopped")

    def _stop(self) -> None:
        self._stopping.set()
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for process in self._running.values():
            # Not by `send_signal`, which takes the status of one that has just ended from whoever
            # waits for it: that one is then told 255, as of a worker that says it cannot work.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    async def _keep(self, worker: int) -> None:
        """Keep one worker running until all are told to stop."""
        loop = asyncio.get_running_loop()
        wait_s, lives = FIRST_WAIT_S, 0
        while not self._stopping.is_set():
            began_s = loop.time()
            try:
                code = await self._live(worker)
            except OSError as error:  # no memory, process or file is left now: the others go on
                log.error("worker_not_started", worker=worker, why=str(error), again_in_s=wait_s)
                wait_s = await self._pause(wait_s)
                continue
            lives += 1
            if self._stopping.is_set():
                return
            settled = loop.time() - began_s >= SETTLED_S
            if lives == 1 and code > 0 and not settled:
                # Not killed: it said itself that it cannot work, and the others cannot either.
                self._unable = f"worker {worker} could not start (exit code {code}); see its log"
                self._stop()
                return
            wait_s = FIRST_WAIT_S if settled else wait_s
            log.error("worker_ended", worker=worker, code=code, again_in_s=wait_s)
            wait_s = await self._pause(wait_s)

    async def _pause(self, wait_s: float) -> float:
        """Wait, unless all are told to stop; returns how long the next time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._stopping.wait()
        return min(2 * wait_s, LONGEST_WAIT_S)

    async def _live(self, worker: int) -> int:
        """One life of a worker; returns its exit code, negative for a signal."""
        with hang_ups_held():  # and the worker begins with them held, until it can take them
            process = await asyncio.create_subprocess_exec(
                *child_command(self._command(worker)), stdin=asyncio.subprocess.DEVNULL,
                process_group=0,  # Ctrl-C comes to the parent alone, which passes it on
            )
        self._running[worker] = process
        if self._stopping.is_set():  # told while it was being started
            self._tell(signal.SIGTERM)
        try:
            return await process.wait()
        finally:
            del self._running[worker]

    def _command(self, worker: int) -> Sequence[str]:
        return (
            sys.executable, "-m", "isochrone", "gateway", "--config", str(self._config),
            "--workers", str(self._workers), "--worker", str(worker), "--port", str(self._port),
            # What they share, also with one that begins when the file names another folder.
            "--journal", str(self._journal),
        )
