"""Messages about entitlements arrive as they were sent, and nothing else is taken for one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.admission.commitments import Message
from isochrone.core.admission.loans import Ask, Loan
from isochrone.core.admission.stewards import HandBack, Stand, StandDown, Vote
from isochrone.core.errors import Untrusted
from isochrone.core.ids import SiteName
from isochrone.wire.commitments import decode_messages, encode_messages

KINDS = (Ask, Loan, HandBack, Stand, StandDown, Vote)
messages = st.lists(st.one_of(*(st.from_type(kind) for kind in KINDS)), max_size=8)


@given(messages)
def test_messages_arrive_as_they_were_sent(sent: list[Message]) -> None:
    fit = [each for each in sent if all(abs(n) < 1 << 63 for n in numbers(each))]
    assert decode_messages(encode_messages(fit)) == fit


def numbers(message: Message) -> list[int]:
    fields = msgspec.to_builtins(message).values()
    return [each for each in fields if isinstance(each, int)]


def test_what_a_newer_sender_adds_is_skipped() -> None:
    news = [("news", {"a": 1}), ("hand_back", {"home": "oslo", "more": True})]
    assert decode_messages(msgspec.msgpack.encode(news)) == [HandBack(home=SiteName("oslo"))]


@given(st.binary(max_size=60))
def test_anything_else_is_refused(body: bytes) -> None:
    try:
        found = decode_messages(body)
    except Untrusted:
        return
    assert all(isinstance(each, KINDS) for each in found)


def test_a_message_that_lacks_a_field_is_refused() -> None:
    with pytest.raises(Untrusted, match="not messages about entitlements"):
        decode_messages(msgspec.msgpack.encode([("stand", {"home": "oslo"})]))
