"""What was sold is read in time under any load of the others, and they are not starved by it."""

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from isochrone.core.admission.classes import RANK
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.promise import Promise
from isochrone.core.admission.queue_commands import Refused
from isochrone.core.admission.reading import AHEAD_S, LEAST_TOKENS, Reading
from isochrone.core.admission.site_queue import SiteQueue
from isochrone.core.rng import stream
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import Class
from tests.fixtures.busy_site import BusySite
from tests.fixtures.reading_site import SECOND_NS, ReadingSite

OTHERS_PART = 20  # docs/admission.md: of twenty tokens that begin one is for the others
RATE = 10_000.0
STEP_NS = SECOND_NS // 50
PATIENT = SitePolicy(  # by shares alone, what was sold would get a seventh
    reserved=ClassRule(share=1, queue_most=10_000, wait_ms=1e7),
    on_demand=ClassRule(share=6, queue_most=10_000, wait_ms=1e7),
    batch=ClassRule(share=6, queue_most=10_000, wait_ms=1e7),
)


def play(
    site: ReadingSite, seconds: int, sold_tok_s: float, others_tok_s: float, by: Class,
    *, prompt: int, most: int, whole_percent: int, seed: int, in_force: float,
) -> None:
    """Requests of both classes come evenly; those of the others have up to `most` tokens, and some
    of their answers come as a whole."""
    rng, began_ns = stream(seed, "sold first"), site.now_ns
    due = {"sold": 0.0, "others": 0.0}
    for step in range(seconds * 50):
        if step % 50 == 0:
            site.queue.promises(in_force, site.now_ns)
        due["sold"] += sold_tok_s / 50
        due["others"] += others_tok_s / 50
        while due["others"] > 0:
            tokens = rng.randint(1, most)
            due["others"] -= tokens
            site.offer(by, tokens, tells=rng.randrange(100) >= whole_percent)
        while due["sold"] > 0:
            due["sold"] -= prompt
            assert not isinstance(site.offer("reserved", prompt), Refused)
        site.until(began_ns + (step + 1) * STEP_NS)


@given(
    share=st.sampled_from((0.1, 0.4, 0.8)), load=st.sampled_from((1.0, 2.0, 5.0)),
    by=st.sampled_from(("on_demand", "batch")), prompt=st.integers(50, 2_000),
    most=st.integers(50, 3_000), whole_percent=st.sampled_from((0, 50, 100)),
    is_home=st.booleans(), seed=st.integers(0, 1000),
)
@settings(max_examples=40, phases=[Phase.generate])
def test_what_was_sold_is_read_in_time_under_any_load_of_the_others(
    share: float, load: float, by: Class, prompt: int, most: int, whole_percent: int,
    is_home: bool, seed: int,
) -> None:
    """With far more slots than prompts can be read for: a floor in slots would never be short.
    Whether the site itself may honour what was sold, or others pay for what they send to it."""
    site = ReadingSite(PATIENT, 4_000, RATE, RATE)
    sold = share * RATE
    play(
        site, 12, sold, load * RATE, by, prompt=prompt, most=most, whole_percent=whole_percent,
        seed=seed, in_force=sold if is_home else 0.0,
    )
    waits_s = site.waits_s[0][len(site.waits_s[0]) // 4 :]  # by then it is known that it comes
    # What engines have, one request of the others that is their part, one that went before.
    # Whole answers count as read too soon, until a stream behind them says when they were.
    ahead = RATE * AHEAD_S * (2 if whole_percent else 1) + 2 * most + 2 * prompt
    assert max(waits_s) <= ahead / RATE / (1.0 - share) + 0.1


@given(
    prompt=st.integers(50, 1_000), most=st.integers(50, 1_000), seed=st.integers(0, 1000),
    floor=st.sampled_from((0.0, 0.9)),
)
@settings(max_examples=15, phases=[Phase.generate])
def test_the_others_get_their_part_where_what_was_sold_would_take_all(
    prompt: int, most: int, seed: int, floor: float
) -> None:
    """Whether by what was sold, or by a floor that is never reached since engines cannot read so
    much."""
    rule = ClassRule(floor=floor, share=6, queue_most=10_000, wait_ms=1e7)
    policy = SitePolicy(reserved=rule, on_demand=PATIENT.on_demand)
    site = ReadingSite(policy, 1_000, RATE, RATE)
    play(
        site, 10, 2 * RATE, 2 * RATE, "on_demand", prompt=prompt, most=most, whole_percent=0,
        seed=seed, in_force=3 * RATE if not floor else 0.0,
    )
    read = sum(site.read.values())
    assert read >= 0.9 * 10 * RATE
    assert site.read[1] >= read / OTHERS_PART * 0.8 - most
    assert site.read[0] >= read * (1 - 1 / OTHERS_PART) * 0.8


@given(
    firsts=st.lists(st.integers(100, 2_000), min_size=1, max_size=4),
    others=st.lists(st.integers(50, 2_000), min_size=1, max_size=4),
    by=st.sampled_from(("on_demand", "batch")), floor=st.sampled_from((0.0, 0.9)),
    share=st.sampled_from((1.0, 6.0)), engines=st.integers(1, 3),
)
@settings(max_examples=30, phases=[Phase.generate])
def test_of_twenty_tokens_that_begin_one_is_for_the_others_no_less_and_no_more(
    firsts: list[int], others: list[int], by: Class, floor: float, share: float, engines: int
) -> None:
    """Both have always something waiting: what begins is apart from that by no more than a request
    of each, and what rounding up to a whole token makes."""
    rule = ClassRule(floor=floor, share=share, queue_most=10_000, wait_ms=1e7)
    policy = SitePolicy(reserved=rule, on_demand=PATIENT.on_demand, batch=PATIENT.batch)
    site = ReadingSite(policy, 4_000, RATE, RATE, engines=engines)
    site.queue.promises(0.0 if floor else 100 * RATE, 0)
    waiting: tuple[tuple[Class, list[int], int], ...] = (
        ("reserved", firsts, 80_000), (by, others, 40_000)
    )
    for class_, sizes, most in waiting:
        while site.queue.line(class_).order.tokens < most:
            for tokens in sizes:
                site.offer(class_, tokens)
    before = dict(site.began_tokens)
    site.until(5 * SECOND_NS)
    assert site.queue.line("reserved").order.queued
    assert site.queue.line(by).order.queued
    first, other = (site.began_tokens[rank] - before[rank] for rank in (0, RANK[by]))
    part, requests = first / OTHERS_PART, first // min(firsts) + 1
    assert first + other > 0.9 * 5 * RATE - max(firsts) - max(others)
    assert part - max(firsts) / OTHERS_PART - 1 <= other <= part + requests + max(others)


@given(
    stated=st.sampled_from((0.1, 0.3, 1.0)), whole_percent=st.sampled_from((0, 50, 100)),
    most=st.integers(300, 2_000), seed=st.integers(0, 1000),
)
@settings(max_examples=12, phases=[Phase.generate])
def test_engines_are_kept_reading_even_if_they_are_said_to_be_slow(
    stated: float, whole_percent: int, most: int, seed: int
) -> None:
    site = ReadingSite(PATIENT, 4_000, RATE, stated * RATE, write_ms=500.0)
    play(
        site, 40 if whole_percent else 15, 0.0, 1.5 * RATE, "on_demand", prompt=1, most=most,
        whole_percent=whole_percent, seed=seed, in_force=0.0,
    )
    before = sum(site.read.values())
    play(
        site, 5, 0.0, 1.5 * RATE, "on_demand", prompt=1, most=most,
        whole_percent=whole_percent, seed=seed, in_force=0.0,
    )
    assert sum(site.read.values()) - before >= 0.75 * 5 * RATE
    if not whole_percent:
        assert site.most_row <= max(RATE * AHEAD_S * 1.1, LEAST_TOKENS) + most


@given(
    rate=st.integers(1, 1_000), seconds=st.integers(1, 60), tokens=st.integers(1, 500),
)
def test_no_more_goes_first_than_was_promised(rate: int, seconds: int, tokens: int) -> None:
    """Whoever asks for more than comes in with the promise begins by share from then on."""
    promise = Promise()
    promise.renew(rate, 0)
    first = 0
    for step in range(seconds * 10):
        now_ns = step * SECOND_NS // 10
        while promise.goes_first(now_ns):
            promise.begin(tokens, now_ns)
            first += tokens
        if step % 10 == 0:
            promise.renew(rate, now_ns)
    assert first <= rate * (seconds + 5) + tokens
    assert first >= rate * (seconds - 1)


def test_nothing_is_promised_before_anybody_says_so() -> None:
    queue = SiteQueue(SitePolicy(), 4, 1e6)
    queue.promise.ask(100)
    assert not queue.promise.goes_first(10**9)
    assert not Reading().is_full()


def test_a_request_that_is_tried_again_where_no_speed_is_known_counts_for_nothing() -> None:
    reading = Reading()
    reading.set_engines(["a", "b"], 1_000.0)
    ticket = Ticket(1, "acme", 700, False, False, 0, 600, True)
    reading.begin(ticket, 0)
    reading.place(ticket, 600, "a", 0)
    assert reading.tokens == 600
    reading.set_engines(["b"], 0.0)  # its engine is lost, of the other one nobody says a speed
    reading.place(ticket, 600, "b", 1)
    assert (reading.tokens, ticket.unread, reading.is_full()) == (0, 0, False)


def test_others_that_are_not_there_for_a_while_are_not_owed_more_when_they_come_again() -> None:
    """One slot. What comes in the promised class between two of the others works off what they had
    ahead of their part, and no more than that."""
    site = BusySite(PATIENT, 1)
    site.promise(5_000.0)
    for _ in range(60):
        for class_ in ("reserved", "reserved", "reserved", "on_demand"):
            site.offer(class_, "a", 50)
        site.pass_ms(140)
        for ticket in [each for each in site.runs if each.rank == RANK["on_demand"]]:
            if ticket.state == "queued":
                site.withdraw(ticket)  # so that for a while there is nobody else
        site.pass_ms(60)
    began = [ticket for _, ticket in site.begun]
    first = sum(each.tokens + OTHERS_PART for each in began if each.rank == RANK["reserved"])
    other = sum(each.tokens for each in began if each.rank == RANK["on_demand"])
    assert first > 50 * 60
    assert other <= first / OTHERS_PART + 50
