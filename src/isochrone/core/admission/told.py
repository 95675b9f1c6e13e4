"""Says after what time a refused request should come back: once what is ahead of it is served.

Ahead of it is what its class has running and waiting. Where slots are what is short, that takes as
long as its part of the slots is busy with it; where it is room to read, until engines have read it,
at its class's part of their speed. See docs/admission.md.
"""

from collections.abc import Sequence

from isochrone.core.admission.class_line import ClassLine
from isochrone.core.admission.reading import Reading

MOST_PROMISED_NS = 30_000_000_000  # so far apart are refused requests told to come back, at most


def shares_beside(lines: Sequence[ClassLine], line: ClassLine) -> float:
    """The shares of a class and of all others that wait."""
    shares = line.share
    for other in lines:
        if other is not line and other.order.queued:
            shares += other.share
    return shares


def read_times_ns(
    lines: Sequence[ClassLine], line: ClassLine, own_tokens: int, reading: Reading, promised: bool
) -> tuple[int, int]:
    """When engines have read what they were sent and what waits ahead of a request of `line`, and
    how long they take for its own prompt beside the others. `promised`: something is, to the
    firmest. What goes before all shares is ahead of everybody else, whatever their shares."""
    first, shares, waiting, is_firmer = 0, line.share, 0, True
    line_goes_first = _goes_first(lines, line, promised)
    for other in lines:
        tokens = other.order.prompt_tokens
        waiting += tokens
        if other is line:
            is_firmer = False
        elif _goes_first(lines, other, promised):
            if is_firmer or not line_goes_first:
                first += tokens
        elif other.order.queued and not line_goes_first:
            shares += other.share
    parts = shares / line.share
    ahead = min(first + int(line.order.prompt_tokens * parts), waiting)
    return reading.done_ns(ahead), int(reading.takes_ns(own_tokens) * parts)


def back_ns(line: ClassLine, free_ns: int, own_ns: int, now_ns: int) -> int:
    """How long a refused request should stay away: until `free_ns`, and behind whoever was told
    a time before, so that they do not all come back at once."""
    latest_ns = free_ns + MOST_PROMISED_NS
    line.promised_ns = min(max(line.promised_ns, free_ns) + own_ns, latest_ns)
    return max(line.promised_ns - now_ns, 1)


def _goes_first(lines: Sequence[ClassLine], line: ClassLine, promised: bool) -> bool:
    return line.running < line.floor or (promised and line is lines[0])
