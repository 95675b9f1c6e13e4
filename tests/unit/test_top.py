"""The screen of `isochrone top`, from what control says."""

from io import StringIO
from typing import Any

from rich.console import Console

from isochrone.cli.top import Seen, screen


def a_site(name: str, running: int, **changes: Any) -> dict[str, Any]:
    load = {"running": running, "waiting": 1, "slots": 8}
    return {
        "name": name, "country": "DE", "health": "healthy", "ready": True, "digest_age_ms": 412.0,
        "loads": [load], "replicas": [{"held_tokens": 5000}, {"held_tokens": None}], **changes,
    }


def a_span(name: str, requests: float) -> dict[str, Any]:
    return {
        "name": name, "requests": requests, "finished": requests / 2, "good": requests / 4,
        "spilled": 0.0, "p50_ms": 41.0, "p90_ms": 80.0, "p99_ms": 300.0,
    }


def shown(seen: Seen, *, most: int = 10, away: str = "") -> str:
    out = StringIO()
    Console(file=out, width=140).print(screen(seen, most=most, away=away))
    return out.getvalue()


def seen(*sites: dict[str, Any], spans: float = 120.0) -> Seen:
    reasons = [{"outcome": "refused", "reason": "residency", "requests": 7.0}]
    return Seen(
        status={"at": 1_764_338_400_000_000_000, "bus": True, "sites": list(sites)},
        traffic={
            "spans": [a_span("", spans)] if spans else [], "reasons": reasons if spans else [],
        },
        by_site={"spans": [a_span("busy", 30.0), a_span("busy", 30.0)] if spans else []},
    )


def test_the_busiest_sites_come_first_with_what_they_do() -> None:
    said = shown(seen(a_site("calm", 1), a_site("busy", 4), a_site("away", 0, ready=False)), most=2)
    rows = [line.split() for line in said.splitlines() if " DE " in line]
    assert [row[0] for row in rows] == ["busy", "calm"]
    bar = "█" * 6 + "░" * 6
    assert rows[0][1:] == ["DE", "healthy", bar, "4/8", "1", "5,000", "1.0", "0.4", "s"]
    assert "2025-11-28 14:00:00 UTC   2 of 3 sites ready" in said
    assert "2.0 requests/s   finished 50.0 %   good 25.0 %" in said
    assert "p50 41 ms, p90 80 ms, p99 300 ms" in said
    assert "not served: residency 7" in said
    assert "and 1 more sites" in said


def test_what_is_nearly_all_is_not_called_all() -> None:
    nearly = seen(a_site("busy", 4))
    nearly.traffic["spans"][0].update(finished=119.96, good=0.04)
    assert "finished > 99.9 %   good < 0.1 %   elsewhere 0.0 %" in shown(nearly)


def test_nothing_to_tell_and_control_away_are_said() -> None:
    unheard = a_site("new", 0, digest_age_ms=None, loads=[], replicas=[], health="down")
    said = shown(seen(unheard, spans=0.0), away="no answer")
    assert "nothing was asked in the last 60 s" in said
    assert "control is away: no answer" in said
    assert "never" in said
    assert "0/0" in said
