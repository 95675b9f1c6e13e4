"""What `isochrone explain` says to an auditor."""

import json
import math
from array import array
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from isochrone.cli.explain import (
    bond_lines,
    ground_lines,
    off,
    others,
    policy_line,
    predictions,
    summary,
    timings,
    undecided,
)
from isochrone.cli.rules import meanings
from isochrone.console.pages.explain import Explanation as ConsoleExplanation
from isochrone.console.pages.explain import policy
from isochrone.control.api.requests import _explanation
from isochrone.ports.book import Booked
from tests.unit.build_usage import a_decision, a_ground, a_usage_event

DECISION: dict[str, Any] = {
    "residency": ["DE"], "transit": ["any"], "predicted_ttft_ms": 300.0, "actual_ttft_ms": 310.0,
}
FOUND: dict[str, Any] = {
    "id": "019a", "endpoint": "chat.completions", "model": "tiny-fable", "stream": True,
    "class": "on_demand", "received_at": 1_763_672_400_000_000_000, "key_id": "k1",
    "outcome": "finished", "status": 200, "reason": None,
    "ingress": {
        "site": "sydney", "country": "AU", "body": "read", "plaintext": "ingress AU saw plaintext",
    },
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


def test_what_bound_a_request_is_said_in_one_line() -> None:
    bound = DECISION | {
        "caches": ["DE", "FR"], "logs": ["DE"], "narrowed": ["-FR", "EEA"],
        "narrowed_transit": ["any"],
    }
    assert policy_line(bound) == (
        "residency DE; transit any; caches DE, FR; logs DE; narrowed by the request to -FR, EEA"
    )
    assert policy_line(DECISION) == "residency DE; transit any"


def test_the_console_tells_all_that_bound_a_request() -> None:
    ground = replace(
        a_ground(), residency=("DE", "FR"), transit=("any", "via:EEA"), caches=("DE",),
        logs=("DE",), narrowed=("DE",), narrowed_transit=("-US", "any"),
    )
    event = replace(a_usage_event("019aa1b2-0000-7000-8000-000000000001"),
                    decision=a_decision(ground))
    told = _explanation(Booked(event=event, booked_at=1, ground=ground))
    read = msgspec.json.decode(told.model_dump_json(by_alias=True), type=ConsoleExplanation)
    assert read.decision is not None
    assert policy(read.decision) == policy_line(json.loads(told.model_dump_json())["decision"]) == (
        "residency DE, FR; transit any, via:EEA; caches DE; logs DE; "
        "narrowed by the request to DE; its transit narrowed to -US, any"
    )


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("new", "is at home there from now on"),
        ("kept", "stays at its home, which may be 141 ms dearer"),
        ("moved", "leaves its home oslo, which was more than 141 ms dearer"),
        ("gone", "leaves its home oslo, which could not take the request"),
        ("overflow", "its home oslo was far dearer"),
    ],
)
def test_what_was_believed_cached_and_where_a_session_is_at_home(verdict: str, said: str) -> None:
    bond = {
        "cached_tokens": 768, "prompt_tokens": 1024, "verdict": verdict, "home": "oslo",
        "limit_ms": 140.6,
    }
    text = "\n".join(summary(FOUND | {"decision": DECISION | {"bond": bond}}))
    assert "prefix    768 of about 1024 prompt tokens were believed to be cached there" in text
    assert f"session   {said}" in text.replace("session   it has no home yet, and ", "session   ")


def test_a_short_request_of_no_session_says_nothing_of_either() -> None:
    text = "\n".join(summary(FOUND))
    assert "session" not in text
    bond = {
        "cached_tokens": 0, "prompt_tokens": 300, "verdict": "none", "home": None, "limit_ms": 0,
    }
    assert bond_lines({"bond": bond}) == [
        ("prefix", "0 of about 300 prompt tokens were believed to be cached there")
    ]


def test_a_request_that_nobody_served_says_so() -> None:
    refused = FOUND | {
        "serving": {"site": None, "country": None, "replica": None}, "decision": None,
        "outcome": "refused", "status": 403, "reason": "residency",
    }
    text = "\n".join(summary(refused))
    assert "served nowhere" in text
    assert "refused, status 403, residency" in text


def a_request_without_a_model(*, body: str, status: int, reason: str) -> dict[str, Any]:
    """A refusal of a request whose body was not understood, or not read."""
    return FOUND | {
        "serving": {"site": None, "country": None, "replica": None}, "decision": None,
        "outcome": "refused", "status": status, "reason": reason, "model": "", "stream": False,
        "timings": {"chosen_ms": None},
        "ingress": {
            "site": "sydney", "country": "AU", "body": body, "plaintext": "what the API says",
        },
    }


def test_a_refusal_from_the_head_says_that_the_body_was_not_read_and_by_which_rule() -> None:
    refused = a_request_without_a_model(body="unread", status=403, reason="transit")
    lines = summary(refused)
    assert "asked     chat.completions; the body was not read" in lines
    assert "outcome   refused by rule transit, status 403" in lines
    assert "entered   sydney (AU): what the API says" in lines
    assert "rule transit refused the request at its ingress" in undecided(refused)


def test_a_body_that_was_read_is_never_said_to_be_unread() -> None:
    bad = a_request_without_a_model(body="read", status=400, reason="bad_request")
    assert "asked     chat.completions; the body was not understood" in summary(bad)
    assert "outcome   refused, status 400, bad_request" in summary(bad)
    assert "before a site was chosen" in undecided(bad)
    large = a_request_without_a_model(body="in_part", status=413, reason="body_too_large")
    assert "asked     chat.completions; the body was not read to its end" in summary(large)


def test_a_choice_whose_ground_was_not_reported_is_not_said_to_be_none() -> None:
    times = {"chosen_ms": 1.0, "sent_ms": 2.0, "first_byte_ms": 300.0, "total_ms": 600.0}
    lost = FOUND | {"decision": None, "timings": times}
    assert "A site was chosen" in undecided(lost)
    assert not [line for line in summary(lost) if line.startswith("policy")]


@pytest.mark.parametrize("outcome", ["finished", "engine_lost"])
def test_a_running_count_is_told_alike_for_whole_and_for_broken_answers(outcome: str) -> None:
    running = FOUND | {"outcome": outcome, "tokens": {**FOUND["tokens"], "source": "running"}}
    text = "\n".join(summary(running))
    assert "the engine's last running count; no final usage came from it" in text


def test_bars_are_to_scale_and_skip_steps_that_were_not_reached() -> None:
    times = {"chosen_ms": 1.0, "sent_ms": 2.0, "first_byte_ms": 300.0, "total_ms": 600.0}
    lines = timings(times, DECISION)
    assert [line.split("  ")[0].strip() for line in lines[:4]] == [
        "chosen", "sent", "first byte", "end"
    ]
    assert lines[2].count("█") == 24
    assert lines[3].count("█") == 24
    assert "first token expected after 300.0, was 310.0" in lines[4]
    assert timings(times, {**DECISION, "queued_ms": 120.4})[5] == (
        "of this 120.4 waiting for its turn at an engine"
    )
    whole = timings(times, DECISION, stream=False)
    assert whole[4] == (
        "first token expected after 300.0; an answer that comes whole does not show it"
    )
    none = {"chosen_ms": None, "sent_ms": None, "first_byte_ms": None, "total_ms": 0.0}
    assert len(timings(none, None)) == 1


def test_a_choice_that_was_kept_in_brief_says_so_and_how_to_have_the_whole() -> None:
    brief = {
        "is_full": False, "eligible": 60, "runner_up": {"site": "oslo", "cost_ms": 312.25},
    }
    text = "\n".join(others(brief))
    assert "chosen from 60 sites" in text
    assert "The next best was oslo, expected after 312.2." in text
    assert "was not recorded" in text
    assert "`x-isochrone-explain: full`" in text
    assert others({**brief, "is_full": True}) == []
    assert others(DECISION) == [], "of a control of an earlier release"
    assert others({"is_full": False, "eligible": 1, "runner_up": None}) == [
        "It was the only site that could serve it."
    ]


def test_the_version_of_the_policy_is_named() -> None:
    ((name, said),) = ground_lines({"ground": "5e2a", "policy_id": "p-lab"})
    assert (name, said) == ("ground", "5e2a: digest of policy p-lab, sites and round trips")
    assert ground_lines(DECISION) == []


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [(300.0, 315.0, " (5% later)"), (300.0, 150.0, " (50% sooner)"), (0.0, 2.0, "")],
)
def test_how_far_a_prediction_was_off(expected: float, actual: float, said: str) -> None:
    assert off(expected, actual) == said


def test_each_rule_that_was_applied_is_said_in_words_once() -> None:
    refused = [{"rule": rule} for rule in ("residency", "draining", "residency", "of_tomorrow")]
    assert meanings(refused) == [
        ("draining", "the site is being emptied"),
        ("of_tomorrow", "see docs/explain.md of the gateway's release"),
        ("residency", "the key's policy, or the request's own headers, do not allow it there"),
    ]


def test_each_site_of_a_stream_is_held_to_its_own_prediction() -> None:
    first = {
        "site": "sydney", "since_ms": 0.0, "predicted_ttft_ms": 20.0, "actual_ttft_ms": 22.0
    }
    went_on = DECISION | {
        "candidates": [{"site": "frankfurt"}], "since_ms": 1200.0, "foretold": [first]
    }
    assert predictions(went_on) == [
        "first token at sydney expected after 20.0, was 22.0 (10% later)",
        "first token at frankfurt, chosen at 1200.0, expected after 300.0 more, was 310.0 "
        "(3% later)",
    ]
    again = went_on | {"foretold": [], "actual_ttft_ms": None}
    assert predictions(again) == [
        "first token at frankfurt, chosen at 1200.0, expected after 300.0 more, was not reached"
    ]
    nowhere = went_on | {"predicted_ttft_ms": None, "candidates": []}
    assert predictions(nowhere) == predictions(went_on)[:1]
    assert predictions(DECISION) == ["first token expected after 300.0, was 310.0 (3% later)"]


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["queues_ms", "decodes_ms"])
def test_a_decision_whose_terms_are_no_times_is_not_shown(name: str, odd: float) -> None:
    ground, event = a_ground(), a_usage_event()
    decision = a_decision(ground)
    assert decision.costs_ms, "it is a whole one"
    for term, is_shown in ((0.0, True), (odd, False)):
        kept: dict[str, Any] = {name: array("f", [term, 0.0]).tobytes()}
        booked = Booked(
            event=replace(event, decision=replace(decision, **kept)), booked_at=0, ground=ground
        )
        shown = _explanation(booked).model_dump_json(by_alias=True)
        found = msgspec.json.decode(shown, type=ConsoleExplanation)
        assert (found.decision is not None) == is_shown
