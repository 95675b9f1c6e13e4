"""Ships what workers left in their journals that are not run any more."""

import asyncio
from pathlib import Path

import structlog

from isochrone.adapters.disk.files import FileDisk
from isochrone.gateway.journal import Journal
from isochrone.gateway.journal_reading import ASIDE
from isochrone.gateway.shipping import Shipper
from isochrone.ports.bus import Bus
from isochrone.ports.clock import Clock

SHIP_S = 60.0

log = structlog.get_logger()


def worker_folder(journal: Path, worker: int) -> Path:
    """Where the journal of a worker lies."""
    return journal / f"worker-{worker}"


def folders_left_over(journal: Path, workers: int) -> list[Path]:
    """Journals of workers beyond the first `workers`: the gateway ran with more of them before."""
    kept = {worker_folder(journal, worker) for worker in range(workers)}
    return sorted(set(journal.glob("worker-*")) - kept)


async def ship_left_over(folder: Path, bus: Bus, site: str, clock: Clock) -> None:
    """Ship what is in this journal; what cannot be shipped now waits for the next start."""
    try:
        await _ship(folder, bus, site, clock)
    except* OSError as group:
        why = "; ".join(str(error) for error in group.exceptions)
        log.error("journal_left_over", folder=str(folder), why=why)


async def _ship(folder: Path, bus: Bus, site: str, clock: Clock) -> None:
    disk = FileDisk(folder)
    try:
        if not _without_damaged(disk):
            return
        journal = Journal(disk, clock, site)
        journal.recover()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(journal.run())
            shipped = await Shipper(journal, bus, site, clock).flush(timeout_s=SHIP_S)
            running.cancel()
        if not shipped:
            log.error("journal_left_over", folder=str(folder), why=f"not taken in {SHIP_S:.0f} s")
            return
        unreadable = journal.unreadable()
        for name in set(_without_damaged(disk)) - set(unreadable):
            disk.delete(name)
        if unreadable:
            log.error("journal_left_over", folder=str(folder), why=f"not read: {unreadable}")
            return
        log.info("journal_left_over_shipped", folder=str(folder))
    finally:
        disk.close()


def _without_damaged(disk: FileDisk) -> list[str]:
    """What is there, but for copies of damaged segments, which are kept for people."""
    return [name for name in disk.names() if not name.startswith(ASIDE)]
