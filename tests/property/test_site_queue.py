"""A site's queue under whatever comes: floors, ceilings, shares, fairness, bounds, honest times."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.classes import (
    CLASSES,
    RANK,
    check_policy,
    divide,
    own_slots,
)
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.queue_commands import Refused
from isochrone.core.rng import stream
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import Class
from tests.fixtures.busy_site import MS, SLOT_NS, STOP_NS, BusySite

RECLAIM_MS = 300.0
OTHERS_PART = 20  # docs/admission.md: of twenty tokens that begin one is for the others
classes: st.SearchStrategy[Class] = st.sampled_from(CLASSES)


def rules(queue_most: int) -> st.SearchStrategy[ClassRule]:
    return st.builds(
        ClassRule,
        floor=st.sampled_from((0.0, 0.1, 0.3)),
        share=st.sampled_from((0.5, 1.0, 6.0)),
        ceiling=st.sampled_from((0.3, 0.6, 1.0)),
        queue_most=st.just(queue_most),
        wait_ms=st.sampled_from((200.0, 2_000.0)),
    )


policies = st.builds(
    SitePolicy, reserved=rules(5), on_demand=rules(4), batch=rules(6),
    reclaim_ms=st.just(RECLAIM_MS),
)


class AnySite(RuleBasedStateMachine):
    """Requests of all classes come, leave and end; the slots grow and shrink. Where `reads`,
    engines take their time to read prompts, and come and go; where `sold`, something is promised,
    which changes. Where `whole`, of some answers nobody tells when their prompt was read."""

    @initialize(
        policy=policies, slots=st.integers(1, 9), reads=st.booleans(), sold=st.booleans(),
        whole=st.booleans(),
    )
    def open(
        self, policy: SitePolicy, slots: int, reads: bool, sold: bool, whole: bool
    ) -> None:
        assert check_policy(policy) == []
        self.site = BusySite(policy, slots)
        self.shrunk_ns = -1
        self.reads, self.sold, self.whole = reads, sold, whole
        self.largest = 0
        self.floors = policy.on_demand.floor + policy.batch.floor > 0  # they go first, too

    @rule(
        class_=classes, tenant=st.sampled_from("abc"), tokens=st.integers(1, 400),
        error_percent=st.sampled_from((10, 100, 150)), wait_ms=st.sampled_from((0, 0, 50)),
        count=st.sampled_from((1, 1, 4)), resumable=st.booleans(), stuck=st.booleans(),
        prompt_percent=st.sampled_from((0, 50, 100)), tells=st.booleans(),
    )
    def offer(
        self, class_: Class, tenant: str, tokens: int, error_percent: int, wait_ms: int, count: int,
        resumable: bool, stuck: bool, prompt_percent: int, tells: bool,
    ) -> None:
        self.largest = max(self.largest, tokens)
        for _ in range(count):
            uses = max(tokens * error_percent // 100, 1)
            answer = self.site.offer(
                class_, tenant, tokens, uses=uses, wait_ns=wait_ms * MS,
                resumable=resumable,
                # A long one of which that turns out late gives nothing back in time.
                stuck=stuck and max(uses, tokens) <= RECLAIM_MS - STOP_NS / MS,
                prompt_tokens=tokens * prompt_percent // 100, tells=tells or not self.whole,
            )
            if isinstance(answer, Refused) and answer.reason not in ("no_capacity", "class_closed"):
                assert answer.retry_after_ns is not None
                assert answer.retry_after_ns > 0

    @rule(ms=st.sampled_from((0, 1, 30, 150, 700)))
    def wait(self, ms: int) -> None:
        self.site.pass_ms(ms)

    @rule(which=st.integers(0, 50))
    def leave(self, which: int) -> None:
        waiting = [ticket for ticket in self.site.runs if ticket.state == "queued"]
        if waiting:
            self.site.withdraw(waiting[which % len(waiting)])

    @rule(which=st.integers(0, 50))
    def pay(self, which: int) -> None:
        """Of what has come on demand, waiting or not."""
        if there := [each for each in self.site.runs if CLASSES[each.rank] == "on_demand"]:
            self.site.pay(there[which % len(there)])

    @precondition(lambda self: self.site.queue.slots < 12)
    @rule(more=st.integers(1, 3))
    def grow(self, more: int) -> None:
        self.site.resize(self.site.slots + more)

    @precondition(lambda self: self.site.slots > 1)
    @rule()
    def shrink(self) -> None:
        """What runs goes on; for the time of the longest request no floor is promised."""
        self.site.resize(self.site.slots - 1)
        self.shrunk_ns = self.site.now_ns

    @precondition(lambda self: self.reads)
    @rule(engines=st.integers(1, 3), tok_s=st.sampled_from((0.0, 300.0, 1_500.0)))
    def engines_come_and_go(self, engines: int, tok_s: float) -> None:
        self.site.set_engines([f"e{number}" for number in range(engines)], tok_s)

    @precondition(lambda self: self.sold)
    @rule(tok_s=st.sampled_from((0.0, 200.0, 5_000.0)))
    def promise(self, tok_s: float) -> None:
        self.site.promise(tok_s)

    @precondition(lambda self: self.sold)
    @rule(tokens=st.integers(50, 250), ms=st.sampled_from((0, 100, 400)))
    def crowd(self, tokens: int, ms: int) -> None:
        """All classes have something waiting for a while."""
        self.largest = max(self.largest, tokens)
        for _ in range(6):
            for class_ in reversed(CLASSES):
                self.site.offer(class_, "a", tokens, prompt_tokens=tokens // 2)
        self.site.pass_ms(ms)

    @invariant()
    def counts_are_what_runs_and_waits(self) -> None:
        if not hasattr(self, "site"):
            return
        queue = self.site.queue
        states = Counter((CLASSES[each.rank], each.state) for each in self.site.runs)
        for class_ in CLASSES:
            line = queue.line(class_)
            on = states[class_, "running"] + states[class_, "stopping"]
            assert line.running == len(line.tickets) == on
            assert line.order.queued == states[class_, "queued"]
            assert line.tokens == sum(ticket.tokens for ticket in line.tickets)
            assert line.order.queued <= line.queue_most + line_stops(self.site, class_)
        unread = sum(ticket.unread for ticket in self.site.runs if ticket.engine)
        assert queue.reading.tokens == unread
        assert queue.running == sum(queue.line(class_).running for class_ in CLASSES)
        assert queue.queued == sum(queue.line(class_).order.queued for class_ in CLASSES)

    @invariant()
    def slots_and_ceilings_hold(self) -> None:
        if not hasattr(self, "site") or self.shrunk_ns >= 0:
            return
        queue = self.site.queue
        assert queue.running <= queue.slots
        for class_ in CLASSES:
            assert queue.line(class_).running <= queue.line(class_).ceiling

    @invariant()
    def floors_are_back_in_time(self) -> None:
        """Where slots are all that it takes, and floors stay what they are."""
        if hasattr(self, "site") and self.shrunk_ns < 0 and not (self.reads or self.sold):
            assert self.site.longest_lack_ns <= RECLAIM_MS * MS

    @invariant()
    def no_engine_is_sent_more_than_it_has_room_for(self) -> None:
        if hasattr(self, "site") and not self.whole:
            assert self.site.longest_row == 0

    @invariant()
    def what_is_promised_goes_first(self) -> None:
        """But for one token of twenty, which is for the others."""
        if hasattr(self, "site") and self.site.passed:
            first = [each for _, each in self.site.begun if each.rank == 0 or self.floors]
            owed = sum(ticket.tokens // OTHERS_PART + 1 for ticket in first)
            assert sum(self.site.passed) <= owed + self.largest

    @invariant()
    def no_slot_is_idle_while_somebody_may_start(self) -> None:
        if not hasattr(self, "site"):
            return
        queue = self.site.queue
        if queue.running >= queue.slots or queue.reading.is_full():
            return
        firm = Counter(CLASSES[each.rank] for each in on(self.site) if each.firm)
        committed = sum(max(queue.line(each).floor, firm[each]) for each in CLASSES)
        for ticket in self.site.runs:
            line = queue.line(CLASSES[ticket.rank])
            if ticket.state != "queued" or line.running >= line.ceiling:
                continue
            first = next(
                each for each in self.site.runs
                if each.state == "queued" and each.rank == ticket.rank
                and each.tenant == ticket.tenant
            )
            may = not first.firm or firm[CLASSES[ticket.rank]] < line.floor
            if first.stops == ticket.stops == 0:  # what was stopped went to the front
                assert not may
                assert committed >= queue.slots

    @invariant()
    def nobody_waits_beyond_its_time(self) -> None:
        if not hasattr(self, "site"):
            return
        for ticket in self.site.runs:
            if ticket.state == "queued":
                line = self.site.queue.line(CLASSES[ticket.rank])
                assert self.site.now_ns < ticket.deadline_ns <= self.site.now_ns + line.wait_ns
                assert self.site.queue.next_tick_ns() <= ticket.deadline_ns

    @invariant()
    def only_batch_stops_once_its_answer_has_begun(self) -> None:
        if hasattr(self, "site"):
            for class_, ticket in self.site.stops:
                assert class_ != "reserved"
                assert class_ == "batch" or ticket.stops <= 1

    def teardown(self) -> None:
        """Everything ends: nothing is lost and nothing is left."""
        if hasattr(self, "site"):
            self.site.pass_ms(3_600_000)
            assert not self.site.runs
            assert self.site.queue.next_tick_ns() == NEVER_NS
            assert self.site.queue.running == self.site.queue.queued == 0
            for class_ in CLASSES:
                line = self.site.queue.line(class_)
                assert (line.firm, line.stopping, line.tokens, line.order.tokens) == (0, 0, 0, 0)
            assert self.site.queue.reading.tokens == 0
            self.site.queue.reading.set_engines(["e"], 1.0)
            assert not self.site.queue.reading.is_full()


def on(site: BusySite) -> list[Ticket]:
    return [each for each in site.runs if each.state in ("running", "stopping")]


def line_stops(site: BusySite, class_: Class) -> int:
    """Stopped requests wait beyond the bound: no more than there are slots."""
    waiting = (each for each in site.runs if each.state == "queued" and each.stops > 0)
    return sum(CLASSES[each.rank] == class_ for each in waiting)


TestAnySite = AnySite.TestCase
TestAnySite.settings = settings(max_examples=300, stateful_step_count=50)


@given(policies, st.integers(0, 300), st.integers(0, 300))
def test_floors_leave_a_slot_and_fit_their_ceilings(
    policy: SitePolicy, slots: int, sold_slots: int
) -> None:
    parts = divide(policy, slots, sold_slots)
    assert sum(part.floor for part in parts) <= max(slots - 1, 0)
    for rule_, part in zip(policy.rules(), parts, strict=True):
        assert 0 <= part.floor <= part.ceiling <= slots
        assert part.ceiling >= min(slots, 1)
        assert part.floor >= int(slots * rule_.floor) - 1 or sold_slots


@given(st.integers(0, 500), st.integers(1, 20))
def test_gateways_of_a_site_part_its_slots(slots: int, gateways: int) -> None:
    parts = [own_slots(slots, index, gateways) for index in range(gateways)]
    assert sum(parts) == slots or (slots < gateways and set(parts) <= {0, 1})
    assert max(parts) - min(parts) <= 1


def a_policy(reclaim_ms: float = RECLAIM_MS, **classes_: ClassRule) -> SitePolicy:
    open_ = {
        class_: ClassRule(share=share, queue_most=1000, wait_ms=1e7)
        for class_, share in (("reserved", 6.0), ("on_demand", 3.0), ("batch", 1.0))
    }
    return SitePolicy(reclaim_ms=reclaim_ms, **{**open_, **classes_})  # type: ignore[arg-type]


def crowd(site: BusySite, class_: Class, tenant: str, sizes: list[int], ms: int) -> None:
    """Let a tenant have more waiting than all slots can do in `ms`; its sizes come in turn."""
    order = site.queue.line(class_).order
    number = 0
    while order.waiting(tenant)[1] <= site.slots * ms + max(sizes):
        site.offer(class_, tenant, sizes[number % len(sizes)])
        number += 1


@given(
    slots=st.integers(4, 20), floor=st.sampled_from((0.25, 0.5, 0.75)),
    by=st.sampled_from(("on_demand", "batch")), tokens=st.integers(20, 2_000),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_a_floor_holds_under_five_times_the_load_of_another_class(
    slots: int, floor: float, by: Class, tokens: int, seed: int
) -> None:
    """The other class offers five times what all slots can do, long and short requests alike; the
    reserved class asks for just its floor, and gets each slot within the time to reclaim."""
    rule_ = ClassRule(floor=floor, share=1, queue_most=50, wait_ms=1e7)
    site = BusySite(a_policy(reserved=rule_), slots)
    rng = stream(seed, "crowd")
    own = site.queue.line("reserved").floor
    for step in range(120):
        for _ in range(max(5 * slots * 50 // tokens, 1)):
            site.offer(by, rng.choice("abcdef"), rng.randint(1, tokens))
        asking = sum(CLASSES[each.rank] == "reserved" for each in site.runs)
        if step >= 20:  # until then the floor is lent
            for _ in range(own - asking):
                assert not isinstance(site.offer("reserved", "r", rng.randint(1, tokens)), Refused)
        site.pass_ms(50)
        assert site.longest_lack_ns <= RECLAIM_MS * MS
    assert own == 0 or any(CLASSES[each.rank] == "reserved" for _, each in site.begun)


@given(st.integers(2, 12), st.integers(50, 3_000))
def test_batch_gives_a_lent_floor_back_as_soon_as_it_can_stop(slots: int, tokens: int) -> None:
    site = BusySite(a_policy(reserved=ClassRule(floor=0.5)), slots)
    for _ in range(slots):
        site.offer("batch", "b", tokens)
    floor = site.queue.line("reserved").floor
    assert site.queue.line("batch").running == slots, "an idle floor is lent"
    site.pass_ms(tokens / 2)
    for _ in range(floor):
        site.offer("reserved", "r", tokens)
    site.until(site.now_ns + STOP_NS)
    assert site.queue.line("reserved").running == floor
    assert len(site.stops) == floor


@given(
    slots=st.integers(1, 8),
    sizes=st.lists(st.lists(st.integers(9, 300), min_size=1, max_size=3), min_size=3, max_size=3),
)
@settings(max_examples=25)
def test_shares_are_kept_in_tokens_and_nobody_starves(slots: int, sizes: list[list[int]]) -> None:
    """All three classes always have work waiting: what each gets follows its share, but for the
    requests at hand when counting began and ended."""
    site = BusySite(a_policy(), slots)
    shares = {"reserved": 6, "on_demand": 3, "batch": 1}
    started: Counter[Class] = Counter()
    before = 0
    for _ in range(60):
        for rank, class_ in enumerate(CLASSES):
            crowd(site, class_, "t", sizes[rank], 50)
        site.pass_ms(50)
        for _, ticket in site.begun[before:]:
            if ticket.charged:
                started[CLASSES[ticket.rank]] += ticket.tokens
        before = len(site.begun)
        for one in CLASSES:
            for other in CLASSES:
                apart = started[one] / shares[one] - started[other] / shares[other]
                most = max(sizes[RANK[one]]) / shares[one]
                assert apart <= most + max(sizes[RANK[other]]) / shares[other] + 1e-3


@given(
    slots=st.integers(1, 8),
    sizes=st.lists(st.lists(st.integers(9, 300), min_size=1, max_size=4), min_size=2, max_size=4),
    joins_late=st.integers(0, 20),
)
@settings(max_examples=25)
def test_tenants_with_work_waiting_get_the_same_tokens(
    slots: int, sizes: list[list[int]], joins_late: int
) -> None:
    """From when both wait on, two tenants never differ by more than one request of each."""
    site = BusySite(a_policy(), slots)
    names = [f"t{number}" for number in range(len(sizes))]
    base: dict[str, int] = {}
    for step in range(40):
        for number, name in enumerate(names):
            if number == 0 and step < joins_late:
                continue  # it joins later, and gets no more for it
            crowd(site, "on_demand", name, sizes[number], 60)
        if step == joins_late:
            base = {name: site.tokens_begun[name] for name in names}
        site.pass_ms(60)
        if step >= joins_late:
            for one, ones in zip(names, sizes, strict=True):
                for other, others in zip(names, sizes, strict=True):
                    mine = site.tokens_begun[one] - base[one]
                    theirs = site.tokens_begun[other] - base[other]
                    # What started before anybody waited is not charged: at most all slots.
                    free = slots * max(ones) if joins_late == 0 else 0
                    assert mine - theirs <= max(ones) + max(others) + free


@given(
    slots=st.integers(1, 8), error_percent=st.sampled_from((20, 50, 150)),
    size=st.integers(10, 200),
)
@settings(max_examples=25)
def test_a_tenant_pays_for_what_it_used_not_for_what_was_guessed(
    slots: int, error_percent: int, size: int
) -> None:
    site = BusySite(a_policy(), slots)
    uses = max(size * error_percent // 100, 1)
    used: Counter[str] = Counter()
    for _ in range(60):
        for name, real in (("honest", size), ("guessed", uses)):
            while site.queue.line("on_demand").order.waiting(name)[1] <= 5 * slots * 50 + size:
                site.offer("on_demand", name, size, uses=real)
        site.pass_ms(50)
    for _, ticket in site.begun:
        if ticket.charged and ticket.state == "over":
            used[ticket.tenant] += uses if ticket.tenant == "guessed" else size
    apart = abs(used["honest"] - used["guessed"])
    assert apart <= (slots + 1) * 2 * max(size, uses)


@given(
    slots=st.integers(1, 10), sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    tenants=st.integers(1, 6), queue_most=st.integers(1, 40),
)
def test_whoever_comes_back_when_told_is_served_and_not_told_too_late(
    slots: int, sizes: list[int], tenants: int, queue_most: int
) -> None:
    rule_ = ClassRule(queue_most=queue_most, wait_ms=1e7)
    site = BusySite(a_policy(on_demand=rule_), slots)
    answer: Ticket | Refused | None = None
    number = 0
    while not isinstance(answer, Refused):
        size = sizes[number % len(sizes)]
        answer = site.offer("on_demand", f"t{number % tenants}", size)
        number += 1
        if number == slots:
            site.pass_ms(min(sizes) / 2)  # those that run are not all at their beginning
    asked_ns = site.now_ns
    assert answer.reason == "queue_full"
    assert answer.retry_after_ns is not None
    back_ns = asked_ns + answer.retry_after_ns
    site.until(back_ns)
    last_ns = site.begun[-1][0]
    assert site.queue.queued == 0
    again = site.offer("on_demand", "t0", 10)
    assert not isinstance(again, Refused)
    assert again.state == "running"
    longest_ns = int(max(sizes) * SLOT_NS)
    assert back_ns - last_ns <= 3 * longest_ns + 2 * MS


@given(st.integers(1, 6), st.integers(10, 200), st.integers(2, 12))
def test_refused_requests_are_told_different_times(slots: int, size: int, refused: int) -> None:
    site = BusySite(a_policy(on_demand=ClassRule(queue_most=slots, wait_ms=1e7)), slots)
    for _ in range(2 * slots):
        site.offer("on_demand", "t", size)
    times = []
    for _ in range(refused):
        answer = site.offer("on_demand", "t", size)
        assert isinstance(answer, Refused)
        times.append(answer.retry_after_ns or 0)
    apart = [later - sooner for sooner, later in pairwise(times)]
    assert all(each >= int(size * SLOT_NS / slots) - 1 for each in apart)


@given(st.integers(1, 6), st.integers(1, 100), st.integers(1, 400), st.integers(1, 30))
def test_a_request_that_cannot_be_in_time_is_refused_at_once(
    slots: int, size: int, wait_ms: int, count: int
) -> None:
    """Those that are let in start in time, but for what one round of the slots brings."""
    site = BusySite(a_policy(on_demand=ClassRule(queue_most=1000, wait_ms=wait_ms)), slots)
    let_in = []
    for _ in range(count):
        answer = site.offer("on_demand", "t", size)
        if isinstance(answer, Ticket):
            let_in.append(answer)
        else:
            assert answer.reason == "would_expire"
    site.pass_ms(3_600_000)
    assert len(let_in) - len(site.begun) <= slots
    late = sum(each.reason == "expired" for _, each in site.told)
    assert late == len(let_in) - len(site.begun)
    if count * size > 2 * slots * (wait_ms + size):
        assert any(each.reason == "would_expire" for _, each in site.told)


@given(st.integers(1, 5), st.integers(2, 12), st.integers(1, 60))
def test_a_full_queue_still_has_room_for_another_tenant(
    slots: int, queue_most: int, greedy: int
) -> None:
    site = BusySite(a_policy(on_demand=ClassRule(queue_most=queue_most, wait_ms=1e7)), slots)
    for _ in range(slots + queue_most + greedy):
        site.offer("on_demand", "greedy", 100)
    modest = site.offer("on_demand", "modest", 100)
    assert isinstance(modest, Ticket)
    assert site.queue.line("on_demand").order.queued == queue_most
    site.pass_ms(200)
    assert modest in [each for _, each in site.begun], "at most one of the other goes before it"


@given(policies, classes)
def test_an_unusable_policy_is_told_in_full(policy: SitePolicy, class_: Class) -> None:
    rule_ = replace(policy.rules()[RANK[class_]], floor=0.99, share=0.0, queue_most=-1, wait_ms=-1)
    wrong = replace(policy, **{class_: rule_}, reclaim_ms=-1.0, output_weight=0)
    problems = check_policy(wrong)
    assert len(problems) >= 6
    assert all(problem.startswith((class_, "the floors", "reclaim", "output")) for problem in
               problems)
