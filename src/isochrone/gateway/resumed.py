"""A try to go on with a stream that was lost: its answer passes through the seam."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from isochrone.gateway.attempt import Attempt
from isochrone.gateway.continuation.seam import Seam
from isochrone.gateway.target import Target

if TYPE_CHECKING:
    from isochrone.gateway.tries import Tries


class Resumed(Attempt):
    """The client has the head and a part of the answer, so only a stream will do, and where it
    matters only one of the lost replica's kin."""

    def __init__(self, exchange: "Tries", target: Target, seam: Seam) -> None:
        super().__init__(exchange, target)
        self.meter = self._seam = seam
        self.began = False
        self.gave = False  # anything for the client

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self._is_stream = False
        super().answered(status, headers)
        if self._over:
            return
        wanted, kin = self._exchange.wanted, self.kin
        fits = wanted is None or (kin is not None and kin.may_follow(wanted))
        if not (fits and self._is_stream):
            self._give_up("it cannot continue the stream", unreachable=False)

    def _begin_stream(self) -> None:
        self._is_stream = True

    def received(self, data: bytes) -> None:
        seam, exchange = self._seam, self._exchange
        out = self._of_stream(seam.feed(data))
        if not self.began and seam.outcome != "error":
            self.began = True
            exchange.began_again()
        if seam.gave and not self.gave:
            self.gave = True
            exchange.went_on(self)
        if out:
            exchange.stream(self, out)
        if seam.over:
            self._stop()
            exchange.stream_ended(self)
