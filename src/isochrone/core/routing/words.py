"""What the verdicts of routing mean, in the words in which people are told."""

from collections.abc import Mapping, Sequence
from typing import Final

from isochrone.core.residency.rule import UNBOUND
from isochrone.core.routing.bond import HomeVerdict
from isochrone.core.routing.choice import Because, Rule, Stopped, UnpaidBecause

RULES: Final[Mapping[Rule, str]] = {
    "model_not_served": "the site has no deployment of the model",
    "residency": "the key's policy, or the request's own headers, do not allow it there",
    "transit": "the way there passes where the request may not",
    "attribute_missing": "the policy needs to know something that the site does not state",
    "no_ready_replica": "the site has a deployment, but nothing ready that takes the request",
    "digest_stale": "nothing was heard from the site for too long",
    "draining": "the site is being emptied",
    "not_joined": "the site has no identity yet",
    "unreachable": "this gateway lost its connection there and waits for a sign of life",
    "ejected": "requests of this gateway failed there too often, and it waits before the next",
    "saturated": "its queue refused this request, or would, as it takes none of its class; the "
    "fact says why, and until when",
    "tried_before": "this request was refused or lost there already",
}

BECAUSE: Final[Mapping[Because, str]] = {
    "home": "its session has been there, and it costs little enough",
    "explored": "one request in a hundred is sent to some site that is soon enough, to learn of it",
    "local": "it is the ingress itself, and soon enough",
    "nearest": "it is nearest without queues, and nobody else was cheaper by enough",
    "cheapest": "the nearest is late, and this is the cheapest of those that took more",
}

UNPAID: Final[Mapping[UnpaidBecause, str]] = {
    "nothing_sold": "nothing of the model was sold to the organisation, or to the project, as that",
    "residency": "what was sold does not count at the site that served the request",
    "spent": "too little was left of what was sold",
    "spent_at_cashier": "too little was left of what was sold where the request came in, and at "
    "the site that pays for others",
    "cashier_late": "too little was left of what was sold where the request came in, and the site "
    "that pays for others, which was asked, had not answered when the answer began or ended",
    "spent_there": "too little was left of what was sold where the request came in, and the site "
    "that served it did not pay for it either",
}

# {home} and {limit} stand for the home and for how much dearer it may be.
HOMES: Final[Mapping[HomeVerdict, str]] = {
    "none": "",
    "new": "it has no home yet, and is at home there from now on",
    "kept": "stays at its home, which may be {limit:.0f} ms dearer than another site",
    "moved": "leaves its home {home}, which was more than {limit:.0f} ms dearer, or too busy",
    "gone": "leaves its home {home}, which could not take the request",
    "overflow": "its home {home} was far dearer, or too busy, and it moved there a moment ago: "
    "this request alone goes elsewhere",
}


def words_of_bounds(
    residency: Sequence[str], transit: Sequence[str], caches: Sequence[str], logs: Sequence[str],
    narrowed: Sequence[str], narrowed_transit: Sequence[str],
) -> str:
    """What bound a request: the axes of its policy, and what its own headers narrowed. Without
    those that bind nothing; no `caches`: as residency."""
    said = [f"residency {', '.join(residency)}", f"transit {', '.join(transit)}"]
    if caches:
        said.append(f"caches {', '.join(caches)}")
    for name, axis in (
        ("logs", logs), ("narrowed by the request to", narrowed),
        ("its transit narrowed to", narrowed_transit),
    ):
        if tuple(axis) != UNBOUND:
            said.append(f"{name} {', '.join(axis)}")
    return "; ".join(said)


def words_of_stop(stop: Stopped) -> str:
    """Where a request gave way, when, for whom, and what became of it."""
    replica = "" if stop.replica is None else f", replica {stop.replica}"
    done = (
        "before the first byte of its answer" if stop.output is None
        else f"after {stop.output} tokens of output"
    )
    return (
        f"at {stop.site}{replica}, {stop.since_ms:.1f} ms after it came there, {done}, for a slot "
        f"that {stop.for_class} had to have; {_became(stop)}"
    )


def _became(stop: Stopped) -> str:
    if stop.after_ms is None:
        return "it ended while it waited for a slot again"
    later, how = f"{stop.after_ms:.1f} ms later", "began anew" if stop.output is None else "went on"
    if stop.refused is not None:
        where = (
            "its gateway had no other place for it" if stop.at is None
            else f"it was sent to {stop.at} instead"
        )
        return f"{later} its queue turned it away ({stop.refused}), and {where}"
    if stop.at is None:
        return f"{later} it had a slot again there, but no engine that was ready"
    return f"{later} it {how} {'there' if stop.at == stop.site else f'at {stop.at}'}"
