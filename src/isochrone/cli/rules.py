"""What each rule that refuses a site means, in the words of `isochrone explain`."""

from collections.abc import Iterable, Mapping

from isochrone.core.routing.words import RULES


def meanings(refused: Iterable[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Each rule that was applied, once, with its meaning; one of a newer gateway has none here."""
    known: Mapping[str, str] = {str(rule): meaning for rule, meaning in RULES.items()}
    rules = sorted({each["rule"] for each in refused})
    elsewhere = "see docs/explain.md of the gateway's release"
    return [(rule, known.get(rule, elsewhere)) for rule in rules]
