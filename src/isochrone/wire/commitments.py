"""What gateways tell one another about entitlements and limits: the messages of `core/admission`
and `core/limits`, encoded.

One payload carries all messages of one sender for one site, so that a site with many entitlements
sends few. Its sender is proven by whoever carried it. Nothing in it comes from a request.
"""

from collections.abc import Sequence

import msgspec

from isochrone.core.admission.cashier import Back, Paid, Pay
from isochrone.core.admission.commitments import Message
from isochrone.core.admission.loans import Ask, Loan
from isochrone.core.admission.stewards import HandBack, Stand, StandDown, Vote
from isochrone.core.errors import Untrusted
from isochrone.core.limits.messages import (
    AskGrant,
    Behind,
    Copied,
    Copy,
    Follow,
    Grant,
    Lead,
    Led,
)
from isochrone.core.limits.messages import Message as LimitMessage

MOST_MESSAGES = 100_000

AnyMessage = Message | LimitMessage
LIMIT_MESSAGES = (AskGrant, Grant, Led, Lead, Follow, Copy, Copied, Behind)

_KINDS: dict[str, type[AnyMessage]] = {
    "stand": Stand, "vote": Vote, "stand_down": StandDown, "hand_back": HandBack, "ask": Ask,
    "loan": Loan, "pay": Pay, "paid": Paid, "back": Back, "ask_grant": AskGrant, "grant": Grant,
    "led": Led, "lead": Lead, "follow": Follow, "copy": Copy, "copied": Copied, "behind": Behind,
}
_NAMES: dict[type[AnyMessage], str] = {kind: name for name, kind in _KINDS.items()}


def encode_messages(messages: Sequence[AnyMessage]) -> bytes:
    """As MessagePack: a list of [kind, message]."""
    return msgspec.msgpack.encode([(_NAMES[type(each)], each) for each in messages])


def decode_messages(body: bytes) -> list[AnyMessage]:
    """The inverse. Kinds that a newer sender knows are skipped. Raises Untrusted."""
    try:
        pairs = msgspec.msgpack.decode(body, type=list[tuple[str, msgspec.Raw]])
        if len(pairs) > MOST_MESSAGES:
            raise Untrusted(f"{len(pairs)} messages at once; at most {MOST_MESSAGES}")
        found: list[AnyMessage] = []
        for name, raw in pairs:
            kind = _KINDS.get(name)
            if kind is not None:
                found.append(msgspec.msgpack.decode(raw, type=kind))
    except msgspec.MsgspecError as error:
        raise Untrusted(f"not messages about entitlements: {error}") from error
    return found
