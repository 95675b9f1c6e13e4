"""Which site answers a request soonest among those allowed, and why each other one does not.

Interactive classes minimise the expected time to the first token: round trip + transfer + queue
drain + prefill. Batch minimises the expected completion: + decode. See docs/routing.md; for the
order in which it is asked, docs/spill.md.
"""

from collections.abc import Sequence
from math import inf
from typing import Final

import numpy as np

from isochrone.core.estimate.transfer import LEAST_BODY_BYTES
from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.rng import Random
from isochrone.core.routing.board import TIE_MS, TIE_SHARE, Board, Part
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.chosen import UNKNOWN, Choice
from isochrone.core.routing.credits import PUSHED_MS, stays_rather
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.per_site import Milliseconds
from isochrone.core.routing.prefix import Belief, Prefixes
from isochrone.core.routing.sessions import Home, judge, limit_ms
from isochrone.core.routing.table import RoutingTable, Shortlist
from isochrone.core.world.tenant import Class

TARGET_MS: Final = 200.0  # to the first token: within it, nobody is sent away from the own site
BACK_SHARE: Final = 0.7   # of the target, within which a site that spilled is local again
EXPLORED: Final = 0.01    # of the requests


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
    body_bytes: int = 0, target_ms: float = TARGET_MS,
    passed_over: Sequence[Refused] = (), closed: Sequence[Refused] = (),
) -> Choice:
    """Weigh every open site of the shortlist and take the best, see `_best`, or the `home` of the
    request's session while it costs little enough.

    Token counts are expectations >= 0. `blocks`: hashes of the prompt's leading blocks, see
    `Prefixes`; `tried`: sites that refused or lost the request, and how; `passed_over`: who is not
    asked, and why; `closed`: who takes nothing of its class. `now_ns` is the clock that `loads` was
    told. `rng` draws near equals, and whom to explore. `target_ms`: what is soon enough, or 0.
    Plain arguments: a record would cost a tenth of the choice.
    """
    listing = table.listing(model, policy_id, narrowing)
    part = _up_to_date(table, listing.shortlist, loads, model, now_ns)
    board, choice = part.board, Choice()
    costs, decodes = board.times(board.prompt_ms, prompt_tokens), None
    costs += board.fixed_ms
    held = _hold_back(board, costs, now_ns, rng) if board.recovering else None
    if class_ == "batch":
        decodes, target_ms = board.times(board.output_ms, output_tokens), 0.0
        costs += decodes
    choice.body_bytes = body_bytes if body_bytes >= LEAST_BODY_BYTES else 0
    if choice.body_bytes:
        costs += board.times(board.byte_ms, body_bytes)
    beliefs = _credit(board, costs, prefixes, blocks, prompt_tokens, now_ns) if blocks else None
    if part.places is not None:
        costs = costs.take(part.places)
        decodes = None if decodes is None else decodes.take(part.places)
    refused = _without(part, costs, tried, passed_over, closed)
    choice.ground, choice.allowed_exists = listing.ground, listing.shortlist.allowed_exists
    choice.eligible = len(costs) - len(refused)
    choice.costs, choice.decodes = costs, decodes
    choice.part, choice.refused, choice.queues = part, refused, _queues(board, held)
    choice.verdict, choice.limit_ms, choice.next_best = "none", 0.0, UNKNOWN
    if not choice.eligible:
        return _nobody(choice)
    index = _best(choice, part, costs, target_ms, class_, rng)
    if home is not None:
        index = _at_home(choice, part, home, index, beliefs, tried, now_ns)
    if held is not None:
        _take_after_all(choice, part, index, held)
    _settle(choice, part, index, prompt_tokens, now_ns)
    _believe(choice, beliefs)
    return choice


def _nobody(choice: Choice) -> Choice:
    choice.site, choice.index, choice.rtt_ms, choice.cost_ms = None, -1, 0.0, 0.0
    choice.prefill_ms = choice.decode_ms = choice.queue_ms = choice.digest_age_ms = 0.0
    choice.because, choice.pushed, choice.belief = None, False, None
    return choice


def _up_to_date(
    table: RoutingTable, shortlist: Shortlist, loads: Loads, model: ModelName, now_ns: int
) -> Part:
    """What the sites of the shortlist cost now."""
    part = shortlist.part
    if part is None or part.board.loads is not loads:
        part = table.part(model, shortlist, loads)
    board = part.board
    if board.changes or now_ns >= board.next_change_ns:
        board.catch_up(now_ns)
    if part.version != board.version or part.resized != board.resized:
        part.catch_up()
    return part


def _hold_back(board: Board, costs: Milliseconds, now_ns: int, rng: Random) -> Milliseconds:
    """Add to `costs` what sites cost more that recover, and tell it."""
    held_ms = board.held_back_ms(now_ns, rng)
    costs += held_ms
    return held_ms


def _queues(board: Board, held: Milliseconds | None) -> bytes:
    """As `Choice.queues`: a site that is held back is as one with a queue."""
    return board.queues_ms.tobytes() if held is None else (board.queues_ms + held).tobytes()


def _take_after_all(choice: Choice, part: Part, index: int, held: Milliseconds) -> None:
    """Of who is chosen although it is held back, the cost is what it really is."""
    place = index if part.places is None else part.places.item(index)
    if held.item(place) > 0.0:
        choice.costs[index] -= held.item(place)
        held[place] = 0.0
        choice.queues = _queues(part.board, held)


def _settle(choice: Choice, part: Part, index: int, prompt_tokens: int, now_ns: int) -> None:
    """Say what was chosen, and the terms of its cost without cached prefixes."""
    board, site = part.board, part.sites[index]
    place = index if part.places is None else part.places.item(index)
    known = board.cells[place].known
    assert known is not None, "a site of which nothing is known takes no request"
    choice.site, choice.index, choice.rtt_ms = site.name, index, site.rtt_ms
    choice.cost_ms = choice.costs.item(index)
    choice.queue_ms = board.queues_ms.item(place)
    choice.prefill_ms = prompt_tokens * board.prompt_ms.item(place)
    choice.decode_ms = 0.0 if choice.decodes is None else choice.decodes.item(index)
    age_ns = now_ns - known.said_ns
    choice.digest_age_ms = age_ns / 1e6 if age_ns > 0 else 0.0


def _best(
    choice: Choice, part: Part, costs: Milliseconds, soon_ms: float, class_: Class, rng: Random
) -> int:
    """The index of the site to take, and what decided.

    The own site while it answers within `soon_ms`. Else, of the sites that are nearest without
    queues, one by chance, if none is cheaper by more than a tie. Else a push: without credits to
    the cheapest site or a near equal; with them see `_pushed`.
    """
    board, own, luck = part.board, part.own, rng.random()
    given = board.credits if board.credited else None
    if luck < EXPLORED:
        luck /= EXPLORED
        if soon_ms and class_ != "reserved":
            index = _explored(part, costs, given, soon_ms, luck)
            if index >= 0:
                choice.because, choice.pushed = "explored", True
                return index
    else:
        luck = (luck - EXPLORED) / (1.0 - EXPLORED)
    own_ms = costs.item(own) if soon_ms and own >= 0 else inf
    if own_ms <= (soon_ms * BACK_SHARE if board.spilled else soon_ms):
        board.spilled = False
        choice.because, choice.pushed = "local", False
        return own
    index = int(costs.argmin())
    cheapest_ms = costs.item(index)
    if own_ms < inf and cheapest_ms <= soon_ms:  # else it says nothing of the own site's queue
        board.spilled = True
    near_ms = cheapest_ms + _tie_ms(cheapest_ms)
    nearest = part.nearest(luck)
    nearest_ms = costs.item(nearest)
    if given is not None:
        drawn, stay = rng.random(), part.stays(nearest, nearest_ms - near_ms)
        found = _pushed(part, costs, nearest, rng.random()) if drawn >= stay else -1
        if found >= 0 and drawn >= stays_rather(stay, costs.item(found) - nearest_ms):
            choice.because, choice.pushed = "cheapest", True
            return found
    if nearest_ms == inf or (given is None and nearest_ms > near_ms):
        choice.because, choice.pushed = "cheapest", True
        near = costs <= near_ms
        equals = near.tobytes().count(1)
        return index if equals == 1 else int(near.nonzero()[0].item(int(luck * equals)))
    choice.because, choice.pushed = "nearest", False
    return nearest


def _pushed(part: Part, costs: Milliseconds, nearest: int, luck: float) -> int:
    """Where a request goes that should leave its nearest site: one of those that want to, drawn by
    `luck`; the first of them have the cheapest site, as many as have credit there, the next ones
    the second cheapest. -1 for nowhere: then it is kept, since it would only queue elsewhere."""
    board = part.board
    order: list[int] = costs.argsort().tolist()
    cells, places = board.cells, part.places
    left = luck * board.wanting
    for index in order:
        left -= cells[index if places is None else places.item(index)].given
        if left < 0.0:
            break
    else:
        return -1
    nearest_ms = costs.item(nearest)
    most_ms = PUSHED_MS + (nearest_ms if nearest_ms < inf else costs.item(order[0]))
    return index if index != nearest and costs.item(index) <= most_ms else -1


def _explored(
    part: Part, costs: Milliseconds, given: Milliseconds | None, soon_ms: float, luck: float
) -> int:
    """One of the sites that answer within the target and take pushes; -1 when there is no choice.
    """
    soon = costs <= soon_ms
    if given is not None:
        soon &= (given if part.places is None else given.take(part.places)) > 0.0
    within = soon.nonzero()[0]
    return within.item(int(luck * len(within))) if len(within) > 1 else -1


def _tie_ms(cheapest_ms: float) -> float:
    share_ms = cheapest_ms * TIE_SHARE
    return share_ms if share_ms > TIE_MS else TIE_MS


def _at_home(
    choice: Choice, part: Part, home: Home, other: int, beliefs: dict[SiteName, Belief] | None,
    tried: Sequence[Refused], now_ns: int,
) -> int:
    """The index of the session's home while the request goes there, else `other`, where it would
    go without one."""
    costs, index = choice.costs, part.index_of.get(home.site, -1)
    other_ms = costs.item(other)
    belief = None if beliefs is None else beliefs.get(home.site)
    saved_ms = 0.0 if belief is None else belief.saved_ms
    choice.limit_ms = limit_ms(_tie_ms(other_ms), saved_ms, is_held=home.is_held(now_ns))
    home_ms = inf if index < 0 else costs.item(index)
    is_full = bool(tried) and index >= 0 and _is_full(home.site, tried)
    choice.verdict = judge(home, home_ms, other_ms, choice.limit_ms, now_ns, is_full=is_full)
    if choice.verdict != "kept":
        return other
    if index != other:
        choice.because, choice.pushed = "home", False
    return index


def _is_full(site: SiteName, tried: Sequence[Refused]) -> bool:
    """Whether all that keeps the request from the site is that its queue sent it back."""
    return {each.rule for each in tried if each.site == site} == {"saturated"}


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
            costs[place] = costs.item(place) - saved_ms
    return beliefs


def _without(
    part: Part, costs: Milliseconds, tried: Sequence[Refused], passed_over: Sequence[Refused],
    closed: Sequence[Refused],
) -> tuple[Refused, ...]:
    """Rule out the sites that were tried or are not asked, and the closed ones while another is
    left or one that is not was full; all refusals of open sites."""
    if not (tried or passed_over):
        shut, places = part.shut(closed) if closed else ((), None)
        if not shut or len(shut) == part.eligible:
            return part.refused
        costs[places] = np.inf
        return part.refused + shut
    refused = {each.site: each for each in part.refused}
    for each in passed_over:
        index = part.index_of.get(each.site)
        if index is not None:
            costs[index] = np.inf
            refused[each.site] = each
    for earlier in tried:
        index = part.index_of.get(earlier.site)
        if index is not None:
            costs[index] = np.inf
            detail = f"this request was there already: {earlier.rule} ({earlier.detail})"
            refused[earlier.site] = Refused(site=earlier.site, rule="tried_before", detail=detail)
    others = [each for each in closed if each.site in part.index_of and each.site not in refused]
    if others and (len(others) + len(refused) < len(costs) or _any_full(tried)):
        for each in others:
            costs[part.index_of[each.site]] = np.inf
            refused[each.site] = each
    return tuple(refused.values())


def _any_full(tried: Sequence[Refused]) -> bool:
    return "saturated" in {each.rule for each in tried}
