"""What the terms of a usage event mean, in the words in which people are told."""

from collections.abc import Mapping
from typing import Final

from isochrone.core.metering.event import Outcome, Reporter, TokenSource

SOURCES: Final[Mapping[TokenSource, str]] = {
    "engine": "counted by the engine, in its final usage",
    "running": "the engine's last running count; no final usage came from it",
    "counted": "counted by the gateway from the stream; the engine gave no count",
    "none": "nothing was processed",
}

REPORTERS: Final[Mapping[Reporter, str]] = {
    "ingress": "reported by the ingress, which saw the end",
    "evidence": "reported by the serving gateway; the ingress never reported",
    "recovered": "found open in the journal of the ingress after it had died",
}

OUTCOMES: Final[Mapping[Outcome, str]] = {
    "finished": "the whole answer went to the client",
    "client_gone": "the client closed first",
    "engine_lost": "the engine or its site ended the stream without an end",
    "timed_out": "a deadline of the gateway passed",
    "engine_error": "the engine answered with an error, which was passed on",
    "refused": "no site was tried, or every one refused; nothing was processed",
    "ingress_lost": "the ingress died; said by evidence or by its recovered journal",
}
