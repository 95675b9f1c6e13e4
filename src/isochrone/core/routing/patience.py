"""How long a request may wait at the site it is sent to, before going on to the next is better.

The ingress chooses by digests that are up to a second old, and a thousand others do the same. The
site knows its queue exactly when the request arrives. So the ingress says on the hop what the next
best site would cost, and a site where it would wait for longer sends it back at once: that costs a
round trip, where the queue would have cost more. See docs/spill.md.
"""

from math import inf
from typing import Final

from isochrone.core.routing.chosen import Choice
from isochrone.core.world.tenant import Class

MARGIN_MS: Final = 60.0  # what a bounce costs both gateways, and the way back and on
MARGIN: Final = 1.1      # the next best is believed, this one is known
LAST_MARGIN: Final = 1.5  # who is sent back once more is kept wherever he comes, however late
MOST_MS: Final = 1e6     # what a hop says at most; longer is as good as no bound


def patience_ms(choice: Choice, class_: Class, tries: int) -> float:
    """The longest wait at the chosen site with which the request is still answered sooner there
    than at the next best, which it would reach from its ingress; infinite where there is no other,
    and for batch, which minds no wait. `tries`: which one this is, from 1; the last one has no
    bound, so the one before it is worth more than what is believed of the last. At the home of its
    session it waits for as much longer as that home may be dearer."""
    if class_ == "batch" or choice.eligible < 2:
        return inf
    other = choice.runner_up()
    spared_ms = choice.costs.item(other) - choice.prefill_ms
    if choice.verdict == "kept":  # a home may be dearer, by what leaving it throws away
        spared_ms += choice.limit_ms
    margin = MARGIN if tries < 2 else LAST_MARGIN
    most_ms = (spared_ms if spared_ms > 0.0 else 0.0) * margin + MARGIN_MS
    return most_ms if most_ms < MOST_MS else inf
