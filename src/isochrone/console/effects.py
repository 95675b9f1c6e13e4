"""What an action of an operator will lead to, by what is known of the fleet now."""

from collections.abc import Sequence

from isochrone.console.estate import Deployment, Fleet, Replica, Site
from isochrone.console.parts.confirm import Effect


def left_for(fleet: Fleet, model: str, *, without: str) -> list[str]:
    """Other sites that take requests for the model now."""
    return [
        site.name for site in fleet.sites
        if site.name != without and site.joined and not site.draining
        and any(load.model == model and load.ready > 0 for load in site.loads)
    ]


def of_draining(fleet: Fleet, site: Site) -> list[Effect]:
    """What draining a site leads to."""
    busy, waiting = _open(site)
    return [
        Effect(text=f"{site.name} takes no new requests from any gateway. The {busy} that run there"
               f" and the {waiting} that wait go on to their end; its replicas keep running."),
        *_without_site(fleet, site),
        Effect(text="Clients may still enter there: its gateway sends their requests on. DNS names"
               " it no more."),
    ]


def of_stopping(fleet: Fleet, site: Site, *, at_once: bool) -> list[Effect]:
    """What stopping all replicas of a site leads to."""
    busy, waiting = _open(site)
    count = sum(each.replicas for each in fleet.wishes(site.name))
    how = (
        f"Replicas of {site.name}, {count} of them, are killed now, as if the site was lost. What"
        f" runs there ({busy} now) goes on at another site that may take it over; its clients see"
        " one answer."
        if at_once else
        f"Replicas of {site.name}, {count} of them, take nothing new, have 20 s to finish what runs"
        f" ({busy} now), and stop. Other sites take over what waits ({waiting} now)."
    )
    return [
        Effect(text=how, hurts=at_once and busy > 0),
        *_without_site(fleet, site),
        Effect(text="What they keep of prompts is forgotten."),
        Effect(text="Its gateway goes on: what enters there is served elsewhere. Nothing starts"
               " again until somebody starts the site."),
    ]


def of_starting(fleet: Fleet, site: Site) -> list[Effect]:
    """What starting a stopped site leads to."""
    return [
        Effect(text=f"The agent of {each.site} starts {each.stopped_replicas} of {each.model}. They"
               " take requests once their weights are loaded.")
        for each in fleet.wishes(site.name) if each.stopped_replicas
    ]


def of_restarting(fleet: Fleet, site: Site, replica: Replica) -> list[Effect]:
    """What restarting one replica leads to."""
    said = [
        Effect(text=f"{replica.id} takes no new requests, has 20 s to finish what it works on"
               f" ({replica.running} now), and is started again. What takes longer goes on at"
               " another replica that may take it over."),
        Effect(text="The prompts that it keeps are forgotten; sessions that were at home there"
               " begin anew."),
    ]
    load = fleet.load(site.name, replica.model)
    others = 0 if load is None else load.ready - (replica.state == "ready")
    if others > 0:
        return [*said, Effect(text=f"{others} more of {replica.model} go on at {site.name}.")]
    return [*said, _without(fleet, replica.model, site.name)]


def of_resizing(fleet: Fleet, wish: Deployment, replicas: int) -> list[Effect]:
    """What another number of replicas leads to."""
    change = replicas - wish.replicas
    if change == 0:
        return [Effect(text="Nothing changes: so many are wanted now.")]
    if change > 0:
        return [Effect(text=f"The agent of {wish.site} starts {change} more of {wish.model} as soon"
                       " as it hears of it. They take requests once their weights are loaded.")]
    said = [Effect(text=f"The agent of {wish.site} stops {-change} of {wish.model}, which first end"
                   " the requests that they work on.")]
    return said if replicas else [*said, _without(fleet, wish.model, wish.site)]


def _open(site: Site) -> tuple[int, int]:
    """Requests that run and that wait there."""
    return sum(load.running for load in site.loads), sum(load.waiting for load in site.loads)


def _without_site(fleet: Fleet, site: Site) -> list[Effect]:
    return [_without(fleet, load.model, site.name) for load in site.loads if load.ready]


def _without(fleet: Fleet, model: str, site: str) -> Effect:
    """What remains of a model when a site serves it no more."""
    others = left_for(fleet, model, without=site)
    if others:
        return Effect(text=f"{model} goes on at {_named(others)}, where a policy allows it.")
    return Effect(
        text=f"{model} is ready nowhere else: every request for it will be refused.", hurts=True
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
