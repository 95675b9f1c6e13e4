"""A crowd that engines cannot read in time, and that is refused as one: each is told a time at
which it is read, and no later than those before it make it, though the queue was long."""

from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.queue_commands import Refused
from isochrone.core.admission.reading import AHEAD_S, LEAST_TOKENS
from isochrone.core.admission.told import MOST_PROMISED_NS
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from tests.fixtures.reading_site import SECOND_NS, ReadingSite

RATE = 10_000.0
SLOTS = 4_000  # far more than prompts can be read for
MS = 1_000_000
PATIENT = ClassRule(share=1, queue_most=1_000, wait_ms=600_000)
sizes = st.lists(st.sampled_from((10, 50, 200, 1_000, 3_000, 10_000)), min_size=1, max_size=5)


def refused_of_a_crowd(
    site: ReadingSite, prompts: list[int], count: int, spread_ns: int
) -> list[tuple[int, int, int]]:
    """Offer so many, evenly; when each that is refused should come back, in the order in which they
    are told, when it was told, and its prompt. So many that they are all told different times."""
    told, tokens, began_ns = [], 0, site.now_ns
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        tokens += prompt
        if tokens / RATE > MOST_PROMISED_NS / SECOND_NS - 2:
            break
        site.until(began_ns + number * spread_ns // count)
        answer = site.offer("on_demand", prompt)
        if isinstance(answer, Refused):
            told.append((site.now_ns, answer.retry_after_ns, prompt))
    site.until(site.now_ns + int(site.policy.on_demand.wait_ms) * MS)
    told += [(at, each.refused.retry_after_ns, each.ticket.prompt_tokens) for at, each in site.told]
    return [(at + (after_ns or 0), at, prompt) for at, after_ns, prompt in sorted(told)]


def a_site(wait_ms: float, engines: int, write_ms: float) -> ReadingSite:
    """Nothing was measured yet: nobody is refused for his wait at first, and so many expire."""
    crowded = ClassRule(share=3, queue_most=1_000, wait_ms=wait_ms)
    policy = SitePolicy(reserved=PATIENT, on_demand=crowded, batch=PATIENT)
    return ReadingSite(policy, SLOTS, RATE, RATE, write_ms, engines, guessed=True)


@given(
    prompts=sizes, engines=st.integers(1, 4), count=st.integers(2, 200),
    wait_ms=st.sampled_from((1_000, 3_000, 10_000)), spread=st.sampled_from((0.0, 0.5)),
    write_ms=st.sampled_from((20.0, 2_000.0, 100_000.0)),
)
@settings(max_examples=400)
def test_a_crowd_that_expires_together_is_told_when_engines_will_read_each_of_it(
    prompts: list[int], engines: int, count: int, wait_ms: int, spread: float, write_ms: float
) -> None:
    """All come back when told. None is told to come later than those who were told a time before it
    take to read, after the last that waited was sent or expired and what engines had then was
    read. And it is taken then, and sent within the time that engines take for the longest of them
    and what they have room for."""
    site = a_site(wait_ms, engines, write_ms)
    told = refused_of_a_crowd(site, prompts, count, int(spread * wait_ms * MS))
    over_ns = site.now_ns
    longest_s, room_s = max(prompts) * engines / RATE, max(AHEAD_S, LEAST_TOKENS * engines / RATE)
    before_s = 0.0
    for back_ns, _, prompt in told:
        before_s += prompt / RATE
        assert (back_ns - over_ns) / SECOND_NS <= before_s + room_s + longest_s
    again: list[tuple[int, Ticket]] = []
    for back_ns, _, prompt in sorted(told):
        if back_ns < site.now_ns:
            continue  # what it waited for was over before the crowd was
        site.until(back_ns)
        answer = site.offer("on_demand", prompt)
        if isinstance(answer, Ticket):
            again.append((back_ns, answer))
        else:
            assert wait_ms / 1e3 < longest_s + room_s, "it would have waited for no longer"
    site.until(site.now_ns + int((longest_s + room_s) * SECOND_NS))
    expired = {away.ticket for _, away in site.told}
    for back_ns, ticket in again:
        if ticket in expired:
            assert wait_ms / 1e3 < longest_s + room_s
        else:
            assert ticket.state != "queued"
            assert (ticket.started_ns - back_ns) / SECOND_NS <= longest_s + room_s
