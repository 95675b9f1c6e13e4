"""Whether an ingress answers: what a name server makes of its own probes of the gateways."""

from collections.abc import Mapping
from dataclasses import dataclass

from isochrone.core.ids import SiteName

# So many in a row turn it round: one lost packet must not move a site's clients, and one answer of
# a gateway that is starting must not bring them back.
FAILURES = 3
SUCCESSES = 2

# From so many sites on, none of which answers, it is more likely that our own network is gone.
BLIND_FROM_SITES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What is known of one ingress. `streak` counts the last probes that said the same. Before the
    first probe a site counts as answering; the first one decides alone."""

    answers: bool = True
    said: bool = True
    streak: int = 0

    def probed(self, answered: bool) -> "Reach":
        """What is known after one more probe."""
        if self.streak == 0:
            return Reach(answers=answered, said=answered, streak=1)
        streak = self.streak + 1 if answered == self.said else 1
        enough = SUCCESSES if answered else FAILURES
        answers = answered if streak >= enough else self.answers
        return Reach(answers=answers, said=answered, streak=streak)


def unreachable(reaches: Mapping[SiteName, Reach]) -> frozenset[SiteName]:
    """The sites to leave out: those that do not answer, unless it seems to be us who are cut off.

    Then probes tell nothing: nobody is left out for them.
    """
    silent = frozenset(site for site, reach in reaches.items() if not reach.answers)
    if len(silent) == len(reaches) >= BLIND_FROM_SITES:
        return frozenset()
    return silent
