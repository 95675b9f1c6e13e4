"""What gateways tell their site's agent: what waits for its turn, and what was pushed there."""

import pytest

from isochrone.agent.queued import Queued
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.site_queue import SiteQueue
from isochrone.core.estimate.engine_rates import seeded
from isochrone.core.estimate.service import Rates, Work
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.world.engine_load import UNKNOWN_LOAD
from isochrone.core.world.queued import QueuedWork, QueueReport
from isochrone.core.world.site_policy import SitePolicy
from isochrone.wire import fleet, subjects
from tests.builders import MODEL, SECOND_NS

HERE = SiteName("here")
OTHER = ModelName("another")


def report(worker: int = 0, *, requests: int = 0, pushed: int = 0, site: SiteName = HERE) -> bytes:
    work = QueuedWork(
        model=MODEL, requests=requests, prompt_tokens=100 * requests,
        output_tokens=10 * requests, pushed=pushed,
    )
    return fleet.encode(QueueReport(site=site, worker=worker, queues=(work,)))


class Clock:
    """Stands still until it is moved on."""

    now_ns = SECOND_NS

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns

    def advance(self, by_ns: int) -> None:
        self.now_ns += by_ns


def an_agent() -> tuple[Queued, Clock]:
    clock = Clock()
    return Queued(HERE, clock), clock


def test_all_workers_count_and_who_falls_silent_counts_no_more() -> None:
    queued, clock = an_agent()
    subject = subjects.queued_subject(HERE)
    queued.on_report(subject, report(0, requests=3))
    queued.on_report(subject, report(0, requests=2))
    clock.advance(2 * SECOND_NS)
    queued.on_report(subject, report(1, requests=5))
    assert queued.of(MODEL) == Work(requests=7, prompt_tokens=700, output_tokens=70)
    assert queued.of(OTHER) == Work()
    clock.advance(2 * SECOND_NS)
    assert queued.of(MODEL).requests == 5
    clock.advance(2 * SECOND_NS)
    assert queued.of(MODEL) == Work()


@pytest.mark.parametrize("payload", [
    b"", b"{}", report(site=SiteName("there"), requests=9), report(-1, requests=9),
    report(5000, requests=9), report(0, requests=-9),
])
def test_what_nobody_can_have_said_counts_nothing(payload: bytes) -> None:
    queued, _ = an_agent()
    queued.on_report(subjects.queued_subject(HERE), payload)
    assert queued.of(MODEL) == Work()


def test_what_another_site_had_delivered_here_counts_nothing() -> None:
    queued, _ = an_agent()
    for subject in ("$KV.site_evil.replica.x", subjects.queued_subject(SiteName("there"))):
        queued.on_report(subject, report(requests=9))
    assert queued.of(MODEL) == Work()


def test_pushes_are_counted_by_the_second_and_a_worker_may_begin_anew() -> None:
    queued, clock = an_agent()
    subject = subjects.queued_subject(HERE)
    assert queued.pushed(MODEL) == 0.0
    queued.on_report(subject, report(0, pushed=4))
    queued.on_report(subject, report(1, pushed=6))
    clock.advance(2 * SECOND_NS)
    assert queued.pushed(MODEL) == pytest.approx(0.7 * 5)
    assert queued.pushed(MODEL) == pytest.approx(0.7 * 5), "nothing can be said of no time"
    queued.on_report(subject, report(0, pushed=1))  # it was started anew
    queued.on_report(subject, report(1, pushed=8))
    clock.advance(SECOND_NS)
    assert queued.pushed(MODEL) == pytest.approx(3.5 + 0.7 * (3 - 3.5))
    clock.advance(SECOND_NS)
    assert queued.pushed(MODEL) == pytest.approx(0.3 * 3.15)


def test_what_waits_at_a_queue_is_said_in_tokens_and_is_gone_when_it_runs() -> None:
    policy = SitePolicy()
    queue = SiteQueue(policy, 1, 1e6)
    weight = policy.output_weight

    def offer(prompt: int, output: int) -> Ticket:
        tokens = prompt + weight * output
        ticket = queue.offer(
            "on_demand", "tenant", tokens, most_tokens=tokens, prompt_tokens=prompt, now_ns=1
        )
        assert isinstance(ticket, Ticket)
        return ticket

    first = offer(100, 10)
    assert queue.waiting() == Work()
    offer(200, 20)
    offer(300, 30)
    assert queue.waiting() == Work(requests=2, prompt_tokens=500, output_tokens=50)
    queue.finished(first, 0, 2)
    assert queue.waiting() == Work(requests=1, prompt_tokens=300, output_tokens=30)


def test_a_digest_counts_what_waits_and_has_less_to_spare() -> None:
    known = seeded(Rates(prefill_tok_s=1000.0, decode_tok_s=50.0))
    ready = [Reading(slots=8, load=UNKNOWN_LOAD, arrived=1.0)]
    idle = load_of(MODEL, ready, known)
    work = Work(requests=30, prompt_tokens=9000, output_tokens=3000)
    busy = load_of(MODEL, ready, known, queued=work, pushed=2.0)
    pending = busy.pending_prompt_tokens, busy.pending_output_tokens
    assert (busy.waiting, pending) == (30, (9000, 3000))
    assert busy.pushed == 2.0
    assert idle.spare is not None
    assert busy.spare is not None
    assert busy.spare < 0 < idle.spare
