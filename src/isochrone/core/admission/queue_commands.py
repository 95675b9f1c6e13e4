"""What the queue of a site says: why a request is not taken, and what its driver has to do."""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.admission.fair_order import Ticket

RefusalReason = Literal[
    "queue_full", "would_expire", "expired", "class_closed", "no_capacity", "busy"
]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not served here now. `retry_after_ns`: when it would start, if those who
    wait and those who were told a time before are all served first; None when nobody knows."""

    reason: RefusalReason
    retry_after_ns: int | None


@dataclass(frozen=True, slots=True)
class Start:
    """A request that waited runs from now on: send it to an engine. `reclaimed_ns`: for how long
    its class had run fewer than its floor and had somebody waiting; 0 where it had not."""

    ticket: Ticket
    reclaimed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """A running request must give up its slot: stop it, then call `stopped`; or `unstoppable`,
    where that cannot be. It is resumable, or no byte of its answer has come yet. `for_rank`: the
    class whose floor lacks a slot."""

    ticket: Ticket
    for_rank: int


@dataclass(frozen=True, slots=True)
class TurnAway:
    """A request that waited is refused after all."""

    ticket: Ticket
    refused: Refused


Command = Start | Stop | TurnAway
