"""Tells a gateway that runs alone what its file says now, whenever the file changes."""

import asyncio
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from isochrone.core.errors import InvalidInput
from isochrone.wiring.alone_entries import Teller, Told
from isochrone.wiring.alone_file import AloneFile, load_alone

LOOK_EVERY_S = 0.4

log = structlog.get_logger()

Stamp = tuple[int, int, int]  # inode, size, instant of the last change


class Reloader:
    """Follows one file, and tells the gateway what it is `told` by it. `on_reload` is called for
    every reload that was asked for or taken."""

    def __init__(
        self, config: Path, file: AloneFile, teller: Teller, told: Callable[[AloneFile], Told],
        on_reload: Callable[[], None],
    ) -> None:
        self._config = config
        self._file = file
        self._teller = teller
        self._told = told
        self._on_reload = on_reload
        self._asked = asyncio.Event()
        self._taken = _stamp(config)

    def ask(self) -> None:
        """Reload now, changed or not (SIGHUP)."""
        self._asked.set()

    async def run(self) -> None:
        """Look for changes for ever; after a bug in a reload, again: it is not the last."""
        seen = self._taken
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._asked.wait()
            except TimeoutError:
                before, seen = seen, _stamp(self._config)
                # A file that is still being written may look whole; one look later it is.
                if seen is None or seen == self._taken or seen != before:
                    continue
            self._asked.clear()
            self._taken = seen = _stamp(self._config)
            await self.reload()

    async def reload(self) -> None:
        """Take the file; one with problems changes nothing."""
        try:
            file = await asyncio.to_thread(load_alone, self._config)
        except InvalidInput as error:
            for problem in error.problems:
                log.error("reload_refused", problem=problem)
            return
        # What needs a restart stays as it is, with all that is told of this gateway by it.
        fixed = self._file
        as_run = dataclasses.replace(file, site=fixed.site, settings=fixed.settings)
        changed = await self._teller.tell(self._told(as_run))
        self._on_reload()
        needs_restart = self._fixed(file)
        log.info("reloaded", file=str(self._config), entries_changed=changed)
        if needs_restart:
            log.warning("reload_needs_restart", settings=needs_restart)

    def _fixed(self, file: AloneFile) -> list[str]:
        """Names of settings that differ from those that the process runs with."""
        before, now = self._file.settings, file.settings
        fields = [field.name for field in dataclasses.fields(now)]
        found = [name for name in fields if getattr(before, name) != getattr(now, name)]
        own = ("site", "usage", "request_log", "peer_secret")
        return found + [name for name in own if getattr(self._file, name) != getattr(file, name)]


def _stamp(path: Path) -> Stamp | None:
    """What changes with the file; None while it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
