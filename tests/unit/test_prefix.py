"""Which sites have computed a prompt's beginning."""

from isochrone.core.ids import SiteName
from isochrone.core.routing.prefix import BLOCK_TOKENS, Prefixes

SYDNEY = SiteName("sydney")
OSLO = SiteName("oslo")


def test_a_site_has_what_it_got() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, [1, 2, 3])
    assert prefixes.cached_tokens([1, 2, 3]) == {SYDNEY: 3 * BLOCK_TOKENS}
    assert prefixes.cached_tokens([1, 2, 3, 4]) == {SYDNEY: 3 * BLOCK_TOKENS}
    assert prefixes.cached_tokens([1, 2, 30]) == {SYDNEY: 2 * BLOCK_TOKENS}
    assert prefixes.cached_tokens([10, 20]) == {}
    assert prefixes.cached_tokens([]) == {}


def test_whoever_got_a_later_block_got_the_earlier_ones() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, [1, 2, 3])
    prefixes.saw(OSLO, [1, 20])  # shares its first block: a system prompt, say
    cached = prefixes.cached_tokens([1, 2, 3, 4])
    assert cached == {OSLO: BLOCK_TOKENS, SYDNEY: 3 * BLOCK_TOKENS}
    assert prefixes.cached_tokens([1, 20]) == {OSLO: 2 * BLOCK_TOKENS}


def test_the_last_site_replaces_the_one_before() -> None:
    prefixes = Prefixes()
    prefixes.saw(SYDNEY, [1, 2])
    prefixes.saw(OSLO, [1, 2])
    assert prefixes.cached_tokens([1, 2]) == {OSLO: 2 * BLOCK_TOKENS}


def test_the_last_site_counts_also_when_the_one_before_is_half_forgotten() -> None:
    prefixes = Prefixes(most=8)
    prefixes.saw(SYDNEY, [1, 2, 3])
    prefixes.saw(OSLO, [1, 2])
    assert prefixes.cached_tokens([1, 2]) == {OSLO: 2 * BLOCK_TOKENS}
    assert prefixes.cached_tokens([1, 2, 3]) == {
        OSLO: 2 * BLOCK_TOKENS, SYDNEY: 3 * BLOCK_TOKENS
    }


def test_it_is_bounded_and_keeps_what_is_used() -> None:
    prefixes = Prefixes(most=100)
    for turn in range(1000):
        prefixes.saw(SYDNEY, [1, 2])
        prefixes.saw(OSLO, [10 * turn + 3, 10 * turn + 4])
        assert len(prefixes) <= 100
    assert prefixes.cached_tokens([1, 2]) == {SYDNEY: 2 * BLOCK_TOKENS}
    assert prefixes.cached_tokens([3, 4]) == {}
    assert prefixes.cached_tokens([9993, 9994]) == {OSLO: 2 * BLOCK_TOKENS}


def test_a_prompt_longer_than_the_bound_keeps_its_beginning() -> None:
    prefixes = Prefixes(most=8)
    prefixes.saw(SYDNEY, list(range(1000)))
    assert len(prefixes) <= 8
    assert prefixes.cached_tokens([0, 1]) == {SYDNEY: 2 * BLOCK_TOKENS}
