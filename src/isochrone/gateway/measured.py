"""Counts what happens in a gateway, for the metrics that are declared in `metrics.py`.

Every request passes here once, at its end, so that path does nothing but add: one row a combination
of labels, found by one look-up. Everything else is worked out when somebody scrapes.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import add
from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple

from isochrone.gateway import metrics
from isochrone.gateway.foretold import times_of_a_lost_stream
from isochrone.ports.telemetry import Distribution, Family, Metric, Sample
from isochrone.wire.usage import BondRecord, UsageRecord

if TYPE_CHECKING:
    from isochrone.gateway.carry_on import Continued

MOST_ROWS = 20_000  # more combinations than any gateway should see
OTHER = "other"     # a model that the view does not have
NONE = "none"

_LATENCY_MS: Final = [bound_s * 1000 for bound_s in metrics.LATENCY_S]
_QUICK_MS: Final = [bound_s * 1000 for bound_s in metrics.QUICK_S]
_RATIO: Final = list(metrics.RATIO)

_Names = tuple[str, ...]
_Tally = tuple[list[int], float]  # counts by bucket, sum


class _Row:
    """Requests with the same labels. Sums are in milliseconds. `believed` and `reported` are tokens
    of prompts that were expected to be cached, and that engines said were."""

    __slots__ = (
        "added", "added_ms", "believed", "durations", "durations_ms", "firsts", "firsts_ms",
        "input_cached", "input_uncached", "labels", "output", "prefix_hits", "ratio", "ratio_sum",
        "receive", "receive_ms", "reported",
    )

    def __init__(self, labels: _Names) -> None:
        self.labels = labels
        self.input_uncached = self.input_cached = self.output = self.prefix_hits = 0
        self.believed = self.reported = 0
        self.durations, self.durations_ms = [0] * (len(_LATENCY_MS) + 1), 0.0
        self.firsts, self.firsts_ms = [0] * (len(_LATENCY_MS) + 1), 0.0
        self.added, self.added_ms = [0] * (len(_QUICK_MS) + 1), 0.0
        self.receive, self.receive_ms = [0] * (len(_QUICK_MS) + 1), 0.0
        self.ratio, self.ratio_sum = [0] * (len(_RATIO) + 1), 0.0


class Measured:
    """Mutable, owned by the event loop. `is_known` says whether the view has a model."""

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        self._rows: dict[tuple[str | int | None, ...], _Row] = {}
        self._by_labels: dict[_Names, _Row] = {}
        self._extra_attempts: Counter[_Names] = Counter()  # beyond one a request; may be negative
        self._counted: Counter[_Names] = Counter()         # otherwise than by the engine
        self._refusals: Counter[_Names] = Counter()
        self._failures: Counter[_Names] = Counter()
        self._left: Counter[_Names] = Counter()
        self._answers: Counter[_Names] = Counter()
        self._continuations: Counter[_Names] = Counter()
        self._abandoned: Counter[_Names] = Counter()
        self._homes: Counter[_Names] = Counter()
        self._gaps: dict[str, _Tally] = {}

    # -- what happens ----------------------------------------------------------------------------

    def ended(self, record: UsageRecord) -> None:
        """A request of a known key came to its end."""
        # All fields at once: reading one after the other would take half of the time.
        (_, _, _, _, _, endpoint, stream, class_, model, _, _, _, serving_site, _, _, _, _,
         chosen_ms, sent_ms, first_byte_ms, duration_ms, uncached, cached, output, source, outcome,
         status, reason, reporter, attempts, decision) = astuple(record)
        key = (model, endpoint, class_, outcome, status, serving_site, reporter)
        row = self._rows.get(key)
        if row is None:
            row = self._row(record, key)
        row.durations[bisect_left(_LATENCY_MS, duration_ms)] += 1
        row.durations_ms += duration_ms
        row.input_uncached += uncached
        row.output += output
        if cached:
            row.input_cached += cached
            row.prefix_hits += 1
        if sent_ms is not None and chosen_ms is not None:
            added_ms = sent_ms - chosen_ms
            row.added[bisect_left(_QUICK_MS, added_ms)] += 1
            row.added_ms += added_ms
            if chosen_ms > 0:
                row.receive[bisect_left(_QUICK_MS, chosen_ms)] += 1
                row.receive_ms += chosen_ms
            if stream and first_byte_ms is not None:
                _count_first(row, record, first_byte_ms)
        if decision is not None and decision.bond is not None:
            self._count_bond(record, decision.bond, row)
        if reason is not None or attempts != 1 or source != "engine":
            self._count_unusual(record, row.labels[_SOURCE])

    def answered(self, status: int, reason: str) -> None:
        """Anything else was answered, by this gateway itself."""
        self._answers[str(status), reason] += 1

    def lost_engine(
        self, record: UsageRecord, continued: "Sequence[Continued]", why: str | None
    ) -> None:
        """The stream of a request that ended had lost its engine: how it went on, in order, and
        why it did not in the end."""
        source = _source(record)
        for each in continued:
            last = each is continued[-1] and why is None
            self._continuations[source, each.method, record.outcome if last else "lost"] += 1
            gap_s = each.gap_ms / 1000
            counts, gaps_s = self._gaps.get(each.method) or ([0] * (len(_LATENCY_MS) + 1), 0.0)
            counts[bisect_left(metrics.LATENCY_S, gap_s)] += 1
            self._gaps[each.method] = counts, gaps_s + gap_s
        if why is not None:
            self._abandoned[source, why] += 1

    def _count_bond(self, record: UsageRecord, bond: BondRecord, row: _Row) -> None:
        """What was believed cached, in the engine's tokens, beside what it said."""
        if bond.verdict != "none":
            self._homes[bond.verdict,] += 1
        prompt = record.input_uncached + record.input_cached
        if record.token_source == "engine" and bond.prompt_tokens > 0:
            row.believed += prompt * bond.cached_tokens // bond.prompt_tokens
            row.reported += record.input_cached

    def _row(self, record: UsageRecord, key: tuple[str | int | None, ...]) -> _Row:
        """The row of a combination seen for the first time, or of a model that nobody has: what
        clients make up is not remembered."""
        model = record.model or NONE
        known = model == NONE or self._is_known(record.model)
        labels = (
            record.endpoint, model if known else OTHER, record.class_,
            _source(record), record.outcome, str(record.status), record.serving_site or NONE,
        )
        row = self._by_labels.get(labels)
        if row is None:
            if len(self._by_labels) >= MOST_ROWS:
                labels = (labels[0], OTHER, *labels[2:6], OTHER)
                known = False
            row = self._by_labels.setdefault(labels, _Row(labels))
        if known:
            self._rows[key] = row
        return row

    def _count_unusual(self, record: UsageRecord, source: str) -> None:
        if record.attempts != 1:
            self._extra_attempts[source,] += record.attempts - 1
        if record.token_source != "engine":
            self._counted[source, record.token_source] += 1
        if record.outcome == "refused":
            self._refusals[source, record.reason or NONE] += 1
        elif record.outcome not in ("finished", "client_gone"):
            self._failures[source, record.outcome, record.reason or NONE] += 1
        if record.decision is not None:
            for left in record.decision.tried:
                self._left[left.rule,] += 1

    # -- what is scraped -------------------------------------------------------------------------

    def families(self) -> Iterator[Family]:
        """Everything that was counted, by its declaration."""
        rows = [(row.labels, row) for row in self._by_labels.values()]
        yield _counts(metrics.REQUESTS, {labels: sum(row.durations) for labels, row in rows})
        yield self._tokens(rows)
        yield _counts(metrics.TOKEN_REPORTS, self._reports())
        yield _counts(metrics.REFUSALS, self._refusals)
        yield _counts(metrics.FAILURES, self._failures)
        yield _counts(metrics.ANSWERS, self._answers)
        yield from self._times(rows)
        yield _counts(metrics.PREFIX_HITS, _sums(
            ((labels[_MODEL], labels[_SOURCE]), row.prefix_hits) for labels, row in rows
        ))
        yield _counts(metrics.PREFIX_TOKENS, _sums(
            ((labels[_MODEL], name), tokens) for labels, row in rows
            for name, tokens in (("believed", row.believed), ("reported", row.reported))
            if row.believed or row.reported
        ))
        yield _counts(metrics.SESSION_REQUESTS, self._homes)
        yield _counts(metrics.ATTEMPTS, {
            source: count + self._extra_attempts[source]
            for source, count in self._by_source().items()
        })
        yield _counts(metrics.FAILED_ATTEMPTS, self._left)
        yield _counts(metrics.CONTINUATIONS, self._continuations)
        yield _spread(metrics.CONTINUATION_GAP, (
            ((method,), tally) for method, tally in self._gaps.items()
        ))
        yield _counts(metrics.ABANDONED, self._abandoned)

    def _tokens(self, rows: Sequence[tuple[_Names, _Row]]) -> Family:
        tokens: Counter[_Names] = Counter()
        for labels, row in rows:
            shape = (labels[_MODEL], labels[_CLASS], labels[_SOURCE])
            tokens[*shape, "input_uncached"] += row.input_uncached
            tokens[*shape, "input_cached"] += row.input_cached
            tokens[*shape, "output"] += row.output
        return _counts(metrics.TOKENS, tokens)

    def _by_source(self) -> Counter[_Names]:
        """All requests until now. Requests end between two families: what is taken from them has
        to be counted at the same moment, or a counter would go down."""
        return _sums(
            ((row.labels[_SOURCE],), sum(row.durations)) for row in self._by_labels.values()
        )

    def _reports(self) -> Mapping[_Names, int]:
        """How tokens were counted: by the engine, unless something else was noted."""
        reports = dict(self._counted)
        for (source,), count in self._by_source().items():
            others = sum(n for names, n in self._counted.items() if names[0] == source)
            reports[source, "engine"] = count - others
        return reports

    def _times(self, rows: Sequence[tuple[_Names, _Row]]) -> Iterator[Family]:
        yield _spread(metrics.DURATION, (
            (labels[:4], (row.durations, row.durations_ms / 1000)) for labels, row in rows
        ))
        yield _spread(metrics.FIRST_BYTE, (
            (labels[:4], (row.firsts, row.firsts_ms / 1000)) for labels, row in rows
        ))
        yield _spread(metrics.ADDED, (
            ((labels[_SOURCE],), (row.added, row.added_ms / 1000)) for labels, row in rows
        ))
        yield _spread(metrics.RECEIVING, (
            ((labels[_SOURCE],), (_received(row), row.receive_ms / 1000)) for labels, row in rows
        ))
        yield _spread(metrics.PREDICTION_RATIO, (
            ((labels[_MODEL],), (row.ratio, row.ratio_sum)) for labels, row in rows
        ))


_MODEL, _CLASS, _SOURCE = 1, 2, 3  # of a row's labels


def _source(record: UsageRecord) -> str:
    return "peer" if record.reporter == "evidence" else "client"


def _count_first(row: _Row, record: UsageRecord, first_ms: float) -> None:
    """A stream began to answer: when, and how that compares with what was expected."""
    row.firsts[bisect_left(_LATENCY_MS, first_ms)] += 1
    row.firsts_ms += first_ms
    decision = record.decision
    if decision is None:
        return
    if decision.foretold:
        for predicted_ms, actual_ms in times_of_a_lost_stream(decision, record.attempts):
            _count_ratio(row, predicted_ms, actual_ms)
    elif record.attempts == 1 and decision.predicted_ttft_ms is not None:
        _count_ratio(row, decision.predicted_ttft_ms, first_ms)


def _count_ratio(row: _Row, predicted_ms: float, actual_ms: float) -> None:
    if predicted_ms:
        ratio = actual_ms / predicted_ms
        row.ratio[bisect_left(_RATIO, ratio)] += 1
        row.ratio_sum += ratio


def _received(row: _Row) -> list[int]:
    """Requests that came in one piece took no time to come in, and were not counted then."""
    at_once = sum(row.added) - sum(row.receive)
    return [row.receive[0] + at_once, *row.receive[1:]]


def _counts(metric: Metric, counts: Mapping[_Names, int]) -> Family:
    return Family(metric, [Sample(labels, count) for labels, count in counts.items()])


def _sums(pairs: Iterable[tuple[_Names, int]]) -> Counter[_Names]:
    sums: Counter[_Names] = Counter()
    for labels, count in pairs:
        sums[labels] += count
    return sums


def _spread(metric: Metric, tallies: Iterable[tuple[_Names, _Tally]]) -> Family:
    """Histograms of rows, added up by fewer labels; labels without any value are left out."""
    counts: dict[_Names, list[int]] = defaultdict(lambda: [0] * (len(metric.buckets) + 1))
    sums: dict[_Names, float] = defaultdict(float)
    for labels, (each, total) in tallies:
        if any(each):
            counts[labels] = list(map(add, counts[labels], each))
            sums[labels] += total
    return Family(metric, [
        Distribution(labels, tuple(each), sums[labels]) for labels, each in counts.items()
    ])
