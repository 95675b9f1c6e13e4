"""Limits what one network is answered over UDP, where anybody can write another's address.

Each network has a bucket of answers that fills with time. When it is empty, every other query is
answered with the bit that says "ask over TCP", which is no larger than the query, and the rest not
at all: who is real comes through, and who is flooded in our name is not flooded by us.
"""

from typing import Literal

from isochrone.core.steering.place import Family, Subnet

NETWORK_BITS: dict[Family, int] = {4: 24, 6: 56}
MOST_NETWORKS = 65_536
BURST_S = 2.0

Verdict = Literal["answer", "truncate", "drop"]


class _Bucket:
    __slots__ = ("filled_ns", "level", "slipped")

    def __init__(self, level: float, filled_ns: int) -> None:
        self.level = level
        self.filled_ns = filled_ns
        self.slipped = False


class ResponseRates:
    """`per_s` answers a second and network, saved up for two seconds; 0 is no limit."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._most = per_s * BURST_S
        self._buckets: dict[Subnet, _Bucket] = {}

    def judge(self, source: Subnet, now_ns: int) -> Verdict:
        """What to do with a query from this address."""
        if not self._per_s:
            return "answer"
        network = source.within(NETWORK_BITS[source.family])
        # Those that asked last stay last, so that the oldest is forgotten first.
        bucket = self._buckets.pop(network, None)
        if bucket is None:
            if len(self._buckets) >= MOST_NETWORKS:
                del self._buckets[next(iter(self._buckets))]
            bucket = _Bucket(self._most, now_ns)
        self._buckets[network] = bucket
        elapsed_s = max(now_ns - bucket.filled_ns, 0) / 1e9
        bucket.level = min(self._most, bucket.level + elapsed_s * self._per_s)
        bucket.filled_ns = now_ns
        if bucket.level >= 1:
            bucket.level -= 1
            return "answer"
        bucket.slipped = not bucket.slipped
        return "truncate" if bucket.slipped else "drop"
