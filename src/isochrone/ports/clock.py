"""Clock: the only way the shell learns the time. Wall and monotonic time are different calls."""

from typing import Protocol


class Clock(Protocol):
    """Waiting is done by the event loop; this port only reads."""

    def wall_ns(self) -> int:
        """Nanoseconds UTC since 1970; may jump."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back. For durations."""
        ...
