"""docs/explain.md: its worked example is what the code says, and its tables name every rule."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from isochrone.cli.explain import show
from isochrone.control.api.requests import _explanation
from isochrone.core.admission.limits import LimitName
from isochrone.core.admission.queue_commands import RefusalReason
from isochrone.core.continuation.plan import Why
from isochrone.core.ids import KeyId, ReplicaId, SiteName
from isochrone.core.metering.event import Outcome, Tokens, UsageEvent
from isochrone.core.residency.rule import DenialRule
from isochrone.core.routing.bond import HomeVerdict
from isochrone.core.routing.choice import (
    Decision,
    Foretold,
    Ground,
    Refused,
    Rule,
    UnpaidBecause,
)
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.words import RULES, UNPAID
from isochrone.gateway import timeouts
from isochrone.ports.book import Booked
from tests.builders import a_choice, a_digest, a_load, a_policy, a_site, a_table, a_view
from tests.unit.build_usage import a_usage_event

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explain.md").read_text()
MS = 1_000_000


def worked_example(*tried: Refused) -> Choice:
    """The one of docs/routing.md, with a policy that leaves Paris out, and Oslo silent."""
    sites = [
        a_site("sydney", "AU"), a_site("frankfurt", "DE"), a_site("ashburn", "US"),
        a_site("oslo", "NO"), a_site("paris", "FR"),
    ]
    view = a_view(
        sites, rtt_ms={"frankfurt": 290.0, "ashburn": 206.0, "oslo": 310.0, "paris": 280.0},
        policies=[a_policy("p-lab", ("AU", "US", "DE", "NO"))],
    )
    loads = Loads()
    busy = a_load(slots=4, running=4, waiting=4, output_tokens=800)
    loads.heard(a_digest("sydney", busy), 9_900 * MS)
    loads.heard(a_digest("ashburn", a_load(running=1, prompt_tokens=60)), 9_600 * MS)
    loads.heard(a_digest("frankfurt", a_load(ready=2, slots=8)), 9_700 * MS)
    loads.heard(a_digest("oslo"), 1_000 * MS)
    loads.heard(a_digest("paris"), 9_700 * MS)
    return a_choice(a_table(view), loads, policy_id="p-lab", now_ns=10_000 * MS, tried=tried)


def an_event(ground: Ground, decision: Decision) -> UsageEvent:
    return replace(
        a_usage_event("019aa1b2-0000-7000-8000-000000000001"), key_id=KeyId("k-lab"),
        serving_site=SiteName("ashburn"), serving_country="US",
        replica=ReplicaId("ashburn/tiny-fable/0"),
        received_at=1_763_672_400_000_000_000, chosen_ms=0.1, sent_ms=0.2, first_byte_ms=384.3,
        total_ms=1384.3, tokens=Tokens(input_uncached=100, output=100, source="engine"),
        decision=decision,
    )


def shown(choice: Choice, decision: Decision, capsys: pytest.CaptureFixture[str]) -> str:
    """What `isochrone explain` prints."""
    booked = Booked(event=an_event(choice.ground, decision), booked_at=1, ground=choice.ground)
    show(_explanation(booked).model_dump(by_alias=True))
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()).strip()


def examples() -> list[str]:
    """The blocks of the page that show what is printed."""
    blocks = re.findall(r"```text\n(.+?)\n```", PAGE, re.S)
    return ["\n".join(line.rstrip() for line in block.splitlines()).strip() for block in blocks]


def test_the_worked_example_of_a_whole_choice(capsys: pytest.CaptureFixture[str]) -> None:
    choice = worked_example()
    assert (choice.site, choice.is_spill) == ("ashburn", True)
    assert shown(choice, choice.decision(actual_ttft_ms=384.3), capsys) == examples()[0]


def test_the_worked_example_in_brief(capsys: pytest.CaptureFixture[str]) -> None:
    choice = worked_example()
    text = shown(choice, choice.decision(actual_ttft_ms=384.3, in_full=False), capsys)
    start = text.index("The chosen site")
    end = text.index("Sites refused")
    assert text[start:end].strip() == examples()[1]


def test_the_worked_example_of_a_stream_that_went_on_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ashburn = SiteName("ashburn")
    lost = Refused(site=ashburn, rule="tried_before", detail="lost during the answer")
    choice = worked_example(lost)
    assert choice.site == "frankfurt"
    decision = replace(
        choice.decision(actual_ttft_ms=402.0, tried=[lost]), since_ms=1100.0,
        foretold=(Foretold(
            site=ashburn, since_ms=0.0, predicted_ttft_ms=366.0, actual_ttft_ms=384.3
        ),),
    )
    text = shown(choice, decision, capsys)
    assert text[text.index("first token at") :].replace("\n  ", "\n") == examples()[2].replace(
        "\n  ", "\n"
    )


def test_the_api_tells_a_brief_choice_from_a_whole_one() -> None:
    choice = worked_example()
    told = {}
    for is_full in (False, True):
        event = an_event(choice.ground, choice.decision(in_full=is_full))
        booked = Booked(event=event, booked_at=1, ground=choice.ground)
        decision = _explanation(booked).model_dump(by_alias=True)["decision"]
        assert (decision["policy_id"], decision["ground"]) == ("p-lab", choice.ground.id)
        assert (decision["is_full"], decision["eligible"]) == (is_full, 3)
        assert decision["runner_up"] == {"site": "frankfurt", "cost_ms": 390.0}
        told[is_full] = decision
    assert len(told[True]["candidates"]) == 3
    assert told[False]["candidates"] == told[True]["candidates"][:1]
    assert told[False]["refused"] == told[True]["refused"]
    assert {each["rule"] for each in told[False]["refused"]} == {"digest_stale", "residency"}


def listed(title: str) -> set[str]:
    """The names in the first column of the table below this heading."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_]+)`", section, re.M)) | {
        name for row in re.findall(r"^\| (`[^|]+`) \|", section, re.M)
        for name in re.findall(r"`([a-z_]+)`", row)
    }


def said_reasons() -> Iterator[str]:
    """Every reason that the gateway writes as a text where it refuses or ends a request."""
    for path in sorted((ROOT / "src/isochrone/gateway").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func).rpartition(".")[2] not in ("Refusal", "Fault", "_end"):
                continue
            for each in node.keywords:
                value = each.value.value if isinstance(each.value, ast.Constant) else None
                if each.arg == "reason" and value is not None:
                    yield str(value)


def test_every_rule_is_listed_and_has_a_meaning() -> None:
    rules = set(get_args(Rule))
    assert rules == listed("Rules that refuse a site")
    assert rules == set(RULES)


def test_every_reason_for_another_class_is_listed_and_has_a_meaning() -> None:
    reasons = set(get_args(UnpaidBecause))
    assert reasons == listed("Served in another class")
    assert reasons == set(UNPAID)


def test_every_reason_of_a_refusal_is_listed() -> None:
    said = set(said_reasons())
    assert {"no_healthy_site", "residency_header", "bad_http", "engine_error"} <= said
    known = said | {
        *get_args(timeouts.Reason), *get_args(LimitName), *get_args(DenialRule),
        *get_args(RefusalReason), "engine_lost",
    }
    missing = known - listed("Reasons that end a request")
    assert not missing


def test_every_outcome_and_verdict_is_listed() -> None:
    assert set(get_args(Outcome)) == listed("Outcomes")
    assert set(get_args(HomeVerdict)) <= set(
        re.findall(r"`(\w+)`", (ROOT / "docs/sessions.md").read_text())
    ) | {"none"}
    continuation = (ROOT / "docs/continuation.md").read_text()
    assert all(f"`{why}`" in continuation for why in get_args(Why) if why != "client_gone")
