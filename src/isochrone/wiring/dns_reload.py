"""Tells a running name server what its file says now, whenever it or a file of subnets changes."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from isochrone.core.errors import InvalidInput
from isochrone.dns.process import Told
from isochrone.wiring.dns_file import DnsFile, files_of, load_dns, settings_that_differ

LOOK_EVERY_S = 0.4

log = structlog.get_logger()

Stamp = tuple[int, int, int]  # inode, size, instant of the last change
Stamps = Mapping[Path, Stamp | None]


def stamps_of(config: Path) -> Stamps:
    """Those of the file and of all that it names. What is loaded afterwards is as new as they say
    or newer, so that no change is missed."""
    return {path: _stamp(path) for path in files_of(config)}


class DnsReloader:
    """Follows one file and those that it names. `taken`: their stamps before `file` was loaded.
    `serial` makes a new serial of the zone."""

    def __init__(
        self, config: Path, file: DnsFile, taken: Stamps, tell: Callable[[Told], None],
        serial: Callable[[], int],
    ) -> None:
        self._config = config
        self._running = file.settings
        self._tell = tell
        self._serial = serial
        self._asked = asyncio.Event()
        self._taken = taken

    def ask(self) -> None:
        """Reload now, changed or not (SIGHUP)."""
        self._asked.set()

    async def run(self) -> None:
        """Look for changes for ever."""
        seen = self._taken
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._asked.wait()
            except TimeoutError:
                before, seen = seen, {path: _stamp(path) for path in self._taken}
                # A file that is still being written may look whole; one look later it is.
                if seen == self._taken or seen != before or self._must_wait(seen):
                    continue
            self._asked.clear()
            self._taken = seen = await asyncio.to_thread(stamps_of, self._config)
            await self.reload()

    def _must_wait(self, seen: Stamps) -> bool:
        """Whether a file is gone that may be on its way: one that is replaced, and not one that the
        changed file may name no more."""
        config = self._config.absolute()
        is_same = seen[config] == self._taken[config]
        return seen[config] is None or (is_same and None in seen.values())

    async def reload(self) -> None:
        """Take the file; one with problems changes nothing."""
        try:
            file = await asyncio.to_thread(load_dns, self._config, serial=self._serial())
        except InvalidInput as error:
            for problem in error.problems:
                log.error("reload_refused", problem=problem)
            return
        if (file.settings.identity is None) != (self._running.identity is None):
            log.error("reload_refused", problem="identity came or went; restart the name server")
            return
        self._tell(file.told)
        log.info("reloaded", file=str(self._config), subnets=file.told.zone.places.count)
        needs_restart = settings_that_differ(self._running, file.settings)
        if needs_restart:
            log.warning("reload_needs_restart", settings=needs_restart)


def _stamp(path: Path) -> Stamp | None:
    """What changes with the file; None while it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
