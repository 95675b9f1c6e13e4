"""However a stream is cut into reads, the meter says and forwards the same."""

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
