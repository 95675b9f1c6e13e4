"""Laws of metering: chunking never matters, classes sum to totals, merging is order-free."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.metering.event import Reporter, Tokens, UsageEvent
from isochrone.core.metering.merge import better
from isochrone.core.metering.tokens import Reported, settle
from isochrone.gateway.counts import read
from isochrone.gateway.meter import StreamMeter
from tests.unit.build_usage import a_usage_event

REPORTERS: tuple[Reporter, ...] = ("recovered", "evidence", "ingress")
LINE_ENDS = ("\n", "\r\n", "\r")


def _event(body: object) -> str:
    return "data: " + (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False))


def _chunk(index: int, text: str | None, **more: object) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": None}], **more}


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes, int, bool]:
    """(whole stream, what a client that asked for no usage must see, n, usage is in it)."""
    n = draw(st.integers(1, 3))
    end = draw(st.sampled_from(LINE_ENDS))
    texts = draw(st.lists(st.tuples(st.integers(0, n - 1), st.text(max_size=12)), max_size=12))
    parts: list[tuple[str, bool]] = [(": keep-alive", True)] if draw(st.booleans()) else []
    made = [0] * n
    for index, text in texts:
        made[index] += 1
        timings = {"timings": {"prompt_n": 5, "cache_n": 2, "predicted_n": made[index]}}
        more = timings if draw(st.booleans()) else {}
        parts.append((_event(_chunk(index, text, **more)), True))
    usage = draw(st.booleans())
    if draw(st.booleans()):
        done = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        parts.append((_event(done), True))
    if usage:
        counts = {"prompt_tokens": 7, "completion_tokens": 40,
                  "prompt_tokens_details": {"cached_tokens": 3}}
        parts.append((_event({"choices": [], "usage": counts}), False))
        parts.append((_event("[DONE]"), True))
    whole = "".join(part + end + end for part, _ in parts)
    seen = "".join(part + end + end for part, shown in parts if shown)
    return whole.encode(), seen.encode(), n, usage


@given(streams(), st.lists(st.integers(0, 2000), max_size=30), st.booleans())
def test_chunking_never_matters(
    stream: tuple[bytes, bytes, int, bool], cuts: list[int], asked: bool
) -> None:
    whole, seen, n, usage = stream
    at_once = StreamMeter(n, "chat.completions", asked)
    one = at_once.feed(whole) + at_once.end()
    piecewise = StreamMeter(n, "chat.completions", asked)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    two = b"".join(piecewise.feed(whole[a:b]) for a, b in pairwise(edges))
    two += piecewise.end()
    assert one == two == (whole if asked else seen)
    assert at_once.tokens(100) == piecewise.tokens(100)
    assert at_once.finished == piecewise.finished
    assert (at_once.tokens(100).source == "engine") == usage


@given(streams())
def test_one_byte_at_a_time(stream: tuple[bytes, bytes, int, bool]) -> None:
    whole, seen, n, _ = stream
    meter = StreamMeter(n, "chat.completions", False)
    out = b"".join(meter.feed(whole[i : i + 1]) for i in range(len(whole))) + meter.end()
    assert out == seen


counts = st.integers(-5, 2**33)
reports = st.none() | st.builds(Reported, prompt=counts, cached=counts, output=counts)


@given(reports, reports, st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 4))
def test_classes_are_disjoint_and_sum_to_the_totals(
    final: Reported | None, running: Reported | None, counted: int, size: int, n: int
) -> None:
    tokens = settle(final, running, counted=counted, prompt_bytes=size, n_choices=n)
    assert min(tokens.input_uncached, tokens.input_cached, tokens.output) >= 0
    chosen = next((r for r in (final, running) if r is not None and r.plausible), None)
    if chosen is not None:
        assert tokens.input_uncached + tokens.input_cached == chosen.prompt
        assert tokens.output == (max(chosen.output, counted) if n > 1 else chosen.output)
    else:
        assert tokens.source == ("counted" if counted else "none")
    if n > 1 and tokens.source != "none":
        assert tokens.output >= counted


@st.composite
def usage_events(draw: st.DrawFn) -> UsageEvent:
    tokens = Tokens(input_uncached=draw(st.integers(0, 2)), output=draw(st.integers(0, 2)))
    reporter: Reporter = draw(st.sampled_from(REPORTERS))
    return replace(
        a_usage_event(), tokens=tokens, reporter=reporter, status=draw(st.integers(200, 202)),
        finished_at=draw(st.integers(0, 2)),
    )


@given(usage_events(), usage_events(), usage_events())
def test_merging_is_commutative_associative_and_idempotent(
    a: UsageEvent, b: UsageEvent, c: UsageEvent
) -> None:
    assert better(a, b) == better(b, a)
    assert better(a, better(b, c)) == better(better(a, b), c)
    assert better(a, a) == a
    rank = REPORTERS.index
    assert rank(better(a, b).reporter) == max(rank(a.reporter), rank(b.reporter))


@given(st.binary(max_size=200))
def test_no_bytes_can_break_the_meter(data: bytes) -> None:
    """Everything passes, but for half an event at the end; a whole one may get its blank line."""
    meter = StreamMeter(1, "chat.completions", True)
    passed, rest = meter.feed(data), meter.end()
    assert data.startswith(passed)
    assert rest.rstrip(b"\r\n") in (b"", data[len(passed) :].rstrip(b"\r\n"))
    meter.tokens(0)
    read(data)
