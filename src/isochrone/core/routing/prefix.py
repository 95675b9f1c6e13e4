"""Where a prompt's beginning was computed lately, and how much of it is probably still there.

A prompt's beginning is known by the hashes of its blocks, which end at `BLOCK_ENDS`. Each hash
covers all blocks before it too, so that whoever got a block got everything before it. What was
computed is forgotten by its engine with time, with the tokens that it computes since, and at once
when it ends; what engines report teaches how far to believe the rest. See docs/prefixes.md.
"""

from collections.abc import Sequence
from math import exp2
from typing import Final

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.routing.replicas_said import KEPT_TOKENS, ModelSaid, ReplicasSaid

BLOCK_BYTES: Final = 1024  # of the prompt's JSON, the first blocks
BLOCK_TOKENS: Final = BLOCK_BYTES // 4  # four bytes a token, as in the gateway's other estimates
MOST_BYTES: Final = 256 * BLOCK_BYTES  # requests that agree so far are taken for one prefix
GROWTH: Final = 4  # a later block is this part of what is before it: what is lost at its end, too


def _block_ends() -> tuple[int, ...]:
    ends = [BLOCK_BYTES]
    while ends[-1] < MOST_BYTES:
        blocks = max(ends[-1] // BLOCK_BYTES // GROWTH, 1)
        ends.append(ends[-1] + blocks * BLOCK_BYTES)
    return (*ends[:-1], MOST_BYTES)


BLOCK_ENDS: Final[tuple[int, ...]] = _block_ends()  # in bytes of the prompt's JSON
_TOKENS: Final[list[int]] = [end // 4 for end in BLOCK_ENDS]

HALF_LIFE_S: Final = 600.0  # after this long half of what was computed counts
LEAST_SHARE: Final = 1 / 16  # what is this unlikely to be there counts as gone
TRUST_STEP: Final = 1 / 8  # how much one report counts beside all before it
LEAST_TRUST: Final = 1 / 16  # so that a cache that works again is found out
MOST_PLACES: Final = 6  # that are remembered for one block
MOST_TRUSTS: Final = 65_536
MOST_ENDED: Final = 64  # replicas that are remembered as ended, of one model at one site

UNKNOWN: Final = -1  # generation: nobody has said it
ENDED: Final = -2    # generation: the replica is no longer spoken of


class Cache:
    """What is known of the engines of one model at one site: tokens computed since ever, and what
    its last digest said of each. Nothing in it comes from what prompts say."""

    __slots__ = (
        "_ended", "_said", "_totals", "computed_tokens", "kept_tokens", "model", "site", "told",
    )

    def __init__(self, site: SiteName, model: ModelName) -> None:
        self.site = site
        self.model = model
        self.computed_tokens = 0
        self.told = False  # digests say it; until then own requests are counted
        self.kept_tokens = KEPT_TOKENS  # of all replicas together
        self._said: ModelSaid | None = None
        self._ended: dict[ReplicaId, None] = {}  # the latest last
        self._totals: dict[ReplicaId, int] = {}  # of those that told once, and not the last time

    def generation(self, replica: ReplicaId) -> int:
        """Of the replica, as it was spoken of last."""
        if self._said is not None:
            said = self._said.generations.get(replica)
            if said is not None:
                return said
        return ENDED if replica in self._ended else UNKNOWN

    def hear(self, said: ModelSaid) -> None:
        """Totals begin anew with a generation. What a site says before it was sent anything counts
        from there on."""
        before = self._said
        since_tokens = None if before is None else said.since(before)
        if since_tokens is None:
            self._hear_each(said, before)
        else:
            self.computed_tokens += since_tokens
        self.kept_tokens = said.kept_tokens
        self._said = said

    def _hear_each(self, said: ModelSaid, before: ModelSaid | None) -> None:
        known, generations = self._totals, said.generations
        if before is not None:
            known = {**known, **before.totals}
        for replica, total in said.totals.items():
            self.told = True
            was = self.generation(replica)
            if was != UNKNOWN:
                counted = known.get(replica, total) if was == generations[replica] else 0
                self.computed_tokens += max(total - counted, 0)
        self._totals = {
            replica: total for replica, total in known.items()
            if replica in generations and replica not in said.totals
        }
        for replica in generations:
            self._ended.pop(replica, None)
        if before is not None:
            gone = [replica for replica in before.generations if replica not in generations]
            self._ended.update(dict.fromkeys(gone))
        for replica in list(self._ended)[:-MOST_ENDED]:
            del self._ended[replica]


class Trust:
    """How much of what was believed cached one tenant's reports have confirmed: 0..1. `reports`
    once one of them named cached tokens: engines that never do are believed without."""

    __slots__ = ("reports", "share")

    def __init__(self) -> None:
        self.share = 1.0
        self.reports = False


class Sighting:
    """One prompt that went to one place. `replica` and `generation` as far as they are known;
    `computed_tokens` is what its cache had computed with it; `gone`: it is not there (any more),
    and what was believed of its place before it is so `instead`, if anything was."""

    __slots__ = (
        "at_ns", "cache", "computed_tokens", "generation", "gone", "instead", "replica", "trust",
    )

    def __init__(
        self, cache: Cache, trust: Trust, replica: ReplicaId | None, generation: int, at_ns: int,
        computed_tokens: int,
    ) -> None:
        self.cache = cache
        self.trust = trust
        self.replica = replica
        self.generation = generation
        self.at_ns = at_ns
        self.computed_tokens = computed_tokens
        self.gone = False
        self.instead: Belief | None = None


class Belief:
    """Leading tokens of a prompt that one place is expected to have: `tokens`, and what they were
    without the doubt that reports have taught, of the `seen_tokens` that went there. `saved_ms` is
    what they are worth there."""

    __slots__ = ("saved_ms", "seen_tokens", "sighting", "tokens", "undoubted_tokens")

    def __init__(
        self, sighting: Sighting, seen_tokens: int, tokens: float, undoubted_tokens: float
    ) -> None:
        self.sighting = sighting
        self.seen_tokens = seen_tokens
        self.tokens = tokens
        self.undoubted_tokens = undoubted_tokens
        self.saved_ms = 0.0


_NOWHERE: Final[tuple[Sighting, ...]] = ()
_NO_RUNS: Final[list[tuple[tuple[Sighting, ...], int]]] = []  # never changed


class Prefixes:
    """Block hash -> the places that got it lately; at most `most` blocks are kept.

    Of one prompt as many count as there are `BLOCK_ENDS`. Kept in two halves: a block that is used
    moves to the younger one, and when that is full the older one goes. Hashes are salted by tenant
    and model, so tenants share nothing but the bound.
    Mutable, owned by one event loop.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._half = max(most // 2, 1)
        self._young: dict[int, tuple[Sighting, ...]] = {}
        self._old: dict[int, tuple[Sighting, ...]] = {}
        self._caches: dict[SiteName, dict[ModelName, Cache]] = {}
        self._trusts: dict[tuple[int, SiteName], Trust] = {}
        self._asked: Sequence[int] = ()  # the blocks that were last asked about, and their runs
        self._runs_of_asked = _NO_RUNS

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    # -- what is believed ------------------------------------------------------------------------

    def cached(self, blocks: Sequence[int], now_ns: int) -> dict[SiteName, Belief]:
        """What each site is expected to have of the prompt; sites without any are not named."""
        found: dict[SiteName, Belief] = {}
        for places, tokens in self._runs(blocks):
            for seen in places:
                belief = _belief(seen, tokens, now_ns)
                if belief is not None:
                    best = found.get(seen.cache.site)
                    if best is None or belief.tokens > best.tokens:
                        found[seen.cache.site] = belief
        return found

    def cached_by_replica(
        self, site: SiteName, blocks: Sequence[int], now_ns: int
    ) -> dict[ReplicaId, Belief]:
        """The same for each replica of a site that is known to have got the prompt's beginning."""
        found: dict[ReplicaId, Belief] = {}
        for places, tokens in self._runs(blocks):
            for seen in places:
                replica = seen.replica
                if replica is None or seen.cache.site != site:
                    continue
                belief = _belief(seen, tokens, now_ns)
                if belief is not None:
                    best = found.get(replica)
                    if best is None or belief.tokens > best.tokens:
                        found[replica] = belief
        return found

    def knows(self, blocks: Sequence[int]) -> bool:
        """Whether a prompt that began with the first of these blocks went anywhere."""
        return bool(blocks) and (blocks[0] in self._young or blocks[0] in self._old)

    def _runs(self, blocks: Sequence[int]) -> list[tuple[tuple[Sighting, ...], int]]:
        """Successive blocks that went to the same places, with the tokens up to their last. The
        last block that a place got counts, and with it all before. A request asks for its sites and
        then for its replicas, with nothing seen in between."""
        if blocks is not self._asked:
            self._runs_of_asked, self._asked = self._found(blocks), blocks
        return self._runs_of_asked

    def _found(self, blocks: Sequence[int]) -> list[tuple[tuple[Sighting, ...], int]]:
        runs: list[tuple[tuple[Sighting, ...], int]] = []
        young, old, tokens = self._young, self._old, 0
        places = _NOWHERE
        if len(blocks) > len(_TOKENS):
            blocks = blocks[: len(_TOKENS)]
        for index, block in enumerate(blocks):
            known = young.get(block)
            if known is None:
                known = old.get(block, _NOWHERE)
                if not known:
                    break  # whoever got a block got all before it: nobody got the rest
            if known is not places:
                if places:
                    runs.append((places, tokens))
                places = known
            tokens = _TOKENS[index]
        if places:
            runs.append((places, tokens))
        return runs

    # -- what happens ----------------------------------------------------------------------------

    def saw(
        self, site: SiteName, model: ModelName, blocks: Sequence[int], now_ns: int, *,
        scope: int = 0, tokens: int = 0, replica: ReplicaId | None = None,
        generation: int = UNKNOWN,
    ) -> Sighting:
        """A prompt that begins with these blocks goes to the site now, `tokens` with its answer.
        `scope`: whose reports teach how far to believe it."""
        cache = self._cache(site, model)
        computed_tokens = cache.computed_tokens + tokens
        if not cache.told:
            cache.computed_tokens = computed_tokens
        seen = Sighting(
            cache, self._trust(scope, site), replica, generation, now_ns, computed_tokens
        )
        most = min(self._half, len(BLOCK_ENDS))
        if len(blocks) > most:
            blocks = blocks[:most]
        if len(self._young) + len(blocks) > self._half:
            self._old, self._young = self._young, {}
        young, old = self._young, self._old
        self._asked, self._runs_of_asked = (), _NO_RUNS
        before = _NOWHERE
        alone: tuple[Sighting, ...] = (seen,)
        after, is_known = alone, True
        for block in blocks:
            if is_known:
                known = young.get(block)
                if known is None:
                    known = old.get(block, _NOWHERE)
                if not known:
                    is_known, after = False, alone  # nor is any block behind it
                elif known is not before:
                    before, after = known, _beside(seen, known)
            young[block] = after
        return seen

    def failed(self, seen: Sighting, belief: Belief | None, blocks: Sequence[int]) -> None:
        """Nothing of the prompt of `seen` was computed, so what its place has of it is what it had
        before. `belief` is what was expected of the place then; None: nothing."""
        seen.gone = True
        while belief is not None and belief.sighting.gone:
            belief = belief.sighting.instead  # of one that was on its way as well, and failed
        seen.instead = belief
        if belief is None:
            return
        earlier, before, after = belief.sighting, _NOWHERE, _NOWHERE
        self._asked, self._runs_of_asked = (), _NO_RUNS
        for block, tokens in zip(blocks, _TOKENS, strict=False):
            half = self._young if block in self._young else self._old
            known = half.get(block, _NOWHERE)
            if tokens > belief.seen_tokens:
                break
            if seen in known and earlier not in known:
                if known is not before:  # successive blocks share their places
                    before, after = known, _in_place_of(seen, earlier, known)
                half[block] = after

    def answered(
        self, seen: Sighting, belief: Belief | None, reported_tokens: float,
        replica: ReplicaId | None,
    ) -> None:
        """An engine has said how much of the prompt of `seen` it had cached, in tokens of ours.
        `belief` is what was expected of the place; None: nothing."""
        if seen.replica is None and replica is not None:
            seen.replica = replica
            seen.generation = seen.cache.generation(replica)
        trust = seen.trust
        if reported_tokens > 0:
            trust.reports = True
        if belief is None or not trust.reports or belief.undoubted_tokens <= 0:
            return
        share = min(reported_tokens / belief.undoubted_tokens, 1.0)
        trust.share = max(trust.share + (share - trust.share) * TRUST_STEP, LEAST_TRUST)
        earlier = belief.sighting
        if share < 0.5 and (earlier.replica is None or earlier.replica == replica):
            earlier.gone = True

    def heard(self, said: ReplicasSaid) -> None:
        """What a site says of its replicas: what they computed, and which have started anew."""
        caches = self._caches.get(said.site)
        if caches is None:
            return
        for cache in caches.values():
            of_model = said.of(cache.model)
            if of_model is not None:
                cache.hear(of_model)

    # -- inside ----------------------------------------------------------------------------------

    def _cache(self, site: SiteName, model: ModelName) -> Cache:
        caches = self._caches.get(site)
        if caches is None:
            caches = self._caches[site] = {}
        cache = caches.get(model)
        if cache is None:
            cache = caches[model] = Cache(site, model)
        return cache

    def _trust(self, scope: int, site: SiteName) -> Trust:
        trust = self._trusts.get((scope, site))
        if trust is None:
            if len(self._trusts) >= MOST_TRUSTS:
                self._trusts.clear()
            trust = self._trusts[scope, site] = Trust()
        return trust


def still_there(seen: Sighting, now_ns: int) -> float:
    """The share of what was computed then that is expected to be there now, 0..1.

    share = 2^-(age / half-life) * (1 - computed since / what the caches hold); 0 after a restart.
    """
    if seen.gone:
        return 0.0
    cache, replica = seen.cache, seen.replica
    if replica is not None and seen.generation != UNKNOWN:
        generation = cache.generation(replica)
        if generation != UNKNOWN and generation != seen.generation:
            return 0.0
    since_tokens = max(cache.computed_tokens - seen.computed_tokens, 0)
    share = 1.0 - since_tokens / float(cache.kept_tokens)
    age_ns = now_ns - seen.at_ns
    if age_ns > 0:
        share *= exp2(age_ns / (-1e9 * HALF_LIFE_S))
    return share if share >= LEAST_SHARE else 0.0


def _belief(seen: Sighting, tokens: int, now_ns: int) -> Belief | None:
    undoubted = tokens * still_there(seen, now_ns)
    if undoubted <= 0:
        return None
    return Belief(seen, tokens, undoubted * seen.trust.share, undoubted)


def _beside(seen: Sighting, known: tuple[Sighting, ...]) -> tuple[Sighting, ...]:
    """The new place first, then the others that got the block before, the latest first."""
    places = [seen]
    for each in known:
        replaced = each.cache is seen.cache and (
            each.replica is None or seen.replica is None or each.replica == seen.replica
        )
        if not replaced and not each.gone and len(places) < MOST_PLACES:
            places.append(each)
    return tuple(places)


def _in_place_of(
    seen: Sighting, earlier: Sighting, known: tuple[Sighting, ...]
) -> tuple[Sighting, ...]:
    return tuple([earlier if each is seen else each for each in known])
