"""Reads what the headers of a request narrow: never more than its policy allows, only less.

`x-isochrone-residency` narrows where it may be processed and cached, `x-isochrone-transit` where it
may enter and pass. A header that is not understood refuses the request.
"""

from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.residency.terms import Axis, check_wish, parse_axis
from isochrone.gateway.replies import Refusal
from isochrone.wire import peer

MOST_KEPT = 1024
MOST_BYTES = 1024  # of one header
MOST_TERMS = 64

_RESIDENCY, _TRANSIT = peer.RESIDENCY.encode(), peer.TRANSIT.encode()


class Narrowings:
    """What headers mean, remembered by their bytes. Owned by one event loop."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Narrowing | Refusal | None] = {}

    def of(self, headers: dict[bytes, bytes], blocs: Blocs) -> Narrowing | Refusal | None:
        """What the headers of a client's request ask for; None where they say nothing about it."""
        if _RESIDENCY not in headers and _TRANSIT not in headers:
            return None
        asked = (headers.get(_RESIDENCY, b"any"), headers.get(_TRANSIT, b"any"))
        if asked not in self._known:
            if len(asked[0]) > MOST_BYTES or len(asked[1]) > MOST_BYTES:
                return _read(*asked, blocs)  # refused, and too large to be remembered
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[asked] = _read(*asked, blocs)
        return self._known[asked]

    def of_hop(self, text: str, blocs: Blocs) -> Narrowing | Refusal | None:
        """The same of a peer's request, in which `text` is proved; empty where nothing travels."""
        if not text:
            return None
        return self.of({_RESIDENCY: text.encode("latin-1", "replace")}, blocs)


def _read(residency: bytes, transit: bytes, blocs: Blocs) -> Narrowing | Refusal | None:
    axes: list[Axis] = []
    for name, value in ((peer.RESIDENCY, residency), (peer.TRANSIT, transit)):
        try:
            axis = parse_axis(value.decode("ascii"))
        except UnicodeDecodeError:
            return _refusal(name, "it has characters beyond ASCII")
        if len(value) > MOST_BYTES or len(axis) > MOST_TERMS:
            return _refusal(name, f"more than {MOST_TERMS} terms, or {MOST_BYTES} bytes")
        problems = check_wish(axis, blocs, links=name == peer.TRANSIT)
        if problems:
            return _refusal(name, "; ".join(problems))
        axes.append(tuple(sorted(axis)))
    narrowing = Narrowing(residency=axes[0], transit=axes[1])
    return None if narrowing == Narrowing() else narrowing


def _refusal(name: str, why: str) -> Refusal:
    return Refusal(
        status=400, reason="residency_header", param=name,
        message=f"The header '{name}' is not understood, so nothing is allowed: {why}.",
    )
