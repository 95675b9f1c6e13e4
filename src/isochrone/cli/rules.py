"""What each rule that refuses a site means, in the words of `isochrone explain`."""

from collections.abc import Iterable, Mapping
from typing import Final

from isochrone.core.routing.choice import Rule

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
    "saturated": "its queue refused this request; the fact says why, and until when",
    "tried_before": "this request was refused or lost there already",
}


def meanings(refused: Iterable[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Each rule that was applied, once, with its meaning; one of a newer gateway has none here."""
    known: Mapping[str, str] = {str(rule): meaning for rule, meaning in RULES.items()}
    rules = sorted({each["rule"] for each in refused})
    elsewhere = "see docs/explain.md of the gateway's release"
    return [(rule, known.get(rule, elsewhere)) for rule in rules]
