"""Gives requests their place, tenant, class and objective: from `Ask` to chunks of `Arrivals`.

All of it follows from the request's group and the seed, so that a conversation stays where it is.
A request is left out where its place is not at work at that hour; the source is asked for that
many more, so that the mean rate over a week is as wanted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from isochrone.twin.fast.arrivals import Arrivals
from isochrone.twin.workloads.asks import Ask, all_mixed, mixed
from isochrone.twin.world.demand import Demand, Floats, Ints
from isochrone.twin.world.fleet_plan import CONTEXT_TOKENS

CHUNK = 2048
BODY_BYTES_TOKEN = 4
INGRESS, ACTIVE, TENANT, CLASS = 1, 2, 3, 4  # what a group's chance is for

Source = Callable[[float, int], Iterator[Ask]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """`tenants` and `classes` (by rank) have parts of the groups that sum to 1; `slo_ms` +
    `slo_token_ms` a token of the prompt is when the first token should be there. `expected_tokens`:
    what gateways assume of an answer. A request of more than `most_tokens` is left out. Of each
    tenant, where there is one: `places`, for each ingress whether it has clients there (1 or 0),
    and the class of all its requests."""

    tenants: tuple[float, ...] = (1.0,)
    classes: tuple[float, float, float] = (0.0, 1.0, 0.0)
    model: int = 0
    slo_ms: float = 1_000.0
    slo_token_ms: float = 0.25
    expected_tokens: int = 256
    most_tokens: int = CONTEXT_TOKENS
    places: tuple[Floats | None, ...] = ()
    tenant_class: tuple[int | None, ...] = ()


def placed(
    source: Source, demand: Demand, mix: Mix, *, rate_rps: float, length_s: float, seed: int
) -> Iterator[Arrivals]:
    """Chunks of the requests of `length_s` seconds, `rate_rps` in the mean of a week. Memory is
    that of the source and of one chunk. `source(rate, seed)` begins at time 0."""
    asks = source(rate_rps / demand.mean_activity(), seed)
    while True:
        chunk = list(islice(asks, CHUNK))
        within = [ask for ask in chunk if ask.at_s < length_s]
        arrivals = _chunk(
            [ask for ask in within if ask.prompt_tokens + ask.output_tokens <= mix.most_tokens],
            demand, mix, seed,
        )
        if len(arrivals):
            yield arrivals
        if len(within) < len(chunk) or len(chunk) < CHUNK:
            return


def _chunk(asks: list[Ask], demand: Demand, mix: Mix, seed: int) -> Arrivals:
    groups = np.array([ask.group & (2**64 - 1) for ask in asks], dtype=np.uint64)

    def chance(what: int) -> Floats:
        drawn = all_mixed(groups ^ np.uint64(mixed(seed, what)))
        result: Floats = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return result

    at_s = np.array([ask.at_s for ask in asks], dtype=np.float64)
    tenant = _drawn(np.array(mix.tenants), chance(TENANT))
    ingress = _drawn(demand.share, chance(INGRESS))
    class_ = _drawn(np.array(mix.classes), chance(CLASS))
    for number, places in enumerate(mix.places):
        if places is not None:
            own = _drawn(demand.share * places, chance(INGRESS))
            ingress = np.where(tenant == number, own, ingress)
    for number, rank in enumerate(mix.tenant_class):
        if rank is not None:
            class_ = np.where(tenant == number, rank, class_)
    kept = chance(ACTIVE) < demand.activity(at_s, ingress)
    tenant, class_ = tenant[kept], class_[kept]
    asks = [ask for ask, keep in zip(asks, kept.tolist(), strict=True) if keep]
    counts = np.array([len(ask.blocks) for ask in asks], dtype=np.int64)
    numbers = np.array([block for ask in asks for block in ask.blocks], dtype=np.uint64)
    salts = np.array(
        [mixed(each, mix.model) for each in range(len(mix.tenants))], dtype=np.uint64
    )
    blocks = all_mixed(numbers ^ np.repeat(salts[tenant], counts)) >> np.uint64(1)
    prompt = np.array([ask.prompt_tokens for ask in asks], dtype=np.int64)
    return Arrivals(
        at_s=at_s[kept], ingress=ingress[kept], tenant=tenant, class_=class_,
        model=np.full(len(asks), mix.model, dtype=np.int64),
        prompt_tokens=prompt,
        output_tokens=np.array([ask.output_tokens for ask in asks], dtype=np.int64),
        expected_tokens=np.full(len(asks), mix.expected_tokens, dtype=np.int64),
        session=np.array([ask.session for ask in asks], dtype=np.int64),
        slo_ms=mix.slo_ms + mix.slo_token_ms * prompt.astype(np.float64),
        body_bytes=prompt * BODY_BYTES_TOKEN,
        block_ends=np.cumsum(counts), blocks=blocks.astype(np.int64),
    )


def _drawn(shares: Floats, chance: Floats) -> Ints:
    ends = np.cumsum(shares)
    found = np.searchsorted(ends / ends[-1], chance, side="right")
    return np.minimum(found, len(shares) - 1).astype(np.int64)
