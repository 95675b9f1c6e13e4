"""What is retained of a stream is the same, however much of it is read at once."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from isochrone.gateway.continuation.events import joined_text
from isochrone.gateway.continuation.retained import (
    APART,
    FOLD_BYTES,
    Delivered,
    Retained,
    plain_texts,
)

FILLING = 2 * FOLD_BYTES // 600  # so that some runs are folded on their way
TEXTS = st.one_of(
    st.sampled_from(["", " time", "\n", '"', "\\", "\\n", 'say "x"', "é", "\U0001f98a"]),
    st.text(max_size=8),
)
ODD: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "a", "reasoning_content": "b"}}]},
    {"choices": [{"index": 1, "delta": {"content": "c"}}]},
    {"choices": [{"index": 0, "delta": {"content": ""}}], "text": "d"},
    {"choices": [{"index": 0, "delta": {"content": "e"}, "finish_reason": "stop"}]},
    {"choices": [{"index": 0, "text": "f"}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}},
]


def event(text: str, created: int, *, chat: bool, ascii_only: bool, filling: str) -> bytes:
    said = {"delta": {"content": text}} if chat else {"text": text}
    chunk = {
        "id": "chatcmpl-1", "created": created, "model": filling,
        "choices": [{"index": 0, **said, "finish_reason": None}],
    }
    data = json.dumps(chunk, ensure_ascii=ascii_only, separators=(",", ":"))
    return b"data: %b\n\n" % data.encode()


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Long runs of the same but for the text, with here and there something else."""
    chat, ascii_only = draw(st.booleans()), draw(st.booleans())
    filling = draw(st.sampled_from(["m", "m" * FILLING]))
    found: list[bytes] = []
    for _ in range(draw(st.integers(1, 3))):
        created = draw(st.integers(1, 3))
        texts = draw(st.lists(TEXTS, max_size=5)) * draw(st.sampled_from([1, 6]))
        found += [
            event(text, created, chat=chat, ascii_only=ascii_only, filling=filling)
            for text in texts
        ]
        found += [
            b"data: %b\n\n" % json.dumps(odd).encode()
            for odd in draw(st.lists(st.sampled_from(ODD), max_size=1))
        ]
    return found


def texts_of(delivered: Delivered | None) -> object:
    """What is known of an answer, but for counts, which a run of text leaves unread."""
    if delivered is None:
        return None
    return (
        {channel: "".join(pieces) for channel, pieces in delivered.channels.items()},
        delivered.identity, delivered.finished, delivered.roles, delivered.events,
        delivered.text_bytes, delivered.usage_sent,
    )


def kept(reads: list[bytes]) -> object:
    retained = Retained()
    for data in reads:
        retained.take(data)
    return texts_of(retained.delivered())


def one_by_one(events: list[bytes]) -> object:
    """Read after each event."""
    retained = Retained()
    delivered = retained.delivered()
    for data in events:
        retained.take(data)
        delivered = retained.delivered()
    return texts_of(delivered)


@given(streams(), st.integers(1, 400))
def test_reading_at_once_finds_what_reading_one_by_one_finds(
    events: list[bytes], step: int
) -> None:
    data = b"".join(events)
    expected = one_by_one(events)
    assert kept(events) == expected
    assert kept([data[at : at + step] for at in range(0, len(data), step)]) == expected


def plain(*texts: str) -> list[bytes]:
    return [event(text, 1, chat=True, ascii_only=True, filling="m") for text in texts]


def test_a_run_of_text_is_read_at_once() -> None:
    texts = plain_texts(plain(*"abcd", " one", "", "\n", " two", *"wxyz"))
    assert texts == [b" one", b"", b"\\n", b" two"]
    assert joined_text(texts) == " one\n two"
    assert len("abcd") == APART


def test_what_is_not_alike_is_no_run() -> None:
    for odd in ('say "x"', "\U0001f98a"):
        texts = plain_texts(plain(*"abcd", " one", odd, " two", *"wxyz"))
        assert texts is None or joined_text(texts) is None
    other = event("b", 2, chat=True, ascii_only=True, filling="m")
    ends = plain(*"wxyz")
    assert plain_texts([*plain(*"abcd", "a"), other, *plain("c"), *ends]) is None
    assert plain_texts([*plain(*"abcd"), b"".join(plain("a", "b")), *ends]) is None
    whole = plain(*"abcda", *"wxyz")
    assert plain_texts(whole) == [b"a"]
    assert plain_texts([*whole[:3], b"data: {", *whole[4:]]) is None
    for few in ("", "abcd", "abcdwxyz"):
        assert plain_texts(plain(*few)) is None
