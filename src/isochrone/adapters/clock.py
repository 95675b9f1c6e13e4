"""Clock port on the operating system's clocks."""

import time


class SystemClock:
    """Wall time in UTC, and the monotonic clock of this boot."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()
