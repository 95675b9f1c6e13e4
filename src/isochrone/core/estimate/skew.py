"""Clock offset: how far the own wall clock is from those of the other sites, from their stamps.

A message that carries the sender's instant gives one sample: receiver's clock at arrival minus that
instant, minus half the round trip where it is known. What is left of the way only ever adds. The
median of a sender's recent samples is not moved by single late messages; the median over senders is
not moved by the minority whose clocks are wrong. With one sender nobody can tell which of the two
clocks is wrong: both will say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

FEWEST_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """`offset_ms` > 0: the own clock is ahead of the median of `senders` other clocks."""

    offset_ms: float
    senders: int


def sample_ms(sent_at: int, received_at: int, rtt_ms: float) -> float:
    """How far the receiver's clock is ahead of the sender's, by one message; `rtt_ms` 0 where it is
    unknown. Instants are nanoseconds of either clock."""
    return (received_at - sent_at) / 1e6 - rtt_ms / 2


def clock_offset(samples: Mapping[str, Sequence[float]]) -> ClockOffset | None:
    """The own offset from recent samples of each sender; None while no sender has enough."""
    medians = [median(recent) for recent in samples.values() if len(recent) >= FEWEST_SAMPLES]
    if not medians:
        return None
    return ClockOffset(offset_ms=median(medians), senders=len(medians))
