"""Puts what a load left behind in the real cloud before the judges of every gear."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from isochrone.core.ids import KeyId, OrgId, ProjectId, RequestId, SiteName
from isochrone.core.metering.event import Tokens, UsageEvent
from isochrone.core.money import pico
from isochrone.twin.checks.judge import judge
from isochrone.twin.checks.record import Asked, Down, Money, Record
from isochrone.wiring.control_api import ControlApi
from tests.rig.load import Result
from tests.rig.waiting import POLL_S

REST_S = 10.0


def faults(
    api: ControlApi, asked: Mapping[str, Iterable[Result]], rows: Iterable[Mapping[str, Any]], *,
    downs: tuple[Down, ...] = (), healed_s: float,
) -> list[str]:
    """What the judges find wrong with what was asked, by the name of the key that asked, with the
    rows of the book for it, and with the ledger. Nothing failed any more from `healed_s` on.
    Engines of the rig do not tell what they did for whom, and the hour that runs is not charged."""
    return judge(Record(
        asked=tuple(_asked(api, asked, healed_s)), booked=tuple(map(_event, rows)), downs=downs,
        money=_money(api), stuck=tuple(_still_busy(api)),
    ))


def _asked(
    api: ControlApi, asked: Mapping[str, Iterable[Result]], healed_s: float
) -> Iterator[Asked]:
    owners = {one["name"]: one for one in api.items("keys")}
    for owner, results in ((owners[name], each) for name, each in asked.items()):
        residency = owner["residency"]
        for one in results:
            is_whole = one.whole and one.status == 200 and not one.told_error
            yield Asked(
                reference=one.own_id, ingress=SiteName(one.site), key_id=KeyId(owner["id"]),
                org_id=OrgId(owner["org_id"]),
                countries=None if residency == ["any"] else frozenset(residency),
                began_s=one.began_s, ended_s=one.ended_s, status=one.status, reason=one.reason,
                code=one.code, request_id=one.request_id, serving_country=one.country,
                tokens=one.tokens, whole=is_whole, told_error=one.told_error,
                must_succeed=one.began_s >= healed_s,
            )


def _event(row: Mapping[str, Any]) -> UsageEvent:
    """A row of the book. What the API's list of requests leaves out, no judge asks for."""
    return UsageEvent(
        request_id=RequestId(row["id"]), org_id=OrgId(row["org_id"]),
        project_id=ProjectId(row["project_id"]), key_id=KeyId(row["key_id"]),
        client_request_id=row["client_request_id"], endpoint="chat.completions", stream=True,
        class_=row["class"], model=row["model"], revision=None,
        ingress_site=SiteName(row["ingress"]), ingress_country=row["ingress_country"],
        serving_site=row["site"], serving_country=row["country"], replica=None,
        received_at=row["received_at"], finished_at=row["finished_at"], chosen_ms=None,
        sent_ms=None, first_byte_ms=row["first_byte_ms"], total_ms=row["total_ms"],
        tokens=Tokens(
            input_uncached=row["input_uncached"], input_cached=row["input_cached"],
            output=row["output"], source=row["source"],
        ),
        outcome=row["outcome"], status=row["status"], reason=row["reason"],
        reporter=row["reporter"], attempts=row["attempts"],
    )


def _money(api: ControlApi) -> Money:
    api.post("ledger/charges", {})
    return Money(
        charged={}, used={},
        sum_pico=sum(pico(row["amount"]) for row in api.items("ledger/balances")),
        wrong_hours=api.get("reconciliation")["wrong_sums"],
    )


def _still_busy(api: ControlApi) -> list[str]:
    """Engines that do not come to rest; they are heard of once a second."""
    until_s = time.monotonic() + REST_S
    while busy := _busy(api):
        if time.monotonic() > until_s:
            break
        time.sleep(POLL_S)
    return busy


def _busy(api: ControlApi) -> list[str]:
    return [
        f"{replica['id']} still works for somebody"
        for site in api.get("status")["sites"] for replica in site["replicas"]
        if replica["running"] or replica["waiting"]
    ]
