"""What comes out of a run: counts and quantiles that take the same memory however long it is."""

from hashlib import blake2b
from math import exp, inf, log
from struct import Struct
from typing import Final

from isochrone.twin.fast.summed import ClassSummary as ClassSummary
from isochrone.twin.fast.summed import Summary as Summary

LEAST_MS: Final = 0.01
WIDTH: Final = 0.005   # of a bucket, as a share of its value
BUCKETS: Final = 4400  # up to ten hours
ANSWER_BYTES_TOKEN: Final = 200  # an event of a stream, of which most have one token

_LOG_WIDTH = log(1.0 + WIDTH)
_LOG_LEAST = log(LEAST_MS)
_RECORD = Struct("<qiiqdd")
_HASHED_AT_ONCE: Final = 1024


def bucket_of(ms: float) -> int:
    """The bucket of a duration."""
    at = 0 if ms <= LEAST_MS else int((log(ms) - _LOG_LEAST) / _LOG_WIDTH)
    return at if at < BUCKETS else BUCKETS - 1


class Quantiles:
    """Milliseconds in buckets of half a percent, and their exact sum."""

    __slots__ = ("_counts", "count", "endless", "sum_ms")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count = 0      # of the finite ones
        self.endless = 0    # of those that never came
        self.sum_ms = 0.0

    def add(self, ms: float) -> None:
        self.put(bucket_of(ms), ms)

    def put(self, bucket: int, ms: float) -> None:
        """As `add`, where the bucket is known."""
        self.count += 1
        self.sum_ms += ms
        self._counts[bucket] += 1

    def never(self) -> None:
        """One that did not come: later than any other."""
        self.endless += 1

    def mean_ms(self) -> float | None:
        """Of the finite ones; None without any."""
        return self.sum_ms / self.count if self.count else None

    def at(self, share: float, open_: int = 0) -> float | None:
        """The value below which this share of all lies, within half a percent; None where that is
        one that never came, or nothing was counted. `open_` more have not come yet, and are later
        than any that did."""
        wanted = share * (self.count + self.endless + open_)
        seen = 0
        for bucket, count in enumerate(self._counts):
            if count and seen + count >= wanted:
                inside = (wanted - seen) / count
                return exp(_LOG_LEAST + (bucket + inside) * _LOG_WIDTH)
            seen += count
        return None


class ClassTally:
    __slots__ = ("good", "refused", "requests", "ttft")

    def __init__(self) -> None:
        self.requests = 0
        self.refused = 0
        self.good = 0
        self.ttft = Quantiles()

    def summary(self) -> ClassSummary:
        open_ = self.requests - self.ttft.count - self.ttft.endless
        return ClassSummary(
            requests=self.requests, refused=self.refused, ttft_ms_mean=self.ttft.mean_ms(),
            ttft_ms_p50=self.ttft.at(0.5, open_), ttft_ms_p99=self.ttft.at(0.99, open_),
            slo_attainment=self.good / self.requests if self.requests else 0.0,
        )


class Trace:
    """The hash of what became of every request, in the order in which they ended."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)
        self._records: list[bytes] = []

    def add(
        self, ident: int, site: int, replica: int, cached_tokens: int, first_s: float, end_s: float
    ) -> None:
        records = self._records
        records.append(_RECORD.pack(ident, site, replica, cached_tokens, first_s, end_s))
        if len(records) >= _HASHED_AT_ONCE:
            self._hash.update(b"".join(records))
            records.clear()

    def digest(self) -> str:
        self._hash.update(b"".join(self._records))
        self._records.clear()
        return self._hash.hexdigest()


class Tally:
    """Counts while a run goes on. `sites`, `tenants`: how many there are."""

    def __init__(self, sites: int, tenants: int, warm_s: float) -> None:
        self.warm_s = warm_s
        self.ttft = Quantiles()
        self.total = Quantiles()
        self.classes = [ClassTally(), ClassTally(), ClassTally()]
        self.tenants = [ClassTally() for _ in range(tenants)] if tenants > 1 else []
        self.by_site = [0] * sites
        self.requests = self.answered = self.refused = self.broken = self.retried = 0
        self.good = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.cross_border_bytes = 0
        self.trace = Trace()

    def began(self, at_s: float, class_: int, tenant: int) -> None:
        if at_s >= self.warm_s:
            self.requests += 1
            self.classes[class_].requests += 1
            if self.tenants:
                self.tenants[tenant].requests += 1

    def refuse(self, at_s: float, class_: int, tenant: int) -> None:
        """The client gets an error."""
        if at_s >= self.warm_s:
            self.refused += 1
            self.ttft.never()
            tally = self.classes[class_]
            tally.refused += 1
            tally.ttft.never()
            if self.tenants:
                self.tenants[tenant].refused += 1
                self.tenants[tenant].ttft.never()

    def break_off(self, at_s: float, class_: int, tenant: int) -> None:
        """The client's stream ends with an error."""
        if at_s >= self.warm_s:
            self.broken += 1
            self.ttft.never()
            self.classes[class_].ttft.never()
            if self.tenants:
                self.tenants[tenant].ttft.never()

    def answer(
        self, at_s: float, class_: int, tenant: int, ttft_ms: float, total_ms: float,
        slo_ms: float, site: int, prompt_tokens: int, cached_tokens: int, output_tokens: int,
    ) -> None:
        """The client has the whole answer."""
        if at_s < self.warm_s:
            return
        self.answered += 1
        self.by_site[site] += 1
        bucket = bucket_of(ttft_ms)
        self.ttft.put(bucket, ttft_ms)
        self.total.add(total_ms)
        tally = self.classes[class_]
        tally.ttft.put(bucket, ttft_ms)
        if ttft_ms <= slo_ms:
            self.good += 1
            tally.good += 1
        if self.tenants:
            own = self.tenants[tenant]
            own.ttft.put(bucket, ttft_ms)
            own.good += ttft_ms <= slo_ms
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.output_tokens += output_tokens

    def crossed(self, at_s: float, bytes_: int) -> None:
        """So much of a request of that moment, or of its answer, is sent to another country."""
        if at_s >= self.warm_s:
            self.cross_border_bytes += bytes_

    def summary(
        self, *, policy: str, seed: int, gpus: int, now_s: float, last_s: float, busy_share: float
    ) -> Summary:
        """`now_s`: the end of the run; `last_s`: when the last request came."""
        requests, counted_s = self.requests, max(last_s - self.warm_s, 0.0)
        open_ = requests - self.answered - self.refused - self.broken
        return Summary(
            policy=policy, seed=seed, requests=requests, answered=self.answered,
            refused=self.refused, broken=self.broken, open=open_, retried=self.retried,
            ttft_ms_mean=self.ttft.mean_ms(), ttft_ms_p50=self.ttft.at(0.5, open_),
            ttft_ms_p90=self.ttft.at(0.9, open_), ttft_ms_p99=self.ttft.at(0.99, open_),
            total_ms_mean=self.total.mean_ms(),
            slo_attainment=self.good / requests if requests else 0.0,
            goodput_rps=self.good / counted_s if counted_s > 0 else 0.0,
            hit_rate=self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0,
            cross_border_bytes=self.cross_border_bytes, gpus=gpus, simulated_s=now_s,
            busy_share=busy_share, output_tokens=self.output_tokens,
            by_class={rank: each.summary() for rank, each in enumerate(self.classes)
                      if each.requests},
            by_site=tuple(self.by_site),
            by_tenant=tuple([each.summary() for each in self.tenants]), trace=self.trace.digest(),
        )


NO_SLO_MS: Final = inf
