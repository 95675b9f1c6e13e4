"""Replicas under whatever comes: never too many ejected, nobody by one organisation's requests, all
back in time; and sites that come back, at any number of ingresses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from isochrone.core.ids import ReplicaId, SiteName
from isochrone.core.lifecycle.health import OUTCOMES, Health, HealthRules
from isochrone.core.metering.event import Outcome
from isochrone.core.rng import stream
from isochrone.core.routing.choose import choose
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.prefix import Prefixes
from isochrone.core.world.model import Replica
from isochrone.gateway.replicas import Replicas, verdict
from tests.builders import (
    ANYWHERE,
    MODEL,
    SECOND_NS,
    a_digest,
    a_load,
    a_site,
    a_table,
    a_view,
)

SITE = SiteName("sydney")
RULES = HealthRules(
    failures=4, first_hold_s=1.0, longest_hold_s=8.0, probe_s=5.0, recovery_s=6.0
)
# Of a replica that works again: the longest hold, and two probes of which one tells nothing.
BACK_NS = int((RULES.longest_hold_s + 2.0) * SECOND_NS)


def a_replica(number: int, generation: int = 1) -> Replica:
    return Replica(
        id=ReplicaId(f"r{number}"), site=SITE, model=MODEL, revision=None, generation=generation,
        state="ready", engine="openai", base_url="http://127.0.0.1:1/v1", engine_key=None,
        credential=None, upstream_model="tiny", slots=4, pid=None, started_at=0,
    )


class AnyReplicas(RuleBasedStateMachine):
    """Requests of three organisations are sent, fail, are lost or given up; engines break, heal and
    are started anew; replicas come and go. What a request meets is decided by `broken` alone, but
    for those of `poison`, which fail everywhere."""

    @initialize(count=st.integers(1, 6), seed=st.integers(0, 99))
    def open(self, count: int, seed: int) -> None:
        self.replicas = Replicas(RULES)
        self.rng = stream(seed, "any replicas")
        self.now_ns = 1
        self.there: dict[str, Replica] = {}
        self.broken: set[str] = set()
        self.unreachable: set[str] = set()
        self.number = 0
        for _ in range(count):
            self.come()

    @precondition(lambda self: len(self.there) < 8)
    @rule()
    def come(self) -> None:
        replica = a_replica(self.number)
        self.number += 1
        self.there[replica.id] = replica
        assert self.replicas.put(replica.id, replica)

    @precondition(lambda self: len(self.there) > 1)
    @rule(which=st.integers(0, 99))
    def go(self, which: int) -> None:
        name = sorted(self.there)[which % len(self.there)]
        del self.there[name]
        self.broken.discard(name)
        self.unreachable.discard(name)
        self.replicas.drop(name)
        self.replicas.sweep(self.now_ns)

    @rule(which=st.integers(0, 99), how=st.sampled_from(("breaks", "unreachable", "heals")))
    def change(self, which: int, how: str) -> None:
        name = sorted(self.there)[which % len(self.there)]
        self.broken.discard(name)
        self.unreachable.discard(name)
        if how == "breaks":
            self.broken.add(name)
        elif how == "unreachable":
            self.unreachable.add(name)

    @rule(which=st.integers(0, 99))
    def start_anew(self, which: int) -> None:
        name = sorted(self.there)[which % len(self.there)]
        before = self.there[name]
        after = a_replica(int(name[1:]), before.generation + 1)
        self.there[name] = after
        self.broken.discard(name)
        self.unreachable.discard(name)
        assert self.replicas.put(name, after)

    @rule(
        organisation=st.sampled_from(("one", "two", "poison")),
        count=st.sampled_from((1, 1, 5, 30)),
        given_up=st.sampled_from((False, False, True)),
    )
    def ask(self, organisation: str, count: int, given_up: bool) -> None:
        for _ in range(count):
            self.send(organisation, given_up)

    def send(self, organisation: str, given_up: bool = False) -> None:
        replica = self.replicas.pick(
            SITE, MODEL, (), now_ns=self.now_ns, rng=self.rng, organisation=organisation
        )
        if replica is None:
            return
        assert replica.id in self.there
        self.replicas.started(replica.id)
        ok: bool | None = replica.id not in self.broken and organisation != "poison"
        if replica.id in self.unreachable:
            self.replicas.lost(replica, self.now_ns, self.rng, organisation=organisation)
            ok = None
        elif given_up:
            ok = None
        self.replicas.finished(replica.id, ok, self.now_ns, self.rng, organisation=organisation)

    @rule(ms=st.sampled_from((1, 50, 700, 2500, 9000)))
    def wait(self, ms: int) -> None:
        self.now_ns += ms * 1_000_000
        self.replicas.sweep(self.now_ns)

    @invariant()
    def no_more_than_the_share_is_out_for_what_came_of_requests(self) -> None:
        if not hasattr(self, "replicas"):
            return
        out = [health for _, _, health in self.replicas.states() if health.is_out]
        soft = [health for health in out if not health.outright]
        size = len(self.there)
        assert len(soft) <= (1 if size == 1 else int(RULES.eject_share * size))

    @invariant()
    def states_are_of_the_table_and_flags_agree(self) -> None:
        if not hasattr(self, "replicas"):
            return
        for _, _, health in self.replicas.states():
            assert health.ailing == (health.state != "healthy")
            assert health.is_out == (health.state in ("ejected", "probing"))
            assert health.is_out or health.until_ns <= self.now_ns + int(RULES.probe_s * 1e9)
            assert (health.state == "suspect") <= (health.outcomes != 0)

    def teardown(self) -> None:
        """Everything heals: soon all are back, though one organisation's requests go on failing."""
        if not hasattr(self, "replicas"):
            return
        self.broken.clear()
        self.unreachable.clear()
        until_ns = self.now_ns + BACK_NS
        while self.now_ns < until_ns:
            self.now_ns += SECOND_NS // 4
            for _ in range(4 * len(self.there)):
                self.send("one")
                self.send("two")
            self.send("poison")
            self.replicas.sweep(self.now_ns)
        for replica, state, health in self.replicas.states():
            assert not health.is_out, (replica.id, state, health.why)


TestAnyReplicas = AnyReplicas.TestCase
TestAnyReplicas.settings = settings(max_examples=150, stateful_step_count=40)


@given(
    failures=st.integers(1, 20), organisations=st.lists(st.sampled_from("abc"), min_size=1),
    count=st.integers(2, 6),
)
def test_what_fails_everything_is_out_within_as_many_requests_as_stated(
    failures: int, organisations: list[str], count: int
) -> None:
    """So many failures in a row, or the share of the last 20, whichever is less."""
    rules = HealthRules(failures=failures)
    replicas, rng = Replicas(rules), stream(failures, "out")
    for number in range(count):
        replicas.put(f"r{number}", a_replica(number))
    asked = 0
    for turn in range(200):
        organisation = organisations[turn % len(organisations)]
        replica = replicas.pick(SITE, MODEL, (), now_ns=1, rng=rng, organisation=organisation)
        assert replica is not None
        bad = replica.id == ReplicaId("r0")
        asked += bad
        replicas.started(replica.id)
        replicas.finished(replica.id, not bad, 1, rng, organisation=organisation)
    assert asked == min(failures, int(rules.failure_rate * OUTCOMES))


@given(
    turns=st.lists(
        st.tuples(st.sampled_from(("poison", "poison", "one", "two")), st.integers(0, 9_000)),
        min_size=30, max_size=120,
    ),
    how=st.sampled_from(("fails", "is lost", "leaves", "is refused")),
)
def test_nobody_ejects_what_works_for_others(turns: list[tuple[str, int]], how: str) -> None:
    """Others are served at least every 9 s: then it does not matter what one does, how often."""
    replicas, rng, now_ns, others_ns = Replicas(RULES), stream(1, "poison"), 1, 1
    replica = a_replica(0)
    replicas.put(replica.id, replica)
    replicas.put("r1", a_replica(1))
    replicas.finished(replica.id, True, now_ns, rng, organisation="one")
    for organisation, ms in turns:
        now_ns = min(now_ns + ms * 1_000_000, others_ns + 9 * SECOND_NS)
        replicas.started(replica.id)
        ok: bool | None = True
        if organisation != "poison":
            others_ns = now_ns
        elif how == "is lost":
            ok = None
            replicas.lost(
                replica, now_ns, rng, organisation=organisation, under_request=True
            )
        else:
            status = 500 if how == "fails" else 413
            outcome: Outcome = "client_gone" if how == "leaves" else "engine_error"
            ok = verdict(outcome, status, None)
        replicas.finished(replica.id, ok, now_ns, rng, organisation=organisation)
        if now_ns == others_ns + 9 * SECOND_NS:  # they are due
            replicas.finished(replica.id, True, now_ns, rng, organisation="two")
            others_ns = now_ns
        assert not next(health for each, _, health in replicas.states() if each is replica).is_out


def back_at_many(ingresses: int, asked: int) -> list[float]:
    """The share of all requests that a site gets which has come back to as many ingresses, second
    by second, where without recovery it would get all of them: it is nearest to each."""
    rng = stream(ingresses, "back")
    table = a_table(a_view(
        [a_site("ingress"), a_site("near"), a_site("far")],
        rtt_ms={"near": 5.0, "far": 40.0}, serving=["near", "far"],
    ))
    every = [Loads() for _ in range(ingresses)]
    shares = []
    for loads in every:
        for name in ("near", "far"):
            loads.heard(a_digest(name, a_load(ready=4, slots=400)), 1)
        loads.health.answered(SiteName("near"), MODEL, "one", 1)
        loads.health.returned(SiteName("near"), MODEL, "it was away", 1)
    for second in range(12):
        now_ns = 1 + second * SECOND_NS
        near = 0
        for number in range(asked):
            loads = every[number % ingresses]
            if number < ingresses:
                for name in ("near", "far"):
                    digest = a_digest(
                        name, a_load(ready=4, slots=400), sequence=second + 2
                    )
                    loads.heard(digest, now_ns)
                loads.health.sweep(now_ns)
            choice = choose(
                table, loads, Prefixes(), model=MODEL, policy_id=ANYWHERE, class_="on_demand",
                prompt_tokens=50, output_tokens=50, blocks=(), tried=(), now_ns=now_ns, rng=rng,
                target_ms=0.0,
            )
            near += choice.site == "near"
        shares.append(near / asked)
    return shares


@pytest.mark.parametrize("ingresses", [1, 20, 1100])
def test_work_grows_back_alike_at_any_number_of_ingresses(ingresses: int) -> None:
    shares = back_at_many(ingresses, max(ingresses, 600))
    for second, share in enumerate(shares):
        expected = min(max(second / 10, 0.1), 1.0)
        assert abs(share - expected) < 0.07, (second, shares)


@given(
    events=st.lists(
        st.tuples(
            st.integers(0, 6_000),
            st.sampled_from(("asked", "answered", "failed", "lost", "abandoned")),
            st.sampled_from("ab"),
        ),
        max_size=60,
    ),
    seed=st.integers(0, 99),
)
def test_nobody_is_left_out_for_longer_than_the_bound(
    events: list[tuple[int, str, str]], seed: int
) -> None:
    rules = HealthRules(failures=2, longest_hold_s=4.0, probe_s=3.0)
    health, now_ns, rng = Health(), 0, stream(seed, "bound")
    for gap_ms, sign, organisation in events:
        now_ns += gap_ms * 1_000_000
        if sign == "asked":
            if not health.may_ask(now_ns, organisation):
                continue  # a gateway asks only whom it may ask
            was_out = health.is_out
            health.asked(now_ns, rules)
            assert not was_out or not health.may_ask(now_ns, "b")  # one probe at a time
        elif sign == "answered":
            health.answered(organisation, now_ns)
        elif sign == "failed":
            health.failed(
                "it failed", organisation, now_ns, rng=rng, rules=rules, alone=False, room=True
            )
        elif sign == "lost":
            health.lost("refused", now_ns, rng=rng, rules=rules)
        else:
            health.abandoned(now_ns)
        health.ease(now_ns, rules)
        assert health.may_ask(now_ns + 4 * SECOND_NS, organisation)
