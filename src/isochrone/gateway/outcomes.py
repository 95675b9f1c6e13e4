"""Learns from requests that ended: how fast hardware is, and how far predictions were off.

Off the path of requests: what ended is kept until the next sweep. Only a stream of one try and one
answer says when its prompt was read and how fast an answer is written: several are written at once.
Only one that found no queue says how long reading took. One that went on at
another site says of each site how far its prediction was off.
"""

from collections.abc import Mapping
from typing import Protocol

from isochrone.core.estimate.calibration import Calibration
from isochrone.core.estimate.learned import LearnedRates
from isochrone.core.estimate.transfer import transfer_ms
from isochrone.core.ids import ModelName
from isochrone.core.routing.board import OpenSite
from isochrone.core.routing.table import RoutingTable
from isochrone.gateway.foretold import times_of_a_lost_stream
from isochrone.wire.usage import UsageRecord

MOST_KEPT = 1024         # between two sweeps; more say nothing new
NO_QUEUE_MS = 1.0
LEAST_PROMPT_TOKENS = 64  # shorter ones are read in the time that everything else takes
LEAST_OUTPUT_TOKENS = 16


class Tabled(Protocol):
    """Whatever has the routing table: a gateway's view, or a test."""

    @property
    def table(self) -> RoutingTable: ...


class Outcomes:
    """Mutable, owned by the event loop. `view` has the table of the moment."""

    def __init__(self, learned: LearnedRates, view: Tabled) -> None:
        self._learned = learned
        self._view = view
        self._waiting: list[tuple[UsageRecord, int]] = []  # with the answers that each had
        self._calibrations: dict[ModelName, Calibration] = {}

    @property
    def calibrations(self) -> Mapping[ModelName, Calibration]:
        """How far predicted times to the first token were off, by model."""
        return self._calibrations

    def ended(self, record: UsageRecord, answers: int = 1) -> None:
        """A request of this ingress came to its end, which had so many `answers`."""
        decision = record.decision
        tells = record.stream and record.first_byte_ms is not None and (
            record.attempts == 1 or (decision is not None and len(decision.foretold) > 0)
        )
        if tells and len(self._waiting) < MOST_KEPT:
            self._waiting.append((record, answers))

    def learn(self, now_ns: int) -> None:
        """Take in what has gathered."""
        waiting, self._waiting = self._waiting, []
        self._learned.fade(now_ns)
        for record, answers in waiting:
            self._calibrate(record)
            is_plain = record.attempts == answers == 1 and record.outcome == "finished"
            if is_plain and record.serving_site is not None:
                site = self._view.table.open_site(record.serving_site)
                if site is not None:
                    self._learn(record, site)

    def _calibrate(self, record: UsageRecord) -> None:
        decision, model = record.decision, record.model
        if decision is None or (decision.predicted_ttft_ms is None and not decision.foretold):
            return
        if not self._view.table.is_served(model):
            return
        calibration = self._calibrations.get(model)
        if calibration is None:
            calibration = self._calibrations[model] = Calibration()
        if decision.foretold:
            for predicted_ms, actual_ms in times_of_a_lost_stream(decision, record.attempts):
                calibration.saw(predicted_ms, actual_ms)
        else:
            calibration.saw(decision.predicted_ttft_ms or 0.0, record.first_byte_ms or 0.0)

    def _learn(self, record: UsageRecord, site: OpenSite) -> None:
        first_ms, sent_ms, decision = record.first_byte_ms, record.sent_ms, record.decision
        assert first_ms is not None
        answer_ms = record.total_ms - first_ms
        elsewhere = record.serving_site != record.ingress_site
        may_have_paused = elsewhere and record.class_ == "batch"  # stopped there
        if record.output >= LEAST_OUTPUT_TOKENS and answer_ms > 0 and not may_have_paused:
            tok_s = 1000.0 * (record.output - 1) / answer_ms
            self._learned.saw_decode(record.model, site.kind, site.seed, tok_s)
        if decision is None or sent_ms is None or record.input_uncached < LEAST_PROMPT_TOKENS:
            return
        if decision.chosen < 0 or (elsewhere and decision.queued_ms >= NO_QUEUE_MS):
            return
        read_ms = first_ms - sent_ms - site.rtt_ms - transfer_ms(decision.body_bytes, site.rtt_ms)
        if decision.chosen_queue_ms < NO_QUEUE_MS and read_ms > 0:
            tok_s = 1000.0 * record.input_uncached / read_ms
            self._learned.saw_prefill(record.model, site.kind, site.seed, tok_s)
