"""How long a request is expected to wait, by what each one before it is expected to take: against
how long it does wait where that is so and nothing else comes."""

from copy import deepcopy

from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.admission.classes import CLASSES
from isochrone.core.admission.fair_order import LOOK_AHEAD, FairOrder, Ticket
from isochrone.core.admission.queue_commands import Refused
from isochrone.core.admission.reading import AHEAD_S, LEAST_TOKENS
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import Class
from tests.fixtures.busy_site import MS, SLOT_NS, BusySite
from tests.fixtures.reading_site import SECOND_NS, ReadingSite

OPEN = SitePolicy(
    reserved=ClassRule(share=6, queue_most=10_000, wait_ms=1e9),
    on_demand=ClassRule(share=3, queue_most=10_000, wait_ms=1e9),
    batch=ClassRule(share=1, queue_most=10_000, wait_ms=1e9),
)
short_and_long = st.lists(
    st.sampled_from((1, 10, 30, 100, 700, 5_000)), min_size=1, max_size=40
)
gaps_ms = st.lists(st.sampled_from((0, 0, 0, 5, 60, 400)), min_size=1, max_size=10)


def waits_ns(site: BusySite, class_: Class, tenant: str, tokens: int) -> int:
    """How long a request does wait that comes to a copy of the site, and nothing after it."""
    site = deepcopy(site)
    ticket = site.offer(class_, tenant, tokens)
    assert isinstance(ticket, Ticket)
    began_ns = site.now_ns
    while ticket.state == "queued":
        site.pass_ms(100)
    return ticket.started_ns - began_ns


@given(
    slots=st.integers(1, 9), sizes=short_and_long, gaps=gaps_ms, own=st.sampled_from((1, 5_000))
)
@settings(max_examples=150)
def test_in_one_row_the_wait_is_known_but_for_a_part_of_the_longest_that_waits(
    slots: int, sizes: list[int], gaps: list[int], own: int
) -> None:
    """Whatever runs, and however long its own request is. With nobody before it it is known."""
    site = BusySite(OPEN, slots)
    for number, tokens in enumerate(sizes):
        site.pass_ms(gaps[number % len(gaps)])
        site.offer("on_demand", "t", tokens)
    if site.queue.running < slots:
        return
    expected_ns = site.queue.expected_wait_ns("on_demand", "t", site.now_ns)
    waiting = [each.tokens for each in site.runs if each.state == "queued"]
    apart_ns = abs(expected_ns - waits_ns(site, "on_demand", "t", own))
    assert apart_ns <= max(waiting, default=0) * SLOT_NS * (1 - 1 / slots / 2) + 10


@given(
    slots=st.integers(1, 9), sizes=short_and_long, gaps=gaps_ms,
    wait_ms=st.sampled_from((5, 100, 1_000, 10_000)),
)
@settings(max_examples=60)
def test_who_is_refused_for_his_wait_would_not_have_been_in_time(
    slots: int, sizes: list[int], gaps: list[int], wait_ms: int
) -> None:
    """Nor is anybody let in who is not; but for what the longest that waits takes."""
    site = BusySite(OPEN, slots)
    for number, tokens in enumerate(sizes):
        site.pass_ms(gaps[number % len(gaps)])
        longest_ns = SLOT_NS * max(
            (each.tokens for each in site.runs if each.state == "queued"), default=0
        )
        would_wait_ns = waits_ns(site, "on_demand", "t", tokens)
        answer = site.offer("on_demand", "t", tokens, wait_ns=wait_ms * MS)
        if isinstance(answer, Refused):
            assert answer.reason == "would_expire"
            assert would_wait_ns >= wait_ms * MS - longest_ns - 10
        else:
            assert would_wait_ns <= wait_ms * MS + longest_ns + 10


@given(
    waiting=st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from((1, 10, 100, 5_000))), max_size=150
    ),
    tenants=st.integers(1, 50), taken=st.integers(0, 60), asks=st.integers(0, 51),
    used_percent=st.sampled_from((5, 100, 300)),
)
@settings(max_examples=400)
def test_what_is_ahead_of_a_tenant_is_known_but_for_a_request_of_each_other(
    waiting: list[tuple[int, int]], tenants: int, taken: int, used_percent: int, asks: int
) -> None:
    """Whatever they were charged before. Of more tenants than are looked at it is too much."""
    order = FairOrder()
    for tenant, tokens in waiting:
        order.put(Ticket(1, f"t{tenant % tenants}", tokens, False, False, 0))
    for _ in range(min(taken, order.queued)):
        ticket = order.take(firm_too=True)
        assert ticket is not None
        order.charge(ticket.tenant, ticket.tokens * (used_percent - 100) // 100)
    own = f"t{asks}"
    expected = order.ahead(own)
    assert order.waiting(own)[1] <= expected <= order.tokens
    longest: dict[str, int] = {}
    probe, begun, copy = Ticket(1, own, 1, False, False, 0), 0, deepcopy(order)
    copy.put(probe)
    while (ticket := copy.take(firm_too=True)) is not probe:
        assert ticket is not None
        begun += ticket.tokens
        if ticket.tenant != own:
            longest[ticket.tenant] = max(longest.get(ticket.tenant, 0), ticket.tokens)
    assert expected >= begun - sum(longest.values())
    if order.tenants < LOOK_AHEAD // 2:
        assert expected <= begun + sum(longest.values())


@given(
    slots=st.integers(1, 9), asks=st.sampled_from(CLASSES), count=st.integers(1, 6),
    sizes=st.tuples(*[st.sampled_from((50, 100, 400))] * 3), ms=st.integers(0, 900),
)
@settings(max_examples=60)
def test_beside_other_classes_the_wait_is_known_but_for_two_turns_of_each(
    slots: int, asks: Class, count: int, sizes: tuple[int, int, int], ms: int
) -> None:
    """All of them have more waiting than is begun until then."""
    site = BusySite(OPEN, slots)
    share = dict(zip(CLASSES, (6, 3, 1), strict=True))
    size = dict(zip(CLASSES, sizes, strict=True))
    for class_ in CLASSES:
        for _ in range(slots):
            site.offer(class_, "t", size[class_])
    site.pass_ms(ms)
    for _ in range(count):
        site.offer(asks, "t", size[asks])
    own = site.queue.line(asks).order.tokens
    for class_ in CLASSES:
        while site.queue.line(class_).order.tokens < 2 * (own + 900) * share[class_] / share[asks]:
            if class_ == asks:
                break
            site.offer(class_, "t", size[class_])
    expected_ns = site.queue.expected_wait_ns(asks, "t", site.now_ns)
    apart_ns = abs(expected_ns - waits_ns(site, asks, "t", size[asks]))
    turn = sum(max(size[each], size[asks] * share[each] / share[asks]) for each in CLASSES)
    assert apart_ns <= (2 * turn / slots + max(sizes)) * SLOT_NS


@given(
    prompts=st.lists(st.sampled_from((10, 50, 200, 1_000, 3_000)), min_size=1, max_size=60),
    engines=st.integers(1, 4), write_ms=st.sampled_from((20.0, 2_000.0, 20_000.0)),
)
@settings(max_examples=200)
def test_where_it_is_room_to_read_that_is_short_the_wait_is_what_engines_take_to_read(
    prompts: list[int], engines: int, write_ms: float
) -> None:
    """However long requests keep their slots."""
    rate = 10_000.0
    site = ReadingSite(OPEN, 4_000, rate, rate, write_ms=write_ms, engines=engines)
    for _ in range(3):
        for prompt in prompts:
            site.offer("on_demand", prompt)
        site.until(site.now_ns + SECOND_NS // 10)
    if not site.queue.reading.is_full() or not site.queue.queued:
        return
    expected_s = site.queue.expected_wait_ns("on_demand", "t", site.now_ns) / SECOND_NS
    ticket = site.offer("on_demand", 10)
    assert isinstance(ticket, Ticket)
    began_ns = site.now_ns
    site.until(began_ns + 100 * SECOND_NS)
    apart_s = abs(expected_s - (ticket.started_ns - began_ns) / SECOND_NS)
    longest_s = max(prompts) * engines / rate
    assert apart_s <= longest_s + max(AHEAD_S, LEAST_TOKENS * engines / rate)
