"""Entitlements: what may be sold, how it is divided into slices, and which one a request uses."""

from collections.abc import Iterable, Mapping, Sequence

from isochrone.core.admission.allowance import Allowance
from isochrone.core.ids import ModelName, OrgId, ProjectId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import Admitted, admits, check_axis
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Class

MOST_TOK_S = 1_000_000_000
LONGEST_NS = 10 * 366 * 86_400 * 1_000_000_000
MOST_VOTERS = 5
# Voters may be changed again after this: by then most of those before know of the last change.
VOTERS_SETTLE_NS = 600 * 1_000_000_000
OUTPUT_WEIGHT = 2  # an output token counts for so many of a prompt


def check_entitlement(entitlement: Entitlement, blocs: Blocs, *, now: int) -> list[str]:
    """Every problem of an entitlement that somebody wants to sell; slices are not looked at."""
    problems = [
        f"residency: {fault}" for fault in check_axis(entitlement.residency, blocs)
    ]
    if not 1 <= entitlement.tok_s <= MOST_TOK_S:
        problems.append(f"tok_s: {entitlement.tok_s}; expected 1 to {MOST_TOK_S} tokens/s")
    if entitlement.class_ == "batch":
        problems.append("class: batch has no entitlement, it takes what is left")
    if entitlement.ends_at <= max(entitlement.starts_at, now):
        problems.append("ends_at: it is before the start, or has passed")
    elif entitlement.ends_at - entitlement.starts_at > LONGEST_NS:
        problems.append("ends_at: the window is longer than ten years")
    return problems


def allowed_sites(
    residency: tuple[str, ...], sites: Iterable[Site], blocs: Blocs
) -> list[SiteName]:
    """The sites that the axis admits, by name."""
    return sorted(
        site.name for site in sites if isinstance(admits(residency, site, blocs), Admitted)
    )


def divide_sold(tok_s: int, weights: Mapping[SiteName, int]) -> tuple[Slice, ...]:
    """Slices in proportion to the weights (> 0), whole tokens/s that add up to `tok_s`; what
    rounding leaves goes to the largest fractions, equals by name. No slice is empty."""
    whole = sum(weights.values())
    names = sorted(weights)
    parts = {name: tok_s * weights[name] // whole for name in names}
    rest = tok_s - sum(parts.values())
    by_fraction = sorted(names, key=lambda name: (-(tok_s * weights[name] % whole), name))
    for name in by_fraction[:rest]:
        parts[name] += 1
    return tuple(Slice(site=name, tok_s=parts[name]) for name in names if parts[name])


def choose_voters(sites: Sequence[SiteName]) -> tuple[SiteName, ...]:
    """An odd number of them, at most five: the first ones. With two sites one decides."""
    most = min(len(sites), MOST_VOTERS)
    return tuple(sites[: most if most % 2 else most - 1])


def first_voters(sites: Iterable[Site]) -> tuple[SiteName, ...]:
    """Those of the first sale: the sites that have joined, by name, and of the others only as many
    as leave most of the voters able to vote. Where none has joined, nobody knows who will."""
    ranked = sorted(sites, key=lambda each: (each.peer_key is None, each.name))
    joined = sum(each.peer_key is not None for each in ranked)
    most = 2 * joined - 1 if joined else len(ranked)
    return choose_voters([each.name for each in ranked[:most]])


def check_voters(sites: Sequence[SiteName], known: Iterable[Site]) -> list[str]:
    """Every problem of voters that somebody wants to have."""
    joined = {site.name: site.peer_key is not None for site in known}
    problems = []
    if len(sites) % 2 == 0 or len(sites) > MOST_VOTERS:
        problems.append(f"sites: {len(sites)} of them; expected 1, 3 or {MOST_VOTERS}")
    if len(set(sites)) < len(sites):
        problems.append("sites: one is named twice")
    for name in sites:
        if name not in joined:
            problems.append(f"sites: there is no site {name!r}")
        elif not joined[name]:
            problems.append(f"sites: {name!r} has not joined, so it could not vote")
    return problems


def changed_voters(
    before: Voters, sites: tuple[SiteName, ...], *, changed_at: int, now: int
) -> Voters | int:
    """The voters after a change to these sites; or the wall instant from which it may be made.

    The same sites again end the last change: those of before it are asked no more.
    """
    again = sites == before.sites
    if again and before.former in ((), sites):
        return before
    settled_at = changed_at + VOTERS_SETTLE_NS if before.epoch else 0
    if now < settled_at:
        return before if again else settled_at
    return Voters(sites=sites, former=before.sites, epoch=before.epoch + 1)


def is_open(entitlement: Entitlement, now: int) -> bool:
    """Whether the wall instant is within its window."""
    return entitlement.starts_at <= now < entitlement.ends_at


def entitlements_for(
    entitlements: Iterable[Entitlement],
    *,
    org_id: OrgId,
    project_id: ProjectId,
    model: ModelName,
    class_: Class,
    now: int,
) -> list[Entitlement]:
    """Those that a request may use, in the order in which it should: what is for its project
    alone before what all projects share, what ends sooner before what ends later."""
    found = [
        each for each in entitlements
        if each.org_id == org_id
        and each.model == model
        and each.class_ == class_
        and each.project_id in (None, project_id)
        and is_open(each, now)
    ]
    return sorted(found, key=lambda each: (each.project_id is None, each.ends_at, each.id))


def in_force(
    parts: Iterable[tuple[Entitlement, Allowance]], now_ns: int
) -> dict[ModelName, int]:
    """What a site may honour now of the class `reserved`, in weighted tokens/s by model: of each
    entitlement the slices that it looks after, less what it lends, and what it has borrowed. Over
    all sites that is never more than was sold."""
    tok_s: dict[ModelName, int] = {}
    for entitlement, allowance in parts:
        part = allowance.rate_tok_s(now_ns) if entitlement.class_ == "reserved" else 0
        if part:
            tok_s[entitlement.model] = tok_s.get(entitlement.model, 0) + part
    return tok_s
