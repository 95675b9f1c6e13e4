"""Clock port on the operating system's clocks."""

import time


class SystemClock:
    """Wall time in UTC, and the monotonic clock of this boot. Asked several times by every request:
    the system's own functions, with nothing around them."""

    wall_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)
