"""What gateways tell one another about entitlements: the messages of `core/admission`, encoded.

One payload carries all messages of one sender for one site, so that a site with many entitlements
sends few. Its sender is proven by whoever carried it. Nothing in it comes from a request.
"""

from collections.abc import Sequence

import msgspec

from isochrone.core.admission.commitments import Message
from isochrone.core.admission.loans import Ask, Loan
from isochrone.core.admission.stewards import HandBack, Stand, StandDown, Vote
from isochrone.core.errors import Untrusted

MOST_MESSAGES = 100_000

_KINDS: dict[str, type[Message]] = {
    "stand": Stand, "vote": Vote, "stand_down": StandDown, "hand_back": HandBack, "ask": Ask,
    "loan": Loan,
}
_NAMES: dict[type[Message], str] = {kind: name for name, kind in _KINDS.items()}


def encode_messages(messages: Sequence[Message]) -> bytes:
    """As MessagePack: a list of [kind, message]."""
    return msgspec.msgpack.encode([(_NAMES[type(each)], each) for each in messages])


def decode_messages(body: bytes) -> list[Message]:
    """The inverse. Kinds that a newer sender knows are skipped. Raises Untrusted."""
    try:
        pairs = msgspec.msgpack.decode(body, type=list[tuple[str, msgspec.Raw]])
        if len(pairs) > MOST_MESSAGES:
            raise Untrusted(f"{len(pairs)} messages at once; at most {MOST_MESSAGES}")
        found: list[Message] = []
        for name, raw in pairs:
            kind = _KINDS.get(name)
            if kind is not None:
                found.append(msgspec.msgpack.decode(raw, type=kind))
    except msgspec.MsgspecError as error:
        raise Untrusted(f"not messages about entitlements: {error}") from error
    return found
