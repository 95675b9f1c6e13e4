"""The word of a peer that leaves a stream to its ingress, however the network cuts it."""

from typing import Any

import pytest

from isochrone.core.ids import SiteName
from isochrone.gateway.attempt import Attempt
from isochrone.gateway.meter import StreamMeter
from isochrone.gateway.target import Target
from isochrone.ports.network import Address
from isochrone.wire.peer import TURNED_AWAY

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


class Exchange:
    """Keeps what goes on to the client."""

    def __init__(self) -> None:
        self.passed = b""

    def stream(self, attempt: Attempt, data: bytes) -> None:
        self.passed += data


@pytest.mark.parametrize("cut", range(len(TURNED_AWAY) + 1))
def test_it_is_heard_and_goes_no_further(cut: int) -> None:
    exchange: Any = Exchange()
    target = Target(
        Address(host="far", port=1), SiteName("far"), "DE", host="far:1", peer_key=b"k" * 32
    )
    attempt = Attempt(exchange, target)
    attempt.meter = StreamMeter(1, "chat.completions", True)
    attempt.received(EVENT + EVENT)
    for piece in (EVENT + TURNED_AWAY[:cut], TURNED_AWAY[cut:]):
        if piece:
            attempt.received(piece)
    assert attempt.turned_away
    assert exchange.passed == 3 * EVENT
