"""Loads: digests, own dispatches between them, and sites that do not answer."""

from dataclasses import replace

import pytest

from isochrone.core.estimate.service import Work
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.loads import EVERY_SITE, NEVER_NS, Loads, Report
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_choice,
    a_digest,
    a_load,
    a_site,
    a_table,
    a_view,
)

SITE = SiteName("sydney")


OTHER = SiteName("oslo")


def ahead(loads: Loads) -> Work:
    known = loads.of(SITE)
    assert known is not None
    return known.models[MODEL].ahead


def unreachable(loads: Loads) -> bool:
    known = loads.of(SITE)
    assert known is not None
    return known.unreachable


def test_nothing_is_known_of_a_silent_site() -> None:
    assert Loads().of(SITE) is None


def test_a_digest_states_the_work_ahead() -> None:
    loads = Loads()
    load = a_load(running=2, waiting=3, prompt_tokens=50, output_tokens=70)
    assert loads.heard(a_digest(SITE, load), 5)
    assert ahead(loads) == Work(requests=5, prompt_tokens=50, output_tokens=70)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 5e-324, 1e300])
def test_an_impossible_rate_counts_as_not_measured(rate: float) -> None:
    loads = Loads()
    loads.heard(a_digest(SITE, a_load(decode_tok_s=rate)), 0)
    known = loads.of(SITE)
    assert known is not None
    assert known.models[MODEL].servers is None
    assert known.models[MODEL].decode_tok_s == 0


def test_negative_counts_do_not_make_a_site_cheaper() -> None:
    loads = Loads()
    negative = a_load(running=-5, waiting=-1, prompt_tokens=-100, output_tokens=-100)
    loads.heard(a_digest(SITE, negative), 0)
    assert ahead(loads) == Work()


def test_older_and_repeated_digests_are_ignored() -> None:
    loads = Loads()
    assert loads.heard(a_digest(SITE, sequence=5), 0)
    assert not loads.heard(a_digest(SITE, a_load(running=4), sequence=5), 1)
    assert not loads.heard(a_digest(SITE, a_load(running=4), sequence=4), 2)
    assert ahead(loads) == Work()


def test_a_restarted_agent_starts_a_new_epoch_and_its_last_one_is_over() -> None:
    loads = Loads()
    loads.heard(a_digest(SITE, epoch=7, sequence=500), 0)
    assert loads.heard(a_digest(SITE, a_load(running=1), epoch=3, sequence=1), 1)
    assert not loads.heard(a_digest(SITE, epoch=7, sequence=501), 2)
    assert ahead(loads).requests == 1


def test_a_late_word_of_an_agent_long_gone_does_not_shut_out_who_lives() -> None:
    loads = Loads()
    for at_ns, epoch in enumerate((7, 8, 9, 10)):
        assert loads.heard(a_digest(SITE, epoch=epoch, sequence=1), at_ns)
    for epoch in (7, 8, 9):
        assert not loads.heard(a_digest(SITE, a_load(running=1), epoch=epoch, sequence=2), 10)
    assert loads.heard(a_digest(SITE, epoch=10, sequence=2), 11)
    for epoch in range(11, 40):
        loads.heard(a_digest(SITE, epoch=epoch, sequence=1), 12)
    load = loads.of(SITE)
    assert load is not None
    assert len(load.left_epochs) == 4, "what is remembered is bounded"


def test_an_agent_that_outlives_its_successor_is_heard_again_when_that_is_silent() -> None:
    loads = Loads(stale_after_ms=5000.0)
    loads.heard(a_digest(SITE, epoch=7, sequence=1), 0)
    loads.heard(a_digest(SITE, epoch=8, sequence=1), 0)
    taken = [
        loads.heard(a_digest(SITE, epoch=7, sequence=1 + second), second * SECOND_NS)
        for second in range(1, 9)
    ]
    assert taken == [False] * 5 + [True] * 3
    assert not loads.heard(a_digest(SITE, epoch=8, sequence=2), 9 * SECOND_NS)


def test_own_dispatches_count_until_they_finish() -> None:
    loads = Loads()
    loads.heard(a_digest(SITE), 0)
    first = loads.dispatched(SITE, MODEL, 100, 20, 1)
    second = loads.dispatched(SITE, MODEL, 10, 2, 1)
    assert ahead(loads) == Work(requests=2, prompt_tokens=110, output_tokens=22)
    loads.finished(first)
    assert ahead(loads) == Work(requests=1, prompt_tokens=10, output_tokens=2)
    loads.finished(second)
    loads.finished(second)
    assert ahead(loads) == Work()


def test_a_digest_takes_over_the_dispatches_that_had_arrived() -> None:
    loads = Loads()
    loads.heard(a_digest(SITE), 0)
    arrived = loads.dispatched(SITE, MODEL, 100, 20, 0, rtt_ms=50)
    loads.dispatched(SITE, MODEL, 10, 2, 100_000_000, rtt_ms=50)
    reported = a_load(running=1, prompt_tokens=100, output_tokens=20)
    loads.heard(a_digest(SITE, reported, sequence=2), 120_000_000)
    assert ahead(loads) == Work(requests=2, prompt_tokens=110, output_tokens=22)
    loads.finished(arrived)
    assert ahead(loads).requests == 2
    loads.heard(a_digest(SITE, sequence=3), SECOND_NS)
    assert ahead(loads) == Work()


def test_dispatches_before_the_first_digest_count_after_it() -> None:
    loads = Loads()
    loads.dispatched(SITE, MODEL, 100, 20, 0, rtt_ms=50)
    loads.heard(a_digest(SITE), 1)
    assert ahead(loads).requests == 1


def test_a_lost_site_needs_a_digest_after_the_hold() -> None:
    loads = Loads()
    loads.heard(a_digest(SITE), 0)
    loads.lost(SITE, SECOND_NS)
    assert unreachable(loads)
    loads.heard(a_digest(SITE, sequence=2), 2 * SECOND_NS)
    assert unreachable(loads)
    loads.heard(a_digest(SITE, sequence=3), 3 * SECOND_NS)
    assert not unreachable(loads)


def test_the_hold_doubles_up_to_a_minute_and_is_forgotten() -> None:
    loads = Loads()
    now_ns, holds_s = 0, []
    for sequence in range(8):
        loads.lost(SITE, now_ns)
        loads.lost(SITE, now_ns)
        known = loads.of(SITE)
        assert known is not None
        holds_s.append(known.hold_ns // SECOND_NS)
        now_ns += known.hold_ns
        loads.heard(a_digest(SITE, sequence=sequence), now_ns)
    assert holds_s == [2, 4, 8, 16, 32, 60, 60, 60]
    now_ns += 60 * SECOND_NS
    loads.lost(SITE, now_ns)
    known = loads.of(SITE)
    assert known is not None
    assert known.hold_ns == 2 * SECOND_NS


def test_silence_of_the_bus_is_no_silence_of_the_sites() -> None:
    loads = Loads(stale_after_ms=5000)
    loads.heard(a_digest(SITE), 0)
    known = loads.of(SITE)
    assert known is not None
    loads.deaf(1 * SECOND_NS)
    loads.deaf(2 * SECOND_NS)  # the first silence counts
    assert loads.stale_ms(known, 60 * SECOND_NS) == 1000
    loads.hearing(60 * SECOND_NS)
    assert loads.stale_ms(known, 60 * SECOND_NS) == 1000
    assert loads.stale_ms(known, 65 * SECOND_NS) == 6000


def test_a_digest_is_as_old_as_it_is_though_the_bus_was_silent_meanwhile() -> None:
    loads = Loads()
    loads.heard(a_digest(SITE), 0)
    loads.deaf(1 * SECOND_NS)
    loads.hearing(60 * SECOND_NS)
    choice = a_choice(a_table(a_view([a_site(SITE)])), loads, now_ns=61 * SECOND_NS)
    assert (choice.site, choice.digest_age_ms) == (SITE, 61_000.0)


def test_without_a_bus_a_lost_site_is_tried_again_after_its_hold() -> None:
    loads = Loads()
    loads.heard(a_digest(SITE), 0)
    loads.lost(SITE, 1 * SECOND_NS)
    known = loads.of(SITE)
    assert known is not None
    assert not loads.may_try(known, 4 * SECOND_NS)  # its next digest says when
    loads.deaf(2 * SECOND_NS)
    assert not loads.may_try(known, 2 * SECOND_NS)
    assert loads.may_try(known, 4 * SECOND_NS)
    loads.lost(SITE, 4 * SECOND_NS)
    assert not loads.may_try(known, 7 * SECOND_NS)  # held twice as long now
    assert loads.may_try(known, 9 * SECOND_NS)


def test_time_alone_changes_what_holds_at_one_instant() -> None:
    loads = Loads(stale_after_ms=5000)
    loads.heard(a_digest(SITE), 0)
    known = loads.of(SITE)
    assert known is not None
    stale_ns = loads.next_change_ns(known, SECOND_NS)
    assert not loads.is_stale(known, stale_ns - 1)
    assert loads.is_stale(known, stale_ns)
    assert loads.next_change_ns(known, stale_ns) == NEVER_NS
    loads.deaf(2 * SECOND_NS)
    assert loads.next_change_ns(known, 3 * SECOND_NS) == NEVER_NS  # no digest grows stale now
    loads.lost(SITE, 3 * SECOND_NS)
    tried_ns = loads.next_change_ns(known, 4 * SECOND_NS)
    assert not loads.may_try(known, tried_ns - 1)
    assert loads.may_try(known, tried_ns)


def test_changes_name_the_sites_where_something_happened() -> None:
    loads = Loads()

    def named() -> set[SiteName]:
        return {loads.numbered(number).site for number in changes}

    changes = loads.changes(MODEL)
    loads.heard(a_digest(SITE), 0)
    assert named() == {SITE}
    changes.clear()
    ticket = loads.dispatched(OTHER, MODEL, 1, 1, 0)
    assert named() == {OTHER}
    changes.clear()
    loads.finished(ticket)
    loads.lost(SITE, 0)
    assert named() == {OTHER, SITE}
    loads.deaf(1)
    assert EVERY_SITE in changes


def test_a_new_reader_of_changes_takes_over() -> None:
    loads = Loads()
    former = loads.changes(MODEL)
    present = loads.changes(MODEL)
    loads.heard(a_digest(SITE), 0)
    assert former == {EVERY_SITE}
    assert {loads.numbered(number).site for number in present} == {SITE}


def test_models_that_a_site_ceases_to_mention_are_forgotten_with_their_last_request() -> None:
    loads = Loads()
    loads.heard(a_digest(SITE), 0)
    known = loads.of(SITE)
    assert known is not None
    ticket = loads.dispatched(SITE, MODEL, 5, 7, 0, rtt_ms=50)
    other = replace(a_load(), model=ModelName("other"))
    loads.heard(a_digest(SITE, other, sequence=2), 1)
    assert known.models[MODEL].ready is None
    assert ahead(loads).requests == 1
    loads.finished(ticket)
    loads.heard(a_digest(SITE, other, sequence=3), 2)
    assert list(known.models) == ["other"]


def test_two_gateways_that_take_one_report_know_the_same_and_count_apart() -> None:
    load = a_load(running=2, prompt_tokens=500, output_tokens=100)
    report = Report(a_digest(SITE, load, sequence=1))
    one, other = Loads(), Loads()
    assert one.take(report, 5)
    ticket = one.dispatched(SITE, MODEL, 40, 30, 6)
    assert other.take(report, 7)
    assert not other.take(report, 8)
    assert ahead(one) == Work(requests=3, prompt_tokens=540, output_tokens=130)
    assert ahead(other) == Work(requests=2, prompt_tokens=500, output_tokens=100)
    one.finished(ticket)
    one.finished(ticket)  # said twice: counted once
    assert ahead(one) == ahead(other)
    heard = Loads()
    heard.heard(a_digest(SITE, load, sequence=1), 5)
    assert ahead(heard) == ahead(other)
