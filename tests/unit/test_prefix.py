"""Where a prompt's beginning was computed, and how long that is believed."""

from dataclasses import replace

import pytest

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.routing import prefix
from isochrone.core.routing.prefix import (
    BLOCK_ENDS,
    BLOCK_TOKENS,
    MOST_BYTES,
    Belief,
    Prefixes,
    Sighting,
)
from isochrone.core.routing.replicas_said import KEPT_TOKENS, ReplicasSaid
from isochrone.core.world.digest import ReplicaLoad, SiteDigest
from tests.builders import MODEL, SECOND_NS

SYDNEY = SiteName("sydney")
OSLO = SiteName("oslo")
ONE, TWO = ReplicaId("sydney/tiny/0"), ReplicaId("sydney/tiny/1")
HALF_LIFE_NS = int(prefix.HALF_LIFE_S * SECOND_NS)


def tokens_of(prefixes: Prefixes, blocks: list[int], now_ns: int = 0) -> dict[SiteName, float]:
    return {site: each.tokens for site, each in prefixes.cached(blocks, now_ns).items()}


def by_replica(prefixes: Prefixes, blocks: list[int]) -> dict[ReplicaId, float]:
    found = prefixes.cached_by_replica(SYDNEY, blocks, 0)
    return {replica: each.tokens for replica, each in found.items()}


def a_digest_of(
    *replicas: tuple[ReplicaId, int, int | None], site: SiteName = SYDNEY, model: str = MODEL
) -> SiteDigest:
    """(replica, generation, prompt tokens that it has computed since its start)."""
    return SiteDigest(
        site=site, epoch=1, sequence=1, at=0, loads=(),
        replicas=tuple(
            ReplicaLoad(
                id=replica, model=ModelName(model), generation=generation, state="ready", pid=None,
                running=0, waiting=0, restarts=0, prompt_tokens_total=total,
                cached_tokens_total=None, output_tokens_total=0,
            )
            for replica, generation, total in replicas
        ),
    )


def said_of(*replicas: tuple[ReplicaId, int, int | None], site: SiteName = SYDNEY) -> ReplicasSaid:
    return ReplicasSaid(a_digest_of(*replicas, site=site))


def test_a_site_has_what_it_got() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2, 3], 0)
    assert tokens_of(prefixes, [1, 2, 3]) == {SYDNEY: 3 * BLOCK_TOKENS}
    assert tokens_of(prefixes, [1, 2, 3, 4]) == {SYDNEY: 3 * BLOCK_TOKENS}
    assert tokens_of(prefixes, [1, 2, 30]) == {SYDNEY: 2 * BLOCK_TOKENS}
    assert tokens_of(prefixes, [10, 20]) == {}
    long = list(range(100, 140))  # more than count
    prefixes.saw(SYDNEY, MODEL, long, 0)
    assert tokens_of(prefixes, [*long[:12], 9]) == {SYDNEY: BLOCK_ENDS[11] // 4}
    assert tokens_of(prefixes, long) == {SYDNEY: MOST_BYTES // 4}
    assert tokens_of(prefixes, []) == {}


def test_every_site_that_got_a_block_has_it() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2, 3], 0)
    prefixes.saw(OSLO, MODEL, [1, 20], 0)  # shares its first block: a system prompt, say
    assert tokens_of(prefixes, [1, 2, 3, 4]) == {OSLO: BLOCK_TOKENS, SYDNEY: 3 * BLOCK_TOKENS}
    assert tokens_of(prefixes, [1, 20]) == {OSLO: 2 * BLOCK_TOKENS, SYDNEY: BLOCK_TOKENS}
    prefixes.saw(OSLO, MODEL, [1, 2], 0)
    assert tokens_of(prefixes, [1, 2]) == {OSLO: 2 * BLOCK_TOKENS, SYDNEY: 2 * BLOCK_TOKENS}


def test_the_places_of_a_block_are_bounded_and_the_last_stay() -> None:
    prefixes = Prefixes()
    sites = [SiteName(f"s{number}") for number in range(20)]
    for site in sites:
        prefixes.saw(site, MODEL, [1, 2], 0)
    assert set(tokens_of(prefixes, [1, 2])) == set(sites[-prefix.MOST_PLACES:])


def test_what_is_half_forgotten_still_counts() -> None:
    prefixes = Prefixes(most=8)
    prefixes.saw(SYDNEY, MODEL, [1, 2, 3], 0)
    prefixes.saw(OSLO, MODEL, [1, 2], 0)  # now the first three are the older half
    assert tokens_of(prefixes, [1, 2, 3]) == {OSLO: 2 * BLOCK_TOKENS, SYDNEY: 3 * BLOCK_TOKENS}


def test_it_is_bounded_and_keeps_what_is_used() -> None:
    prefixes = Prefixes(most=100)
    for turn in range(1000):
        prefixes.saw(SYDNEY, MODEL, [1, 2], 0)
        prefixes.saw(OSLO, MODEL, [10 * turn + 3, 10 * turn + 4], 0)
        assert len(prefixes) <= 100
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: 2 * BLOCK_TOKENS}
    assert tokens_of(prefixes, [3, 4]) == {}
    assert tokens_of(prefixes, [9993, 9994]) == {OSLO: 2 * BLOCK_TOKENS}


def test_a_prompt_longer_than_the_bound_keeps_its_beginning() -> None:
    prefixes = Prefixes(most=8)
    prefixes.saw(SYDNEY, MODEL, list(range(1000)), 0)
    assert len(prefixes) <= 8
    assert tokens_of(prefixes, [0, 1]) == {SYDNEY: 2 * BLOCK_TOKENS}


# -- decay ---------------------------------------------------------------------------------------


def test_time_halves_what_is_believed_until_it_is_gone() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0)
    assert tokens_of(prefixes, [1, 2], HALF_LIFE_NS) == {SYDNEY: BLOCK_TOKENS}
    assert tokens_of(prefixes, [1, 2], 2 * HALF_LIFE_NS) == {SYDNEY: BLOCK_TOKENS / 2}
    assert tokens_of(prefixes, [1, 2], 5 * HALF_LIFE_NS) == {}  # 1/32
    prefixes.saw(SYDNEY, MODEL, [1], 5 * HALF_LIFE_NS)
    assert tokens_of(prefixes, [1, 2], 5 * HALF_LIFE_NS) == {SYDNEY: BLOCK_TOKENS}


def test_tokens_computed_since_displace_what_was_there() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0, tokens=512)
    prefixes.saw(SYDNEY, MODEL, [10], 0, tokens=KEPT_TOKENS // 2)
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: BLOCK_TOKENS}
    prefixes.saw(OSLO, MODEL, [11], 0, tokens=KEPT_TOKENS)
    prefixes.saw(SYDNEY, ModelName("other"), [12], 0, tokens=KEPT_TOKENS)
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: BLOCK_TOKENS}, "other caches"
    prefixes.saw(SYDNEY, MODEL, [13], 0, tokens=KEPT_TOKENS // 2)
    assert tokens_of(prefixes, [1, 2]) == {}
    assert tokens_of(prefixes, [13]) == {SYDNEY: BLOCK_TOKENS}


def test_digests_say_what_all_gateways_had_computed() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0)
    prefixes.heard(said_of((ONE, 1, 70_000), (TWO, 1, 0)))  # before this began to listen
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: 2 * BLOCK_TOKENS}
    prefixes.heard(said_of((ONE, 1, 70_000 + KEPT_TOKENS), (TWO, 1, 0)))
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: BLOCK_TOKENS}, "half of two replicas' caches"
    prefixes.saw(SYDNEY, MODEL, [9], 0, tokens=KEPT_TOKENS)
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: BLOCK_TOKENS}, "own requests are in the digests"
    prefixes.heard(said_of((ONE, 1, 70_000), site=OSLO))  # nothing was sent there: not kept
    assert set(prefixes._caches) == {SYDNEY}


@pytest.mark.parametrize(
    ("kept_tokens", "believed"),
    [(20_000, 256), (40_000, 384), (None, 486), (0, 486), (1 << 60, 486)],
)
def test_what_a_replica_says_of_its_cache_decides_how_soon_it_turns_over(
    kept_tokens: int | None, believed: int
) -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0)
    for total in (0, 10_000):
        digest = a_digest_of((ONE, 1, total))
        load = replace(digest.replicas[0], kept_tokens=kept_tokens)
        other = replace(load, model=ModelName("other"))
        prefixes.heard(ReplicasSaid(replace(digest, replicas=(load, other))))
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: pytest.approx(believed, abs=1)}


def test_counters_that_begin_anew_are_counted_from_there() -> None:
    prefixes = Prefixes()
    cache = prefixes.saw(SYDNEY, MODEL, [1], 0).cache
    for generation, total, computed in ((1, 500, 0), (1, 700, 200), (2, 90, 290), (2, 80, 290)):
        prefixes.heard(said_of((ONE, generation, total)))
        assert cache.computed_tokens == computed


def test_what_was_missed_or_not_told_for_a_while_is_counted_with_the_next() -> None:
    told = [
        ReplicasSaid(replace(a_digest_of((ONE, 1, one), (TWO, 1, two)), sequence=sequence))
        for sequence, (one, two) in enumerate(((100, 50), (300, None), (None, 70), (450, 90)), 1)
    ]
    heard_all, missed_some = Prefixes(), Prefixes()
    caches = [each.saw(SYDNEY, MODEL, [1], 0).cache for each in (heard_all, missed_some)]
    computed = []
    for said in told:
        heard_all.heard(said)
        computed.append(caches[0].computed_tokens)
    assert computed == [0, 200, 220, 390]
    missed_some.heard(told[0])
    missed_some.heard(told[3])
    assert caches[1].computed_tokens == 390


def test_places_that_have_lost_it_displace_nobody() -> None:
    prefixes = Prefixes()
    sites = [SiteName(f"s{number}") for number in range(12)]
    for number, site in enumerate(sites):
        seen = prefixes.saw(site, MODEL, [1], 0)
        seen.gone = 5 <= number < 11
    assert set(tokens_of(prefixes, [1])) == {*sites[:5], sites[11]}


def test_a_replica_that_has_started_anew_has_nothing() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0, replica=ONE, generation=3)
    prefixes.saw(SYDNEY, MODEL, [1], 0, replica=TWO, generation=1)
    assert by_replica(prefixes, [1, 2]) == {ONE: 2 * BLOCK_TOKENS, TWO: BLOCK_TOKENS}
    prefixes.heard(said_of((ONE, 3, 10), (TWO, 1, 10)))
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: 2 * BLOCK_TOKENS}
    prefixes.heard(said_of((ONE, 4, 0), (TWO, 1, 10)))
    assert by_replica(prefixes, [1, 2]) == {TWO: BLOCK_TOKENS}
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: BLOCK_TOKENS}
    prefixes.heard(said_of((ONE, 4, 0)))
    assert tokens_of(prefixes, [1, 2]) == {}, "nobody speaks of the other replica any more"


def test_a_replica_that_ended_has_nothing_at_a_site_with_many_others() -> None:
    prefixes = Prefixes()
    many = [(ReplicaId(f"r{number}"), 1, 10) for number in range(100)]
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0, replica=ONE, generation=1)
    prefixes.heard(said_of((ONE, 1, 10), *many))
    for _ in range(3):
        prefixes.heard(said_of(*many))
        assert tokens_of(prefixes, [1, 2]) == {}, "nobody speaks of it any more"


def test_replicas_that_come_and_go_do_not_fill_the_memory() -> None:
    prefixes = Prefixes()
    seen = prefixes.saw(SYDNEY, MODEL, [1], 0)
    for number in range(500):
        prefixes.heard(said_of((ReplicaId(f"r{number}"), 1, 5)))
    assert len(seen.cache._ended) < 100
    assert len(seen.cache._totals) == 0


# -- tries that come to nothing --------------------------------------------------------------------


def expected(prefixes: Prefixes, blocks: list[int], site: SiteName = SYDNEY) -> Belief | None:
    return prefixes.cached(blocks, 0).get(site)


def test_a_try_that_failed_leaves_what_was_there_before() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2, 3], 0)
    prefixes.saw(SYDNEY, MODEL, [1, 2, 30], 0)
    prefixes.saw(OSLO, MODEL, [1, 2], 0)
    before = [tokens_of(prefixes, blocks) for blocks in ([1, 2, 3, 4], [1, 2, 30], [1])]
    belief = expected(prefixes, [1, 2, 3, 4])
    seen = prefixes.saw(SYDNEY, MODEL, [1, 2, 3, 4], 0)
    assert tokens_of(prefixes, [1, 2, 3, 4])[SYDNEY] == 4 * BLOCK_TOKENS
    prefixes.failed(seen, belief, [1, 2, 3, 4])
    after = [tokens_of(prefixes, blocks) for blocks in ([1, 2, 3, 4], [1, 2, 30], [1])]
    assert after == before
    assert before[0] == {SYDNEY: 3 * BLOCK_TOKENS, OSLO: 2 * BLOCK_TOKENS}


def test_a_first_try_that_failed_leaves_nothing() -> None:
    prefixes = Prefixes()
    seen = prefixes.saw(SYDNEY, MODEL, [1, 2], 0)
    prefixes.failed(seen, None, [1, 2])
    assert tokens_of(prefixes, [1, 2]) == {}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_tries_that_fail_while_others_are_on_their_way_leave_what_was_there(
    order: tuple[int, ...]
) -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0)
    prompts = ([1, 2, 3, 4], [1, 5], [1, 2, 3, 6])  # one after the other, and none was answered yet
    tries = []
    for blocks in prompts:
        belief = expected(prefixes, blocks)
        tries.append((prefixes.saw(SYDNEY, MODEL, blocks, 0), belief, blocks))
    for number in order:
        prefixes.failed(*tries[number])
    assert tokens_of(prefixes, [1, 2, 3, 4]) == {SYDNEY: 2 * BLOCK_TOKENS}
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: 2 * BLOCK_TOKENS}


def test_a_try_that_failed_leaves_what_another_took_there_meanwhile() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1], 0)
    belief = expected(prefixes, [1, 2])
    seen = prefixes.saw(SYDNEY, MODEL, [1, 2], 0)
    prefixes.saw(SYDNEY, MODEL, [1, 2, 3], 0)
    prefixes.failed(seen, belief, [1, 2])
    assert tokens_of(prefixes, [1, 2, 3]) == {SYDNEY: 3 * BLOCK_TOKENS}


def test_the_place_of_another_replica_is_not_given_twice() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0, replica=ONE, generation=1)
    belief = expected(prefixes, [1, 2])
    seen = prefixes.saw(SYDNEY, MODEL, [1, 2], 0, replica=TWO, generation=1)
    prefixes.failed(seen, belief, [1, 2])
    assert by_replica(prefixes, [1, 2]) == {ONE: 2 * BLOCK_TOKENS}


# -- what engines report ---------------------------------------------------------------------------


def believed(prefixes: Prefixes, blocks: list[int]) -> Belief | None:
    return prefixes.cached(blocks, 0).get(SYDNEY)


def ask(
    prefixes: Prefixes, blocks: list[int], reported: float, *, scope: int = 0
) -> Sighting:
    """A request that goes to Sydney and is answered."""
    belief = believed(prefixes, blocks)
    seen = prefixes.saw(SYDNEY, MODEL, blocks, 0, scope=scope)
    prefixes.answered(seen, belief, reported, ONE)
    return seen


def test_a_report_says_which_replica_has_it() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [5], 0)
    prefixes.heard(said_of((ONE, 7, 10)))
    seen = ask(prefixes, [1, 2], 0)
    assert (seen.replica, seen.generation) == (ONE, 7)
    assert by_replica(prefixes, [1, 2]) == {ONE: 2 * BLOCK_TOKENS}


def test_what_is_reported_missing_is_believed_no_longer() -> None:
    prefixes = Prefixes()
    ask(prefixes, [1, 2, 3, 4], 0)
    ask(prefixes, [1, 2, 3, 4], 4 * BLOCK_TOKENS)
    assert tokens_of(prefixes, [1, 2, 3, 4]) == {SYDNEY: 4 * BLOCK_TOKENS}
    ask(prefixes, [1, 2, 30], 0)  # the engine had forgotten what this shares with the others
    share = 1 - prefix.TRUST_STEP
    assert tokens_of(prefixes, [1, 2, 3, 4]) == {SYDNEY: pytest.approx(2 * BLOCK_TOKENS * share)}
    assert tokens_of(prefixes, [1, 2, 30]) == {SYDNEY: pytest.approx(3 * BLOCK_TOKENS * share)}


def test_trust_falls_and_rises_with_what_is_reported() -> None:
    prefixes = Prefixes()
    ask(prefixes, [1, 2], 1)
    for _ in range(50):
        ask(prefixes, [1, 2], 0)
    belief = believed(prefixes, [1, 2])
    assert belief is not None
    assert belief.undoubted_tokens == 2 * BLOCK_TOKENS
    assert belief.tokens == pytest.approx(2 * BLOCK_TOKENS * prefix.LEAST_TRUST, rel=0.1)
    for _ in range(50):
        ask(prefixes, [1, 2], 9 * BLOCK_TOKENS)  # more than was expected counts as all of it
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: pytest.approx(2 * BLOCK_TOKENS, rel=0.01)}


def test_an_engine_that_never_reports_is_believed_without() -> None:
    prefixes = Prefixes()
    for _ in range(50):
        ask(prefixes, [1, 2], 0)
    assert tokens_of(prefixes, [1, 2]) == {SYDNEY: 2 * BLOCK_TOKENS}


def test_one_tenants_reports_teach_nobody_else() -> None:
    prefixes = Prefixes()
    ask(prefixes, [1, 2], 1, scope=1)
    for _ in range(50):
        ask(prefixes, [1, 2], 0, scope=1)
    prefixes.saw(SYDNEY, MODEL, [11, 12], 0, scope=2)
    assert tokens_of(prefixes, [11, 12]) == {SYDNEY: 2 * BLOCK_TOKENS}


def test_a_report_of_another_replica_says_nothing_of_the_one_that_had_it() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, MODEL, [1, 2], 0, replica=ONE, generation=1)
    belief = believed(prefixes, [1, 2])
    seen = prefixes.saw(SYDNEY, MODEL, [1], 0, replica=TWO, generation=1)
    seen.trust.reports = True
    prefixes.answered(seen, belief, 0, TWO)
    assert set(by_replica(prefixes, [1, 2])) == {ONE, TWO}


def test_trusts_are_bounded() -> None:
    prefixes = Prefixes()
    for scope in range(prefix.MOST_TRUSTS + 10):
        prefixes.saw(SYDNEY, MODEL, [1], 0, scope=scope)
    assert len(prefixes._trusts) <= prefix.MOST_TRUSTS
