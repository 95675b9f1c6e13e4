"""What a scenario loses while it is played, said of its own fleet."""

from collections.abc import Sequence

from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.plan import Outage
from isochrone.twin.scenario import OutagePlan


def outages_of(
    plans: Sequence[OutagePlan], fleet: Fleet, from_s: float, until_s: float
) -> tuple[Outage, ...]:
    """What is counted lies between the two instants."""
    found: list[Outage] = []
    for plan in plans:
        begin_s = from_s + plan.begin * (until_s - from_s)
        end_s = from_s + plan.end * (until_s - from_s)
        if plan.what == "cable":
            found += _cut(plan.here, fleet, begin_s, end_s)
        else:
            found += [
                Outage(what="site", number=number, from_s=begin_s, until_s=end_s)
                for number in _lost(plan, fleet)
            ]
    return tuple(found)


def never_lost(plans: Sequence[OutagePlan], fleet: Fleet) -> list[str]:
    """What is wrong with those by which the fleet loses nothing."""
    return [
        f"outage {number}: {_why_nothing(plan, fleet)}"
        for number, plan in enumerate(plans, start=1) if not outages_of([plan], fleet, 0.0, 1.0)
    ]


def _why_nothing(plan: OutagePlan, fleet: Fleet) -> str:
    if plan.what == "site":
        return f"rank is {plan.rank}, and engines are at {len(fleet.sites)} sites"
    here = ", ".join(plan.here)
    if plan.what == "country":
        return f"there are no engines in {here}"
    return f"no way to engines crosses a border of {here}"


def _lost(plan: OutagePlan, fleet: Fleet) -> list[int]:
    if plan.what == "country":
        return [
            number for number, site in enumerate(fleet.sites) if site.country in plan.here
        ]
    counts = [sum(len(each) for each in models) for models in fleet.at]
    ranked = sorted(range(len(counts)), key=lambda number: (-counts[number], number))
    return ranked[plan.rank - 1 : plan.rank]


def _cut(here: Sequence[str], fleet: Fleet, begin_s: float, end_s: float) -> list[Outage]:
    """Every way that crosses the border of these countries."""
    return [
        Outage(what="link", number=number, ingress=ingress, from_s=begin_s, until_s=end_s)
        for ingress, at in enumerate(fleet.ingresses)
        for number, site in enumerate(fleet.sites)
        if (at.country in here) != (site.country in here)
    ]
