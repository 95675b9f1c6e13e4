"""What the first label of a host name says about where its requests may enter.

`de` means Germany, `eu` the bloc, `de-ch` both. The label is the rule, so a customer that is bound
in transit needs no account at the name server: whatever asks for `de.` gets ingresses in Germany.
"""

from isochrone.core.residency.blocs import Blocs
from isochrone.core.world.tenant import ANY


def transit_of_label(label: str, blocs: Blocs) -> tuple[str, ...] | None:
    """The transit axis that a label in lower case stands for; None when it stands for none.

    Every part between hyphens must be a country or a bloc, each once: a label that is understood in
    part is not understood.
    """
    terms = tuple(term.upper() for term in label.split("-"))
    if label != label.lower() or len(set(terms)) < len(terms) or ANY.upper() in terms:
        return None
    if any(not blocs.countries_of(term) for term in terms):
        return None
    return terms
