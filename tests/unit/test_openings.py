"""How the replicas of a site stand: what its digest says of it, and what a choice makes of that."""

from dataclasses import replace

from isochrone.core.estimate.engine_rates import seeded
from isochrone.core.estimate.service import Rates, Work
from isochrone.core.ids import SiteName
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.world.engine_load import UNKNOWN_LOAD
from tests.builders import MODEL, a_choice, a_digest, a_load, a_site, a_table, a_view


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
