"""Each judge of a run says nothing of a run that is right, and finds what is wrong with one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from isochrone.core.ids import KeyId, OrgId, RequestId, SiteName
from isochrone.core.metering.event import Tokens
from isochrone.twin.checks.judge import CHECKS, judge
from isochrone.twin.checks.record import Asked, Down, Money, Record, Worked
from tests.unit.build_usage import a_usage_event

ORG, PARIS = OrgId("org"), SiteName("paris")
ID = RequestId("01a0c450-9230-778b-802c-b45450d255fa")
ASKED = Asked(
    reference="1", ingress=PARIS, key_id=KeyId("key"), org_id=ORG, countries=frozenset(("FR",)),
    began_s=1.0, ended_s=2.0, status=200, request_id=ID, serving_country="FR", tokens=5, whole=True,
)
EVENT = replace(
    a_usage_event(ID), client_request_id="1", org_id=ORG, key_id=KeyId("key"), ingress_site=PARIS,
    serving_site=PARIS, serving_country="FR", outcome="finished", reporter="ingress",
    tokens=Tokens(input_uncached=7, output=5, source="engine"),
)
WORK = Worked(reference="1", site=PARIS, country="FR", prompt_tokens=7, output_tokens=5)
MONEY = Money(charged={ORG: 36}, used={ORG: 36}, sum_pico=0, wrong_hours=0)
RIGHT = Record(asked=(ASKED,), booked=(EVENT,), worked=(WORK,), money=MONEY, is_exact=True)
REFUSED = replace(
    ASKED, status=503, reason="no_healthy_site", code="no_healthy_site", tokens=0, whole=False
)
NOTHING = replace(EVENT, outcome="refused", tokens=Tokens())


def with_asked(**changes: object) -> Record:
    return replace(RIGHT, asked=(replace(ASKED, **changes),))  # type: ignore[arg-type]


def with_event(**changes: object) -> Record:
    return replace(RIGHT, booked=(replace(EVENT, **changes),))  # type: ignore[arg-type]


WRONG: dict[str, Callable[[], Record]] = {
    "every request ends": lambda: with_asked(ended_s=None),
    "answered or told why": lambda: with_asked(whole=False),
    "service recovers": lambda: with_asked(must_succeed=True, whole=False, told_error=True),
    "booked once": lambda: replace(RIGHT, booked=()),
    "booked under its tenant": lambda: with_event(org_id=OrgId("other")),
    "booked with its tokens": lambda: with_event(tokens=replace(EVENT.tokens, output=6)),
    "residency": lambda: replace(RIGHT, worked=(replace(WORK, country="US"),)),
    "the ledger sums to zero": lambda: replace(RIGHT, money=replace(MONEY, sum_pico=1)),
    "charged what was used": lambda: replace(RIGHT, money=replace(MONEY, charged={ORG: 72})),
    "nothing is stuck": lambda: replace(RIGHT, stuck=("a request is open",)),
    "always": lambda: replace(RIGHT, broken=("a callback raised",)),
}


def test_a_run_that_is_right_is_found_right() -> None:
    assert judge(RIGHT) == []
    assert judge(Record(asked=())) == []
    assert judge(Record(asked=(REFUSED,), booked=(NOTHING,))) == []


def test_every_judge_has_a_wrong_run() -> None:
    assert set(WRONG) == {name for name, _ in CHECKS}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_by_its_judge(name: str) -> None:
    assert any(found.startswith(f"{name}: ") for found in judge(WRONG[name]()))


@pytest.mark.parametrize("record", [
    replace(RIGHT, booked=(EVENT, replace(EVENT, request_id=RequestId(ID[:-1] + "b")))),
    replace(RIGHT, booked=(EVENT, EVENT)),
    replace(RIGHT, booked=(EVENT, replace(EVENT, client_request_id="2"))),
    with_event(tokens=replace(EVENT.tokens, output=4)),
    with_event(tokens=replace(EVENT.tokens, input_uncached=8)),
    with_event(outcome="client_gone"),
    with_event(serving_country="US"),
    with_asked(serving_country="US"),
    with_asked(serving_country=None),
    replace(RIGHT, worked=(WORK, WORK)),
    replace(RIGHT, worked=(WORK, replace(WORK, reference="2"))),
    replace(RIGHT, asked=(replace(REFUSED, reason=None),), booked=(NOTHING,), worked=()),
    replace(RIGHT, asked=(replace(REFUSED, code=None),), booked=(NOTHING,), worked=()),
    replace(RIGHT, money=replace(MONEY, wrong_hours=1)),
    Record(asked=(REFUSED,), booked=(replace(NOTHING, tokens=Tokens(input_uncached=7)),),
           worked=()),
])
def test_other_ways_to_be_wrong(record: Record) -> None:
    assert judge(record) != []


def test_what_is_documented_to_be_lost_is_forgiven_and_no_more() -> None:
    cut = Down(site=PARIS, at_s=2.1, back_s=3.0, unsynced=True)
    lost = replace(RIGHT, booked=(), money=None, downs=(cut,))
    assert judge(lost) == []
    assert judge(replace(lost, downs=(replace(cut, unsynced=False),))) != []
    assert judge(replace(lost, downs=(replace(cut, at_s=3.0),))) != []
    assert judge(replace(lost, downs=(replace(cut, site=SiteName("lyon")),))) != []


def test_what_was_on_record_before_a_gateway_died_is_booked_with_its_tokens() -> None:
    less = replace(with_event(tokens=replace(EVENT.tokens, output=4)), is_exact=False)
    died = Down(site=PARIS, at_s=2.1, back_s=9.0)
    assert judge(replace(less, downs=(died,))) == []
    later = replace(died, at_s=3.0)
    assert judge(replace(less, downs=(later,))) != []
    assert judge(replace(less, downs=(replace(later, full=True),))) == []


def test_a_connection_that_breaks_excuses_the_answer_and_not_the_book() -> None:
    broken = replace(ASKED, status=0, whole=False, tokens=0)
    reset = Down(site=PARIS, at_s=1.5, back_s=1.5, lives=True)
    run = replace(RIGHT, asked=(broken,), downs=(reset,), is_exact=False)
    assert judge(run) == []
    assert judge(replace(run, downs=())) != []
    assert judge(replace(run, booked=())) != []
