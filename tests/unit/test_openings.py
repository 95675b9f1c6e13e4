"""How the replicas of a site stand: what its digest says of it, and what a choice makes of that."""

from dataclasses import replace

import pytest

from isochrone.core.estimate.engine_rates import seeded
from isochrone.core.estimate.service import Rates, Work
from isochrone.core.ids import SiteName
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from isochrone.core.world.engine_load import UNKNOWN_LOAD
from isochrone.wire import fleet
from tests.builders import MODEL, SECOND_NS, a_choice, a_digest, a_load, a_site, a_table, a_view


def test_a_digest_says_who_would_begin_at_once() -> None:
    known = seeded(Rates(prefill_tok_s=2000.0, decode_tok_s=50.0))  # 512 tokens are usual
    loads = [
        replace(UNKNOWN_LOAD, running=2, waiting=0, running_prompt_tokens=900),
        replace(UNKNOWN_LOAD, running=3, waiting=0, running_prompt_tokens=40),
        replace(UNKNOWN_LOAD, running=4, waiting=0, running_prompt_tokens=0),  # full
        replace(UNKNOWN_LOAD, running=1, waiting=1, running_prompt_tokens=0),  # its memory is
    ]
    ready = [Reading(slots=4, load=each, arrived=1.0) for each in loads]
    said = load_of(MODEL, ready, known)
    assert (said.free, said.due_ms) == (1, 0)
    two = load_of(MODEL, ready[:2], known)
    assert (two.free, two.due_ms) == (1, 20)
    work = Work(requests=2, prompt_tokens=600, output_tokens=40)
    queued = load_of(MODEL, ready[:2], known, queued=work)
    assert (queued.free, queued.due_ms) == (0, 150)
    assert load_of(MODEL, [], known).due_ms == 0


def test_what_an_engine_says_beyond_reason_still_makes_a_digest() -> None:
    """Its counters are read up to 2^53, each of them."""
    most = 2**53
    slow = seeded(Rates(prefill_tok_s=1e-9, decode_tok_s=1e-9))
    absurd = replace(UNKNOWN_LOAD, running=most, waiting=most, running_prompt_tokens=most)
    ready = [Reading(slots=4, load=absurd, arrived=1.0)] * 3
    said = load_of(MODEL, ready, slow)
    assert (said.running, said.waiting, said.pending_prompt_tokens) == (most, most, most)
    assert (said.pending_output_tokens, said.due_ms) == (most, most)
    digest = a_digest("near", said)
    assert fleet.decode(fleet.encode(digest), SiteDigest) == digest


def test_one_long_prompt_keeps_nobody_waiting_where_another_replica_is_free() -> None:
    """Of two replicas at the nearer site one reads for 4 s; the other takes a newcomer at once."""
    view = a_view([a_site("own"), a_site("near"), a_site("far")], own_site="own",
                  rtt_ms={"near": 20.0, "far": 300.0}, serving=["near", "far"])
    loads = Loads()
    reading = replace(a_load(ready=2, slots=8, running=1, prompt_tokens=4000), free=1)
    loads.heard(a_digest("near", reading), 0)
    loads.heard(a_digest("far", a_load()), 0)
    choice = a_choice(a_table(view), loads, target_ms=0.0)
    assert (choice.site, choice.queue_ms) == ("near", 0.0)
    loads.dispatched(SiteName("near"), MODEL, 4000, 10, 0)  # which takes it
    assert a_choice(a_table(view), loads, target_ms=0.0).site == "far"


def test_a_queue_that_is_unlike_the_usual_one_is_believed_in_part() -> None:
    """It will be more like it when a request gets there; what was sent since counts in full."""
    view = a_view([a_site("own"), a_site("near")], own_site="own", rtt_ms={"near": 20.0},
                  serving=["near"])
    table, loads = a_table(view), Loads()
    busy, idle = a_load(running=1, prompt_tokens=400), a_load()

    def said(load: DeploymentLoad, sequence: int) -> float:
        loads.heard(a_digest("near", load, sequence=sequence), sequence * SECOND_NS)
        choice = a_choice(table, loads, target_ms=0.0, now_ns=sequence * SECOND_NS)
        return choice.queue_ms

    assert said(busy, 1) == pytest.approx(400.0)  # nothing else is known
    assert said(busy, 2) == pytest.approx(400.0)
    usual_ms = 400.0 - 0.2 * 400.0
    idle_ms = usual_ms * 300.0 / (300.0 + usual_ms)
    assert said(idle, 3) == pytest.approx(idle_ms, rel=1e-4)
    loads.dispatched(SiteName("near"), MODEL, 100, 10, 3 * SECOND_NS)
    choice = a_choice(table, loads, target_ms=0.0, now_ns=3 * SECOND_NS)
    assert choice.queue_ms == pytest.approx(idle_ms + 100.0, rel=1e-4)
    loads.heard(a_digest("near", a_load(ready=0), sequence=4), 4 * SECOND_NS)
    assert said(idle, 5) == 0.0  # it was away: what was usual is forgotten
