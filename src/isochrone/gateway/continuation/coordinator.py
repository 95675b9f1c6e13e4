"""Carries one lost stream over to another replica: the plan, the new request, the seam, the bill.

Made when a stream is lost, never before. The exchange asks `plan` at each loss, and for a plan that
needs another attempt `ask` for the body to send; `seam` then takes the place of the meter.
"""

from dataclasses import dataclass

from isochrone.core.continuation.kin import Kin
from isochrone.core.continuation.plan import (
    ContinueIds,
    ContinueText,
    FinishLocally,
    Lost,
    Plan,
    Replay,
    Retry,
    State,
    decide,
)
from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.gateway.continuation.body import continuing_body
from isochrone.gateway.continuation.closing import Whole, closing
from isochrone.gateway.continuation.events import TEXT, Channel
from isochrone.gateway.continuation.features import features_of
from isochrone.gateway.continuation.retained import Delivered, Retained
from isochrone.gateway.continuation.seam import Seam, SeamStart

_SAID: dict[str, str] = {
    "client_gone": "its client is gone",
    "deadline": "the time for the request is over",
    "attempts": "it was lost too often",
    "endpoint": "answers of this endpoint are not continued",
    "not_retained": "too much was delivered to be kept",
    "unreadable": "what was delivered cannot be read",
    "unknown_revision": "the revision of the model is not known",
    "replay_too_long": "it depends on more than its text and is too long to be run again",
    "replay_differs": "another replica said something else",
    "no_replica": "no other allowed replica of the same revision takes it",
}


def message_of(lost: Lost) -> str:
    """Why a stream is not continued, for the client's error event."""
    return f"The engine was lost during the answer, and {_SAID[lost.why]}."


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """The request of the stream as its first attempt sent it (seed included), for any attempt."""

    endpoint: Endpoint
    body: bytes
    n_choices: int
    client_gets_usage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How a stream was lost. `kin` is that of the lost replica, None when nobody told; `metered`
    are the counts of the attempt's meter, or seam; `usual_gap_ms` the mean time between tokens.
    `stopped`: it was not lost, but shall give its slot back, and is not worth a replay."""

    kin: Kin | None
    metered: Tokens
    usual_gap_ms: float
    client_gone: bool = False
    deadline_passed: bool = False
    stopped: bool = False


class Continuation:
    """One exchange's. `kin` is what the next replica must be; None where any will do. `stops`: how
    many of its `continuations` followed no loss."""

    def __init__(self, request: StreamRequest, retained: Retained) -> None:
        self._request = request
        self._retained = retained
        self._features = features_of(request.endpoint, request.body)
        self._delivered: Delivered | None = None
        self._whole = Whole(output=0, prompt=None)
        self._metered = Tokens()
        self._plan: Plan | None = None
        self.continuations = 0
        self.stops = 0
        self.kin: Kin | None = None
        self.seam: Seam | None = None

    def plan(self, loss: Loss) -> Plan:
        """What to do about a loss, this one and any later one."""
        differed = self.seam is not None and self.seam.outcome == "differs"
        delivered = self._retained.delivered()
        if delivered is not None and delivered.failed:
            delivered = None
        self._delivered, self._metered = delivered, loss.metered
        self.kin = loss.kin or self.kin
        progress = None if delivered is None else delivered.progress(self._request.n_choices)
        self._plan = decide(State(
            endpoint=self._request.endpoint,
            lost=self.kin or Kin(engine="unknown", revision=None),
            features=self._features,
            progress=progress,
            unkept=self._retained.unkept or "unreadable",
            usual_gap_ms=loss.usual_gap_ms,
            continuations=self.continuations - self.stops,
            replay_differed=loss.stopped or (differed and isinstance(self._plan, Replay)),
            rewind_differed=differed and isinstance(self._plan, ContinueText),
            client_gone=loss.client_gone,
            deadline_passed=loss.deadline_passed,
        ))
        self._count(loss.metered)
        return self._plan

    def _count(self, metered: Tokens) -> None:
        """The prompt is what the first attempt that counted says of it; later ones are our cost."""
        known = metered.source in ("engine", "running")
        prompt, cached = self._whole.prompt, self._whole.cached
        if prompt is None and known:
            prompt, cached = metered.input_uncached + metered.input_cached, metered.input_cached
        output, delivered = metered.output, self._delivered
        if delivered is not None and self._request.n_choices > 1:
            output = max(output, sum(delivered.outputs.values()))
        elif delivered is not None and delivered.tokens is not None:
            output = delivered.tokens
        self._whole = Whole(output=output, prompt=prompt, cached=cached)

    def ask(self, plan: Retry | ContinueIds | ContinueText | Replay) -> bytes:
        """The body of the next attempt, whose answer goes through the new `seam`."""
        request, delivered = self._request, self._delivered
        assert delivered is not None, "what cannot be read is never continued"
        self.continuations += 1
        output = self._whole.output
        swallow: dict[Channel, str] = {}
        body = request.body
        if isinstance(plan, Replay):
            swallow = {channel: delivered.text(channel) for channel in delivered.channels}
        elif isinstance(plan, ContinueIds | ContinueText):
            text, tokens = delivered.text(), plan.tokens
            if isinstance(plan, ContinueText) and plan.rewind:
                again = delivered.last_piece
                swallow = {(0, TEXT): again}
                text, tokens = text[: len(text) - len(again)], tokens - delivered.last_jump
                self._whole = Whole(
                    output=tokens, prompt=self._whole.prompt, cached=self._whole.cached
                )
            body = continuing_body(
                request.body, tokens, endpoint=request.endpoint, text=text,
                ids=self._ids(delivered) if isinstance(plan, ContinueIds) else None,
                nth=self.continuations,
            )
        if isinstance(plan, Retry):
            output, self._whole = 0, Whole(output=0, prompt=None)
        self.seam = Seam(SeamStart(
            delivered=delivered,
            n_choices=request.n_choices,
            client_gets_usage=request.client_gets_usage,
            whole=self._whole,
            repeats=isinstance(plan, Replay | Retry),
            swallow=swallow,
            output=output,
            stops=self._features.stops,
        ))
        return body

    def _ids(self, delivered: Delivered) -> tuple[int, ...]:
        return (*delivered.prompt_ids, *delivered.ids)

    def closing(self, plan: FinishLocally) -> bytes:
        """The events that end the answer where it is complete."""
        assert self._delivered is not None, "what cannot be read is never finished"
        return closing(
            self._delivered, reason=plan.reason, tokens=self.tokens(),
            client_gets_usage=self._request.client_gets_usage,
        )

    def tokens(self) -> Tokens:
        """Counts of the run at the loss, for a stream that ends with it: what was delivered."""
        metered = self._metered
        if self._whole.prompt is None:
            return metered
        return Tokens(
            input_uncached=self._whole.prompt - self._whole.cached,
            input_cached=self._whole.cached,
            output=max(self._whole.output, metered.output),
            source=metered.source,
        )
