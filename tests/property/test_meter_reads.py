"""However a stream is cut into reads, the meter says and forwards the same."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from isochrone.gateway.meter import StreamMeter

HEAD = b'data: {"id":"x","choices":[{"index":0,'
NULL = b'"finish_reason":null,'
EVENTS = [
    HEAD + NULL + b'"delta":{"content":"one"}}]}\n\n',
    HEAD + NULL + b'"delta":{"content":"\\"error\\" \\n\\n"}}]}\n\n',
    HEAD + NULL + b'"delta":{"content":""}}]}\n\n',
    HEAD + NULL + b'"delta":{"role":"assistant"}}]}\n\n',
    HEAD + NULL + b'"delta":{"content":"two"}}],"usage":null}\n\n',
    HEAD + NULL + b'"delta":{"content":"a"}}],"timings":{"prompt_n":5,"predicted_n":3}}\n\n',
    HEAD + NULL + b'"delta":{"content":"b"}}],"timings":{"prompt_n":5,"predicted_n":9}}\n\n',
    HEAD + NULL + b'"delta":{"content":"c"}}],"usage":{"prompt_tokens":5,'
    b'"completion_tokens":7}}\n\n',
    HEAD + b'"delta":{"content":"end"},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":11}}\n\n',
    b'data: {"error":{"message":"lost"}}\n\n',
    b": a comment\n\n",
    HEAD + NULL + b'"delta":{"content":"crlf"}}]}\r\n\r\n',
    b'data: {"choices":[{"text":"plain","index":0,"finish_reason":null}]}\n\n',
    b"data: [DONE]\n\n",
]


def metered(reads: list[bytes], wants_usage: bool) -> tuple[object, ...]:
    meter = StreamMeter(1, "chat.completions", wants_usage)
    out = b"".join(meter.feed(read) for read in reads) + meter.end()
    return out, meter.finished, meter.error, meter.tokens(40)


@given(
    st.lists(st.sampled_from(EVENTS[:1] * 20 + EVENTS), max_size=40),
    st.lists(st.integers(1, 3000), max_size=12),
    st.booleans(),
)
def test_reads_do_not_matter(events: list[bytes], cuts: list[int], wants_usage: bool) -> None:
    stream = b"".join(events)
    reads, at = [], 0
    for size in cuts:
        reads.append(stream[at : at + size])
        at += size
    reads.append(stream[at:])
    at_once = metered([stream], wants_usage)
    assert metered([bytes([byte]) for byte in stream], wants_usage) == at_once
    assert metered([read for read in reads if read], wants_usage) == at_once
    assert metered(events, wants_usage) == at_once


LONG_HEAD = HEAD.replace(b'"x"', b'"chatcmpl-0123456789abcdef","created":1795218401')
RUNS = [
    LONG_HEAD + NULL + b'"delta":{"content":"%b"}}]}\n\n',
    LONG_HEAD + NULL + b'"delta":{"content":"%b"}}],"timings":{"prompt_n":5,"predicted_n":%d}}\n\n',
    LONG_HEAD + NULL + b'"delta":{"content":"%b"}}],"usage":{"prompt_tokens":5,'
    b'"completion_tokens":%d},"more":{"error":%d}}\n\n',
]
TEXTS = [b"a", b" longer", b"", b'\\"', b'quoted \\"error\\":1', b"\\\\", b"\xc3\xa9", b"x" * 300]
OTHERS = [
    LONG_HEAD + NULL + b'"delta":{"role":"assistant","content":""}}]}\n\n',
    LONG_HEAD + NULL + b'"delta":{"reasoning_content":"hm"}}]}\n\n',
    LONG_HEAD + NULL + b'"delta":{"content":"crlf"}}]}\r\n\r\n',
    b"data: null\n\n",
    b": a comment\n\n",
]


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """Events as engines send them: long runs that differ in text and numbers, others in between."""
    events: list[bytes] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(RUNS))
        texts = draw(st.lists(st.sampled_from(TEXTS[:2] * 10 + TEXTS), max_size=60))
        for text in texts:
            numbers = (len(events), 0)[: kind.count(b"%d")]
            events.append(kind % (text, *numbers))
        events += draw(st.lists(st.sampled_from(OTHERS), max_size=2))
    return events


@given(runs(), st.lists(st.integers(1, 9000), max_size=8))
def test_runs_of_like_events_are_counted_one_by_one(events: list[bytes], cuts: list[int]) -> None:
    said = [json.loads(e[6:]) for e in events if e.startswith(b"data: {")]
    deltas = [each["choices"][0]["delta"] for each in said]
    texts = sum(bool(d.get("content") or d.get("reasoning_content")) for d in deltas)
    counts = [each.get("timings") or each.get("usage") for each in said]
    last = next((count for count in reversed(counts) if count), None)
    made = 0 if last is None else last.get("predicted_n", last.get("completion_tokens"))
    stream = b"".join(events)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for reads in (
        [stream], events, [stream[a:b] for a, b in pairwise(edges) if b > a],
        [b"".join(events[i : i + 5]) for i in range(0, len(events), 5)],
    ):
        meter = StreamMeter(1, "chat.completions", False)
        seen = b"".join(meter.feed(read) for read in reads)
        assert seen == stream.replace(b"data: null\n\n", b"")
        assert (meter.finished, meter.error) == (False, False)
        tokens = meter.tokens(40)
        if last is not None:
            assert (tokens.input_uncached, tokens.output) == (5, made)
        else:
            assert tokens.output == texts
