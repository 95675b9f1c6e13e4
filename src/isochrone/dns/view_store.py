"""Keeps the last good view on disk, so that a name server that starts without NATS can answer.

What is kept are the entries as they came, with control's signatures: reading them back goes through
the same checks as hearing them from the bus. With them goes the instant at which they were last
proved current, since names of policies are not answered from a view that is too old for them.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import structlog

from isochrone.core.errors import Untrusted
from isochrone.dns.fleet import FleetView
from isochrone.ports.clock import Clock
from isochrone.ports.disk import Disk
from isochrone.wire import fleet

NAME = "view"
LOOK_EVERY_S = 1.0
SAVE_EVERY_S = 3.0    # after a change
PROVE_EVERY_S = 60.0  # without one
SET_BACK_NS = 60_000_000_000  # a proof this far ahead says that our clock was set back

_MAGIC = b"isochrone dns view 1\n"
_DIGEST_BYTES = 32

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredView:
    """Entries by key; `proved_at` is 0 where nobody knows."""

    proved_at: int
    entries: Mapping[str, bytes]


class ViewStore:
    """Call `load` once, then `run` for as long as the process answers, then `flush`."""

    def __init__(self, disk: Disk, view: FleetView, clock: Clock) -> None:
        self._disk = disk
        self._view = view
        self._clock = clock
        self._version = -1
        self._saved_ns = 0
        self._failed = ""
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Hand the stored view over, if there is one; what is wrong with it is logged."""
        try:
            data = self._disk.read(NAME)
            stored = _opened(data)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("stored_view_ignored", why=f"it cannot be read: {error}")
            return
        except Untrusted as error:
            log.warning("stored_view_ignored", why=error.message)
            return
        age_ns = self._clock.wall_ns() - stored.proved_at
        known = stored.proved_at > 0 and age_ns >= -SET_BACK_NS
        now_ns = self._clock.monotonic_ns()
        self._view.take_stored(
            stored.entries, proved_ns=now_ns - max(age_ns, 0) if known else None
        )
        log.info("stored_view_read", entries=len(stored.entries))

    async def run(self) -> None:
        """Write what has changed, and what was proved again since long, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            changed = self._view.version != self._version
            since_ns = self._clock.monotonic_ns() - self._saved_ns
            if since_ns >= (SAVE_EVERY_S if changed else PROVE_EVERY_S) * 1e9:
                await self.flush()

    async def flush(self) -> None:
        """Write the view now, if there is one of this life."""
        async with self._writing:
            if self._view.synced:
                await self._save()

    async def _save(self) -> None:
        view = self._view
        now_ns = self._clock.monotonic_ns()
        age_s = view.age_s(now_ns)
        proved_at = self._clock.wall_ns() - int(age_s * 1e9) if math.isfinite(age_s) else 0
        version = view.version
        body = fleet.encode(StoredView(proved_at=proved_at, entries=dict(view.entries)))
        try:
            await self._disk.save(NAME, _MAGIC + sha256(body).digest() + body)
        except OSError as error:
            if str(error) != self._failed:
                log.warning("view_not_stored", why=str(error))
            self._failed = str(error)
        else:
            self._version, self._failed = version, ""
        self._saved_ns = now_ns


def _opened(data: bytes) -> StoredView:
    """Raises Untrusted for a damaged file or another's."""
    start = len(_MAGIC) + _DIGEST_BYTES
    if not data.startswith(_MAGIC):
        raise Untrusted("the file holds something else")
    if sha256(data[start:]).digest() != data[len(_MAGIC) : start]:
        raise Untrusted("the file is damaged")
    return fleet.decode(data[start:], StoredView)
