"""Which site answers a request soonest among those allowed, and why each other one does not.

Interactive classes minimise the expected time to the first token: round trip + queue drain +
prefill. Batch minimises the expected completion: + decode. See docs/routing.md.
"""

from collections.abc import Sequence
from typing import Final, cast

import numpy as np

from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.rng import Random
from isochrone.core.routing.board import Board, Part
from isochrone.core.routing.choice import Milliseconds, Refused
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.prefix import Belief, Prefixes
from isochrone.core.routing.sessions import Home, judge, limit_ms
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.tenant import Class

# Two costs this near are the same as far as the estimates can tell. Chance then decides, so that
# many gateways with the same view do not all run to the same site.
TIE_MS: Final = 3.0
TIE_SHARE: Final = 0.05


def choose(
    table: RoutingTable,
    loads: Loads,
    prefixes: Prefixes,
    *,
    model: ModelName,
    policy_id: PolicyId,
    class_: Class,
    prompt_tokens: int,
    output_tokens: int,
    blocks: Sequence[int],
    tried: Sequence[Refused],
    now_ns: int,
    rng: Random,
    narrowing: Narrowing | None = None,
    home: Home | None = None,
) -> Choice:
    """Weigh every open site of the shortlist and take the cheapest, near equals by chance, or the
    `home` of the request's session while it costs little enough.

    Token counts are expectations >= 0. `blocks` are the hashes of the prompt's leading blocks, see
    `Prefixes`. `tried` are the sites that refused or lost the request already, with what ended each
    try. `now_ns` is the clock that `loads` was told. `rng` draws among near equals only. Plain
    arguments: this runs for every request, and a record would cost a tenth of the choice.
    """
    listing = table.listing(model, policy_id, narrowing)
    shortlist = listing.shortlist
    part = shortlist.part
    if part is None or part.board.loads is not loads:
        part = table.part(model, shortlist, loads)
    board = part.board
    if board.changes or now_ns >= board.next_change_ns:
        board.catch_up(now_ns)
    if part.version != board.version:
        part.catch_up()
    costs, queues, decodes = _times(board.prompt_ms, prompt_tokens), board.queues_ms, None
    costs += board.fixed_ms
    if class_ == "batch":
        decodes = _times(board.output_ms, output_tokens)
        costs += decodes
    beliefs = _credit(board, costs, prefixes, blocks, prompt_tokens, now_ns) if blocks else None
    if part.places is not None:
        costs, queues = costs.take(part.places), queues.take(part.places)
        decodes = None if decodes is None else decodes.take(part.places)
    refused = _without(part, costs, tried) if tried else part.refused
    choice = Choice()
    choice.ground = listing.ground
    choice.allowed_exists = shortlist.allowed_exists
    choice.eligible = part.eligible if not tried else len(costs) - len(refused)
    choice.refused = refused
    choice.costs, choice.decodes, choice.queues = costs, decodes, queues.tobytes()
    choice.verdict, choice.limit_ms = "none", 0.0
    if choice.eligible:
        index = _cheapest(costs, rng)
        if home is not None:
            index = _at_home(choice, part, home, index, beliefs, now_ns)
        _settle(choice, part, index, prompt_tokens, now_ns)
        _believe(choice, beliefs)
        return choice
    return _nobody(choice)


def _nobody(choice: Choice) -> Choice:
    choice.site, choice.index, choice.rtt_ms, choice.cost_ms = None, -1, 0.0, 0.0
    choice.prefill_ms = choice.decode_ms = choice.digest_age_ms = 0.0
    choice.belief = None
    return choice


def _times(token_ms: Milliseconds, tokens: int) -> Milliseconds:
    """A number of Python leaves an array what it is, which the stubs of numpy do not know."""
    return cast(Milliseconds, token_ms * float(tokens))


def _settle(choice: Choice, part: Part, index: int, prompt_tokens: int, now_ns: int) -> None:
    """Say what was chosen, and the terms of its cost without cached prefixes."""
    board, site = part.board, part.sites[index]
    place = index if part.places is None else part.places.item(index)
    known = board.known[place]
    assert known is not None, "a site of which nothing is known takes no request"
    choice.site, choice.index, choice.rtt_ms = site.name, index, site.rtt_ms
    choice.cost_ms = choice.costs.item(index)
    choice.prefill_ms = prompt_tokens * board.prompt_ms.item(place)
    choice.decode_ms = 0.0 if choice.decodes is None else choice.decodes.item(index)
    age_ns = now_ns - known.heard_ns
    choice.digest_age_ms = age_ns / 1e6 if age_ns > 0 else 0.0


def _cheapest(costs: Milliseconds, rng: Random) -> int:
    """The index of the cheapest site, or of one that is as good as equal."""
    index = int(costs.argmin())
    cheapest_ms = costs.item(index)
    near = costs <= cheapest_ms + _tie_ms(cheapest_ms)
    equals = near.tobytes().count(1)
    if equals == 1:
        return index
    return int(near.nonzero()[0].item(int(rng.random() * equals)))


def _tie_ms(cheapest_ms: float) -> float:
    share_ms = cheapest_ms * TIE_SHARE
    return share_ms if share_ms > TIE_MS else TIE_MS


def _at_home(
    choice: Choice, part: Part, home: Home, other: int, beliefs: dict[SiteName, Belief] | None,
    now_ns: int,
) -> int:
    """The index of the session's home while the request goes there, else `other`, where it would
    go without one."""
    costs, index = choice.costs, part.index_of.get(home.site, -1)
    other_ms = costs.item(other)
    belief = None if beliefs is None else beliefs.get(home.site)
    saved_ms = 0.0 if belief is None else belief.saved_ms
    choice.limit_ms = limit_ms(_tie_ms(other_ms), saved_ms)
    home_ms = float("inf") if index < 0 else costs.item(index)
    choice.verdict = judge(home, home_ms, other_ms, choice.limit_ms, now_ns)
    return index if choice.verdict == "kept" else other


def _believe(choice: Choice, beliefs: dict[SiteName, Belief] | None) -> None:
    """What the chosen site is expected to have of the prompt it need not compute."""
    assert choice.site is not None
    belief = choice.belief = None if beliefs is None else beliefs.get(choice.site)
    if belief is not None:
        choice.prefill_ms -= belief.saved_ms


def _credit(
    board: Board, costs: Milliseconds, prefixes: Prefixes, blocks: Sequence[int],
    prompt_tokens: int, now_ns: int,
) -> dict[SiteName, Belief]:
    """Take off `costs` the prefill that sites are believed to have cached."""
    beliefs = prefixes.cached(blocks, now_ns)
    for site, belief in beliefs.items():
        place = board.index_of.get(site)
        if place is not None:
            saved_ms = min(belief.tokens, prompt_tokens) * board.prompt_ms.item(place)
            belief.saved_ms = saved_ms
            costs[place] -= saved_ms
    return beliefs


def _without(part: Part, costs: Milliseconds, tried: Sequence[Refused]) -> tuple[Refused, ...]:
    """Rule out the sites that were tried; all refusals of open sites."""
    refused = {each.site: each for each in part.refused}
    for earlier in tried:
        index = part.index_of.get(earlier.site)
        if index is not None:
            costs[index] = np.inf
            detail = f"this request was there already: {earlier.rule} ({earlier.detail})"
            refused[earlier.site] = Refused(site=earlier.site, rule="tried_before", detail=detail)
    return tuple(refused.values())
