"""Clock port on the virtual loop: wall time is a base instant plus virtual time plus an offset."""

from isochrone.twin.loop import VirtualLoop

BASE_NS = 1_790_000_000_000_000_000  # an arbitrary instant in September 2026


class VirtualClock:
    """Reads a VirtualLoop; `offset_ns` makes one process's wall clock wrong on purpose."""

    def __init__(self, loop: VirtualLoop, *, offset_ns: int = 0) -> None:
        self._loop = loop
        self.offset_ns = offset_ns

    def wall_ns(self) -> int:
        return BASE_NS + self._loop.ticks * 1000 + self.offset_ns

    def monotonic_ns(self) -> int:
        return self._loop.ticks * 1000
