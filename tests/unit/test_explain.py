"""What `isochrone explain` says to an auditor."""

from typing import Any

from isochrone.cli.explain import summary, timings

DECISION: dict[str, Any] = {
    "residency": ["DE"], "transit": ["any"], "predicted_ttft_ms": 300.0, "actual_ttft_ms": 310.0,
}
FOUND: dict[str, Any] = {
    "id": "019a", "endpoint": "chat.completions", "model": "tiny-fable", "stream": True,
    "class": "on_demand", "received_at": 1_763_672_400_000_000_000, "key_id": "k1",
    "outcome": "finished", "status": 200, "reason": None,
    "ingress": {"site": "sydney", "country": "AU", "plaintext": "ingress AU saw plaintext"},
    "serving": {"site": "frankfurt", "country": "DE", "replica": "r1"}, "revision": "abc",
    "tokens": {"input_uncached": 3, "input_cached": 2, "output": 8, "source": "engine"},
    "reporter": "ingress", "decision": DECISION,
}


def test_the_summary_names_where_plaintext_was_seen_and_who_counted() -> None:
    text = "\n".join(summary(FOUND))
    assert "sydney (AU): ingress AU saw plaintext" in text
    assert "frankfurt (DE), replica r1" in text
    assert "residency DE; transit any" in text
    assert "3 input uncached, 2 input cached, 8 output; counted by the engine" in text
    assert "2025-11-20 21:00:00 UTC" in text


def test_a_request_that_nobody_served_says_so() -> None:
    refused = FOUND | {
        "serving": {"site": None, "country": None, "replica": None}, "decision": None,
        "outcome": "refused", "status": 403, "reason": "residency",
    }
    text = "\n".join(summary(refused))
    assert "served nowhere" in text
    assert "refused, status 403, residency" in text


def test_bars_are_to_scale_and_skip_steps_that_were_not_reached() -> None:
    times = {"chosen_ms": 1.0, "sent_ms": 2.0, "first_byte_ms": 300.0, "total_ms": 600.0}
    lines = timings(times, DECISION)
    assert [line.split("  ")[0].strip() for line in lines[:4]] == [
        "chosen", "sent", "first byte", "end"
    ]
    assert lines[2].count("█") == 24
    assert lines[3].count("█") == 24
    assert "first token expected after 300.0, was 310.0" in lines[4]
    none = {"chosen_ms": None, "sent_ms": None, "first_byte_ms": None, "total_ms": 0.0}
    assert len(timings(none, None)) == 1
