"""Says how long a request will wait, and after what time one that is refused should come back: once
what is ahead of it is served.

Ahead of it is what its class has running and waiting. Where slots are what is short, that takes as
long as its part of the slots is busy with it; where it is room to read, until engines have read it,
at its class's part of their speed. See docs/admission.md.
"""

from collections.abc import Sequence

from isochrone.core.admission.class_line import ClassLine
from isochrone.core.admission.reading import Reading
from isochrone.core.admission.slot_ends import SlotEnds

MOST_PROMISED_NS = 30_000_000_000  # so far apart are refused requests told to come back, at most


def shares_beside(lines: Sequence[ClassLine], line: ClassLine) -> float:
    """The shares of a class and of all others that wait."""
    shares = line.share
    for other in lines:
        if other is not line and other.order.queued:
            shares += other.share
    return shares


def slots_for(lines: Sequence[ClassLine], line: ClassLine, slots: int) -> float:
    """The slots that a class can count on while those that wait now go on waiting."""
    part = max(slots, 1) * line.share / shares_beside(lines, line)
    return min(max(part, float(line.floor)), float(line.ceiling or 1))


def all_done_ns(
    lines: Sequence[ClassLine], line: ClassLine, pace_ns: float, slots: int
) -> float:
    """When all that runs, and all of a class that waits, is over, had the class to do it alone."""
    tokens = line.order.tokens
    for each in lines:
        tokens += each.tokens
    return tokens * pace_ns / slots_for(lines, line, slots)


def turn_in_ns(
    lines: Sequence[ClassLine], line: ClassLine, ends: SlotEnds, ahead: int, pace_ns: float,
    slots: int, free: int, now_ns: int,
) -> int:
    """When a slot is free for a request of `line` that has so many tokens of its class ahead of it;
    `free` of the slots are now. `ends`: of what runs, of all classes."""
    part, most = slots_for(lines, line, slots), max(line.ceiling, 1)
    if line.running >= most and part >= most:  # only what ends of its own makes room for it
        ends, part, free = line.ends, 1.0, 0
        ends.look((line.tickets,), most, pace_ns, now_ns)
    else:
        part /= max(slots, 1)
        ends.look([each.tickets for each in lines], slots, pace_ns, now_ns)
    each_ns = line.order.tokens / max(line.order.queued, 1) * pace_ns
    return int(ends.turn_ns(ahead * pace_ns, each_ns, part, free, now_ns))


def prompts_ahead(
    lines: Sequence[ClassLine], line: ClassLine, own: int, reading: Reading, promised: bool,
    now_ns: int,
) -> tuple[int, int, float]:
    """Of what waits, the prompt tokens that are sent before one of `line` that has `own` ahead of
    it in its class: of what goes before all shares, and with its class's part of the others; and
    how many such parts there are. `promised`: something is, to the firmest. Of other classes no
    more counts than can be read before it has expired."""
    first, shares, others, is_firmer = 0, line.share, 0, True
    line_goes_first = _goes_first(lines, line, promised)
    for other in lines:
        if other is line:
            is_firmer = False
            continue
        left_ns = max(other.latest_ns - now_ns, 0)
        tokens = min(other.order.prompt_tokens, reading.reads_in(left_ns))
        others += tokens
        if _goes_first(lines, other, promised):
            if is_firmer or not line_goes_first:
                first += tokens
        elif other.order.queued and not line_goes_first:
            shares += other.share
    parts = shares / line.share
    return first, min(first + int(own * parts), others + own), parts


def read_times_ns(
    lines: Sequence[ClassLine], line: ClassLine, own_tokens: int, reading: Reading,
    promised: bool, now_ns: int,
) -> tuple[int, int]:
    """When engines have read what they were sent and what waits ahead of a request of `line` that
    comes back, and how long they take for its own prompt beside the others. What waits is sent by
    its deadline or is not ahead any more, as where slots are short."""
    first, ahead, parts = prompts_ahead(
        lines, line, line.order.prompt_tokens, reading, promised, now_ns
    )
    ahead_ns = reading.done_ns(ahead)
    gone_ns = reading.done_ns(0) + max(line.latest_ns - now_ns, 0)
    if ahead_ns > gone_ns:
        ahead_ns = min(ahead_ns, max(reading.done_ns(first), gone_ns))
    return ahead_ns, int(reading.takes_ns(own_tokens) * parts)


def sent_in_ns(
    lines: Sequence[ClassLine], line: ClassLine, part: float, reading: Reading, promised: bool,
    now_ns: int,
) -> int:
    """When there is room to read for a request of `line` that has this part of what waits of its
    class ahead of it, however long that may wait."""
    own = int(line.order.prompt_tokens * part)
    _, ahead, _ = prompts_ahead(lines, line, own, reading, promised, now_ns)
    return max(reading.done_ns(ahead) - reading.room_ns(), 0)


def back_ns(line: ClassLine, free_ns: int, own_ns: int, now_ns: int) -> int:
    """How long a refused request should stay away: until `free_ns`, and behind whoever was told
    a time before, so that they do not all come back at once."""
    latest_ns = free_ns + MOST_PROMISED_NS
    line.promised_ns = min(max(line.promised_ns, free_ns) + own_ns, latest_ns)
    return max(line.promised_ns - now_ns, 1)


def _goes_first(lines: Sequence[ClassLine], line: ClassLine, promised: bool) -> bool:
    return line.running < line.floor or (promised and line is lines[0])
