"""Tells of a request that gave its slot back: what is noted of it, and what its ingress is told.

A serving gateway says in its evidence how often it stopped a request. Of one that it refuses there
is none, so the refusal itself says it, in one header.
"""

from dataclasses import replace
from typing import Final

from isochrone.core.ids import ReplicaId, SiteName
from isochrone.core.routing.choice import Stopped
from isochrone.gateway.peer_hop import CLASSES
from isochrone.wire import peer

MOST_KEPT: Final = 32  # of one request; of more the last
_AGAIN: Final = "="    # it went on there
_MOST_DIGITS: Final = 12


def with_one_more(stops: tuple[Stopped, ...], stop: Stopped) -> tuple[Stopped, ...]:
    return (*stops[1 - MOST_KEPT :], stop)


def with_last(
    stops: tuple[Stopped, ...], after_ms: float, at: SiteName | None, refused: str | None
) -> tuple[Stopped, ...]:
    """What became of the last one."""
    return (*stops[:-1], replace(stops[-1], after_ms=after_ms, at=at, refused=refused))


def stopped_line(stops: tuple[Stopped, ...]) -> str:
    """The line of a refusal's head that says it to the ingress. A request whose answer had begun is
    not refused."""
    return f"{peer.STOPPED}: {','.join(map(_said, stops))}\r\n"


def parse_stops(value: bytes, site: SiteName) -> tuple[Stopped, ...]:
    """The inverse, of the header's value as `site` sent it; what cannot be read is left out."""
    parts = value.decode("latin-1").split(",")[:MOST_KEPT]
    found = [_parsed(part.split(" "), site) for part in parts]
    return tuple(each for each in found if each is not None)


def _said(stop: Stopped) -> str:
    became = _AGAIN if stop.at is not None else stop.refused or peer.NOTHING
    after = peer.NOTHING if stop.after_ms is None else str(round(stop.after_ms))
    return (
        f"{stop.for_class} {round(stop.since_ms)} {after} {became} {stop.replica or peer.NOTHING}"
    )


def _parsed(words: list[str], site: SiteName) -> Stopped | None:
    if len(words) != 5:
        return None
    for_class, (since, after, became, replica) = CLASSES.get(words[0]), words[1:]
    if for_class is None or not _is_count(since) or not (after == peer.NOTHING or _is_count(after)):
        return None
    return Stopped(
        site=site,
        replica=None if replica == peer.NOTHING else ReplicaId(replica),
        for_class=for_class,
        since_ms=float(since),
        output=None,
        after_ms=None if after == peer.NOTHING else float(after),
        at=site if became == _AGAIN else None,
        refused=None if became in (_AGAIN, peer.NOTHING) else became,
    )


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
