"""Meters streams of OpenAI's Responses and Anthropic's Messages API, whose events have names.

They always state usage, so nothing is asked of the engine and nothing withheld from the client.
Such a stream is over with its terminal event; one that ends without it has lost its engine. What is
parsed of an event is its type, whether it carries text, and its counts.
"""

from typing import ClassVar

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.metering.tokens import Reported, settle, settle_begun
from isochrone.gateway.event_tee import EventTee, payload_of
from isochrone.gateway.message_counts import (
    NamedEvent,
    Usage,
    later,
    of_message,
    of_response,
    read_named,
)
from isochrone.gateway.meter import StreamMeter

_TERMINAL = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled",
     "message_stop")
)


class MessageMeter(EventTee):
    """One stream of `responses` or `messages`, with the same face as a StreamMeter."""

    __slots__ = (
        "_counted", "_ending", "_endpoint", "_error", "_final", "_finished", "_running", "_usage"
    )

    # The last event of a response repeats the whole answer, and carries its usage.
    most_event_bytes: ClassVar[int] = 4 * 1024 * 1024

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._counted = 0
        self._usage: Usage | None = None       # of a message, as far as it was stated
        self._ending = False                   # a message stated what it made in the end
        self._running: Reported | None = None
        self._final: Reported | None = None
        self._finished = False
        self._error = False

    @property
    def finished(self) -> bool:
        """The terminal event came."""
        return self._finished

    @property
    def done(self) -> bool:
        """The same: nothing follows the terminal event."""
        return self._finished

    @property
    def error(self) -> bool:
        """The engine sent an error event, or said that the response failed."""
        return self._error

    def tokens(self, prompt_bytes: int) -> Tokens:
        """Counts up to now; may be asked at any time, for progress as well as at the end."""
        counted, running = self._counted, self._running
        if self._final is not None and self._final.plausible:
            return settle(self._final, None, counted=counted, prompt_bytes=prompt_bytes)
        if self._usage is not None:
            running = of_message(self._usage)
        return settle_begun(running, counted=counted, prompt_bytes=prompt_bytes)

    def _pass_by(self, head: bytes) -> None:
        name = head.partition(b"\n")[0].removeprefix(b"event:").strip()
        self._counted += name.endswith(b"delta")
        self._finished = self._finished or name.decode("latin-1") in _TERMINAL

    def _account(self, event: bytes) -> bool:
        found = payload_of(event)
        if found is None:
            return True
        payload, named_error = found
        self._error = self._error or named_error
        said = read_named(payload)
        if said is None:
            self._counted += b'"delta"' in payload
        elif self._endpoint == "responses":
            self._take_response(said)
        else:
            self._take_message(said)
        return True

    def _take_response(self, event: NamedEvent) -> None:
        self._counted += event.speaks("responses")
        self._error = self._error or event.is_error
        running = event.running()
        if running is not None and running.plausible:
            self._running = running
        if event.type in _TERMINAL:
            self._finished = True
            usage = None if event.response is None else event.response.usage
            if usage is not None and usage.is_whole:
                self._final = of_response(usage)

    def _take_message(self, event: NamedEvent) -> None:
        self._counted += event.speaks("messages")
        self._error = self._error or event.is_error
        if event.type == "message_start":
            self._usage = event.message_usage()
        elif event.type == "message_delta" and event.usage is not None:
            self._usage = later(self._usage, event.usage)
            self._ending = event.usage.output_tokens is not None
        elif event.type in _TERMINAL:
            self._finished = True
            if self._usage is not None and self._usage.is_whole and self._ending:
                self._final = of_message(self._usage)


def meter_for(
    endpoint: Endpoint, choices: int, client_gets_usage: bool, *, prompts: int = 1
) -> StreamMeter | MessageMeter:
    """The meter of one stream of this endpoint."""
    if endpoint in ("responses", "messages"):
        return MessageMeter(endpoint)
    return StreamMeter(choices, endpoint, client_gets_usage, prompts=prompts)
