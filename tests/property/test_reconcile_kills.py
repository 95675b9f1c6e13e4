"""Reconciliation never cries wolf: engines that are killed at any moment, and clients that leave,
are explained; a request that is booked again is found wherever no range covers it."""

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.metering.event import TokenSource
from isochrone.core.metering.loose import NO_TOKENS, Counts, Heard, Loose, gaps_of
from isochrone.core.metering.reconcile import EngineDay, ReplicaLine, UsageDay, reconcile

S = 1_000_000_000
DAY = 20_777 * 86_400 * S
SITE, MODEL = SiteName("sydney"), ModelName("tiny")
NAMES = (ReplicaId("sydney/tiny/0"), ReplicaId("sydney/tiny/1"))
TOK_S, PROMPT_TOK_S, RESTART_S, LENGTH_S = 10.0, 100.0, 5.0, 300.0


@dataclass
class Asked:
    """A request: what is booked of it, where, and when; seconds of the day."""

    begun_s: float
    ended_s: float
    replica: ReplicaId
    tokens: Counts
    source: TokenSource = "engine"
    runs: int = 1


@dataclass
class World:
    """Two engines of one site. `counted` is what was heard of each: whatever an engine did since
    its last reading, two seconds apart, goes with it."""

    rng: Random
    deaths: dict[ReplicaId, list[float]]
    counted: dict[ReplicaId, Counts] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def died(self, replica: ReplicaId, since_s: float, until_s: float) -> float | None:
        return next((at for at in self.deaths[replica] if since_s <= at < until_s), None)

    def up(self, replica: ReplicaId, second: float) -> bool:
        return not any(at <= second < at + RESTART_S for at in self.deaths[replica])

    def work(
        self, replica: ReplicaId, begun_s: float, prompt: int, output: int
    ) -> tuple[int, float]:
        """An engine works on a request from `begun_s`: how much it wrote, and when it ended. It
        counts when it has ended, as llama.cpp does, and may be killed before it is heard."""
        ended_s = begun_s + prompt / PROMPT_TOK_S + output / TOK_S
        died_s = self.died(replica, begun_s, ended_s)
        if died_s is not None:
            return int(max(died_s - begun_s - prompt / PROMPT_TOK_S, 0) * TOK_S), died_s
        if self.died(replica, ended_s, 2.0 * (ended_s // 2 + 1)) is None:
            cached = self.rng.randint(0, prompt)
            done = Counts(input_uncached=prompt - cached, input_cached=cached, output=output)
            self._last = done
            self.counted[replica] = self.counted.get(replica, NO_TOKENS).plus(done)
        else:
            self._last = Counts(input_uncached=prompt, output=output)
        return output, ended_s

    def ask(self, begun_s: float) -> None:
        first = self.rng.choice(NAMES)
        replica = first if self.up(first, begun_s) else NAMES[first == NAMES[0]]
        if not self.up(replica, begun_s):
            return
        prompt, output = self.rng.randint(1, 200), self.rng.randint(16, 200)
        if self.rng.random() < 0.2:
            self._leave(replica, begun_s, prompt, output)
            return
        wrote, ended_s = self.work(replica, begun_s, prompt, output)
        if wrote == output and self.died(replica, begun_s, ended_s) is None:
            self.asked.append(Asked(begun_s, ended_s, replica, self._last))
            return
        other = NAMES[replica == NAMES[0]]
        booked = Asked(
            begun_s, ended_s, replica, Counts(input_uncached=prompt, output=wrote), "running"
        )
        if self.up(other, ended_s):
            rest, last_s = self.work(other, ended_s, prompt + wrote, output - wrote)
            lost = self.died(other, ended_s, last_s) is not None or rest < output - wrote
            booked = Asked(
                begun_s, last_s, other, Counts(input_uncached=prompt, output=wrote + rest),
                "running" if lost else "engine", 2,
            )
        self.asked.append(booked)

    def _leave(self, replica: ReplicaId, begun_s: float, prompt: int, output: int) -> None:
        """A client that leaves in the middle: the engine notices up to two seconds later."""
        left_s = begun_s + prompt / PROMPT_TOK_S + self.rng.uniform(0, output / TOK_S)
        had = min(int(max(left_s - begun_s - prompt / PROMPT_TOK_S, 0) * TOK_S), output)
        wrote = min(had + self.rng.randint(0, int(2 * TOK_S)), output)
        self.work(replica, begun_s, prompt, wrote)
        tokens = Counts(
            input_uncached=self._last.input_uncached, input_cached=self._last.input_cached,
            output=had,
        )
        self.asked.append(Asked(begun_s, left_s, replica, tokens, "running"))

    _last: Counts = NO_TOKENS

    def lines(self) -> tuple[ReplicaLine, ...]:
        heard = []
        for name in NAMES:
            begun_s = 0.0
            for life, died_s in enumerate([*self.deaths[name], LENGTH_S + 60]):
                heard.append(Heard(
                    replica=name, generation=life, run=0, day_at=DAY,
                    begun_at=DAY + int(begun_s * S), heard_at=DAY + int(died_s // 2 * 2 * S),
                ))
                begun_s = died_s + RESTART_S
        gaps = gaps_of(heard, DAY)
        loose = []
        for one in self.asked:
            for name in NAMES if one.runs > 1 else (one.replica,):
                kinds = [
                    gap.kind for gap in gaps if gap.replica == name
                    and gap.since <= DAY + one.ended_s * S and gap.until >= DAY + one.begun_s * S
                ]
                if not kinds and one.runs == 1 and one.source == "engine":
                    continue
                loose.append(Loose(
                    replica=name, site=SITE, tokens=one.tokens, source=one.source,
                    is_booked=name == one.replica, gap=kinds[0] if kinds else None,
                    moved=one.runs > 1, cut_off=one.source != "engine", runs=one.runs,
                    seconds=one.ended_s - one.begun_s, prompt_tokens=None, context_tokens=None,
                ))
        report = reconcile(
            DAY, [
                EngineDay(replica=name, site=SITE, model=MODEL, lives=1,
                          counts=self.counted.get(name, NO_TOKENS)) for name in NAMES
            ],
            [self._booked(name) for name in NAMES], (), wrong_sums=0, parked=0, unmetered=0, late=0,
            loose=loose,
        )
        return report.replicas

    def _booked(self, name: ReplicaId) -> UsageDay:
        mine = [one for one in self.asked if one.replica == name]
        speeds = [
            one.tokens.output / (one.ended_s - one.begun_s)
            for one in mine if one.source == "engine" and one.runs == 1
        ]
        return UsageDay(
            replica=name, site=SITE, model=MODEL, requests=len(mine), others=0,
            exact=_sum(one.tokens for one in mine if one.source == "engine"),
            other=_sum(one.tokens for one in mine if one.source != "engine"),
            fastest_tok_s=max(speeds, default=None),
        )


def _sum(counts) -> Counts:  # type: ignore[no-untyped-def]
    total = NO_TOKENS
    for each in counts:
        total = total.plus(each)
    return total


@given(st.integers(0, 2**32), st.lists(st.floats(20, 280), max_size=3), st.integers(0, 30))
@settings(max_examples=60)
def test_nothing_differs_where_nothing_is_wrong_and_a_request_booked_twice_does(
    seed: int, deaths: list[float], requests: int
) -> None:
    rng = Random(seed)
    both: dict[ReplicaId, list[float]] = {name: [] for name in NAMES}
    for at in sorted(deaths):
        name = rng.choice(NAMES)
        if not both[name] or at > both[name][-1] + RESTART_S + 3:
            both[name].append(at)
    world = World(rng, both)
    for _ in range(requests):
        world.ask(rng.uniform(5, LENGTH_S - 60))
    lines = world.lines()
    assert [line.verdict for line in lines if line.verdict not in ("equal", "within")] == []
    assert all(line.verdict == "equal" for line in lines if not line.reasons)
    again = [one for one in world.asked if one.source == "engine" and one.runs == 1]
    if again:
        twice = rng.choice(again)
        before = next(line for line in lines if line.replica == twice.replica)
        world.asked.append(Asked(0.0, 1.0, twice.replica, twice.tokens))
        after = next(line for line in world.lines() if line.replica == twice.replica)
        covered = before.allowed.holds(before.difference.less(twice.tokens))
        assert after.verdict == ("within" if covered else "differs")
