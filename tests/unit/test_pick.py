"""Which replica: the least share of slots, equals by chance, and who is left out."""

from collections import Counter

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.lifecycle.breaker import Breaker
from isochrone.core.rng import stream
from isochrone.core.routing.pick import Standing, pick
from isochrone.core.world.model import Replica, ReplicaState

RNG = stream(3, "pick")


def a_standing(
    name: str,
    *,
    running: int = 0,
    slots: int = 4,
    state: ReplicaState = "ready",
    revision: str | None = None,
    breaker: Breaker | None = None,
) -> Standing:
    standing = Standing(
        Replica(
            id=ReplicaId(name), site=SiteName("sydney"), model=ModelName("tiny"),
            revision=revision, generation=1, state=state, engine="openai",
            base_url="http://127.0.0.1:1/v1", engine_key=None, credential=None,
            upstream_model="tiny", slots=slots, pid=None, started_at=0,
        )
    )
    standing.count(running)
    standing.breaker = breaker
    return standing


def picked(
    *standings: Standing, tried: tuple[str, ...] = (), revision: str | None = None,
    cached: dict[str, float] | None = None,
) -> str:
    known = None if cached is None else {ReplicaId(name): each for name, each in cached.items()}
    found = pick(
        standings, tuple(map(ReplicaId, tried)), now_ns=100, rng=RNG, revision=revision,
        cached=known,
    )
    return "nobody" if found is None else found.replica.id


def test_the_least_share_wins_not_the_fewest_requests() -> None:
    assert picked(a_standing("small", running=1, slots=2), a_standing("big", running=3, slots=8)) \
        == "big"
    assert picked(a_standing("a", running=9, slots=4), a_standing("b", running=8, slots=4)) == "b"


def test_equals_are_drawn_evenly() -> None:
    standings = [a_standing(name, running=1) for name in "abc"]
    drawn = Counter(picked(*standings) for _ in range(3000))
    assert set(drawn) == {"a", "b", "c"}
    assert min(drawn.values()) > 850


def test_a_replica_without_slots_counts_as_one_slot() -> None:
    assert picked(a_standing("none", slots=0, running=1), a_standing("one", slots=2, running=1)) \
        == "one"
    assert picked(a_standing("none", slots=0, running=1), a_standing("full", running=5)) == "none"


def test_equal_shares_of_different_sizes_are_equals() -> None:
    standings = a_standing("small", running=1, slots=3), a_standing("big", running=3, slots=9)
    assert {picked(*standings) for _ in range(100)} == {"small", "big"}


def test_who_may_not_be_asked_is_left_out() -> None:
    assert picked() == "nobody"
    assert picked(a_standing("a", state="starting"), a_standing("b", state="draining")) == "nobody"
    assert picked(a_standing("a"), a_standing("b", running=3), tried=("a",)) == "b"
    opened = a_standing("a", breaker=Breaker(state="open", until_ns=101))
    assert picked(opened, a_standing("b", running=9)) == "b"
    assert picked(a_standing("a", breaker=Breaker(state="open", until_ns=100))) == "a"
    assert picked(a_standing("a", breaker=Breaker(outcomes=1))) == "a"


def test_a_revision_is_taken_exactly() -> None:
    standings = a_standing("a"), a_standing("b", revision="r1"), a_standing("c", revision="r2")
    assert picked(*standings, revision="r2") == "c"
    assert picked(*standings, revision="r3") == "nobody"


def test_with_a_slot_free_whoever_has_most_of_the_prompt_goes_first() -> None:
    standings = [a_standing("idle"), a_standing("some", running=1), a_standing("most", running=3)]
    assert picked(*standings, cached={"some": 256.0, "most": 700.0}) == "most"
    standings[2].count(1)  # its slots are full
    assert picked(*standings, cached={"some": 256.0, "most": 700.0}) == "some"
    assert picked(*standings, cached={}) == "idle"
    assert picked(*standings, cached={"most": 700.0, "gone": 900.0}) == "idle"
    assert picked(*standings, cached={"some": 256.0}, tried=("some",)) == "idle"
