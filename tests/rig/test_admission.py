"""One site with four slots: a floor holds under the load of another class, and streams give way."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.rig.cloud import Cloud
from tests.rig.stream_kills import (
    CONTEXT_TOKENS,
    GGUF,
    MODEL,
    Case,
    Sent,
    faults,
    slowed,
    undisturbed,
)
from tests.rig.stream_kills import booked as booked_rows
from tests.rig.streams import Ask, Client, Stream, until

pytestmark = pytest.mark.rig

SITE = "porto"
SLOTS, FLOOR = 4, 2
RECLAIM_S = 4.0
OVERLOAD = 5 * SLOTS  # clients that ask again as soon as they have their answer
LOAD_S = 8.0
SOLD_TOK_S = 200
PAYING, PAYS_EVERY_S = 2, 1.5  # clients, of some 100 weighted tokens a request
SILENT_S = 25.0  # a voter that was just started says nothing for 15 s
YEAR_NS = 365 * 86_400 * 1_000_000_000
CLASS = "x-isochrone-class"
MAX_TOKENS = 100
LEAST_TEXTS = 10  # a stream has received before it has to give way
NEAR_TIES = 1     # a token from a prefill may fall the other way than one from a decode

WORLD = f"""
[[model]]
name = "{MODEL}"
kind = "chat"
file = "bundled:{GGUF}"
context = {CONTEXT_TOKENS}

[[site]]
name = "{SITE}"
country = "PT"
latitude = 41.15
longitude = -8.61
  [[site.hardware]]
  kind = "cpu"
  [[site.deployment]]
  model = "{MODEL}"
  engine = "llamacpp"
  slots = {SLOTS}
  threads = 1
    [site.deployment.admission]
    reclaim_ms = {RECLAIM_S * 1000}
    on_demand = {{ floor = {FLOOR / SLOTS}, share = 6.0 }}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """The site, running, and a key that may use both classes."""

    cloud: Cloud
    key: str

    @property
    def entry(self) -> str:
        return self.cloud.endpoint(SITE)

    @property
    def engines(self) -> list[int]:
        """Their process ids."""
        return [each["pid"] for site in self.cloud.up["sites"] for each in site["replicas"]]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder: Path = tmp_path_factory.mktemp("admission")
    world = folder / "world.toml"
    world.write_text(WORLD)
    cloud = Cloud(folder / "state", "--sites", world)
    try:
        cloud.start()
        key = cloud.api.post(
            "keys", {"name": "both", "classes": ["on_demand", "batch"]},
            idempotency_key="both",
        )["key"]
        asyncio.run(warm(Rig(cloud=cloud, key=key)))
        yield Rig(cloud=cloud, key=key)
    finally:
        cloud.stop()


def story(number: int, tier: str, *, max_tokens: int = 40, name: str = "story") -> Ask:
    text = f"Tell me story {number} about a fox and the sea."
    return Ask(own_id=f"{name}-{number}", path="/chat/completions", body={
        "model": MODEL, "stream": True, "temperature": 0, "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": text}], "service_tier": tier,
    })


async def one(rig: Rig, ask: Ask) -> Stream:
    client = Client()
    stream = client.add(ask, rig.entry, rig.key)
    await client.begin()
    await client.finish()
    return stream


async def warm(rig: Rig) -> None:
    """The gateway knows the key and, from answers, the speed of the engine."""
    deadline = time.monotonic() + 30.0
    while (await one(rig, story(0, "default"))).status != 200:
        assert time.monotonic() < deadline, "the site serves"
        await asyncio.sleep(0.1)
    await asyncio.gather(*(one(rig, story(number, "default")) for number in range(2 * SLOTS)))


def queued_s(stream: Stream) -> float:
    """How long a stream that was served waited for its turn."""
    assert stream.error_free, (stream.status, stream.headers, stream.data[-200:])
    return float(stream.headers["server-timing"].partition("queue;dur=")[2] or 0.0) / 1000


async def keep_asking(rig: Rig, tier: str, number: int, until_s: float) -> list[Stream]:
    """Ask again and again until an instant."""
    found: list[Stream] = []
    while time.monotonic() < until_s:
        found.append(await one(rig, story(number, tier)))
        if found[-1].status != 200:
            await asyncio.sleep(0.2)
    return found


async def overload(rig: Rig) -> tuple[list[Stream], list[Stream]]:
    """(on demand, batch) streams: as many clients on demand as their floor, and five times the
    slots of batch."""
    end = time.monotonic() + LOAD_S
    flood = [
        asyncio.create_task(keep_asking(rig, "flex", number, end)) for number in range(OVERLOAD)
    ]
    await asyncio.sleep(1.5)
    firm = await asyncio.gather(*(
        keep_asking(rig, "default", 100 + number, end) for number in range(FLOOR)
    ))
    return (
        [stream for streams in firm for stream in streams],
        [stream for streams in await asyncio.gather(*flood) for stream in streams],
    )


def test_a_floor_holds_under_five_times_the_load_of_another_class(rig: Rig) -> None:
    firm, flood = asyncio.run(overload(rig))
    assert len(firm) >= 2 * FLOOR
    waits_s = [queued_s(stream) for stream in firm]
    assert max(waits_s) <= RECLAIM_S
    served = [stream for stream in flood if stream.status == 200]
    refused = [stream for stream in flood if stream.status != 200]
    reasons = {(each.status, each.headers["x-isochrone-reason"]) for each in refused}
    assert {status for status, _ in reasons} <= {429}, reasons
    assert all(int(stream.headers["retry-after"]) >= 1 for stream in refused)
    # It was an overload: the others waited for many turns, and were served all the same.
    assert served
    assert median(map(queued_s, served)) > 3 * median(waits_s)


def long_asks(cases: Sequence[Case]) -> list[Ask]:
    return [
        replace(case.ask, own_id=f"batch-{i}", body={**case.ask.body, "service_tier": "flex"})
        for i, case in enumerate(cases)
    ]


async def give_way(rig: Rig, cases: Sequence[Case]) -> tuple[list[Sent], list[Stream]]:
    """All slots are lent to streams of `batch`; in their middle others ask for their floor."""
    lent, firm = Client(), Client()
    sent = [
        Sent(case=case, stream=lent.add(ask, rig.entry, rig.key))
        for case, ask in zip(cases, long_asks(cases), strict=True)
    ]
    for number in range(FLOOR):
        firm.add(story(200 + number, "default"), rig.entry, rig.key)
    async with slowed(rig.engines, lambda: max(one.texts for one in lent.streams)):
        await lent.begin()
        await until(
            lambda: all(each.ended or each.texts >= LEAST_TEXTS for each in lent.streams),
            "every stream is in its middle",
        )
        said = [(each.status, each.texts, each.data[-200:]) for each in lent.streams]
        assert all(each.open for each in lent.streams), said
        await firm.begin()
        await until(
            lambda: all(each.ended or each.texts for each in firm.streams), "the floor is given"
        )
    await firm.finish()
    await lent.finish()
    return sent, firm.streams


def test_streams_of_batch_give_way_and_go_on(
    rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    logs: Path = tmp_path_factory.mktemp("undisturbed")
    cases = asyncio.run(undisturbed(SLOTS, max_tokens=MAX_TOKENS, logs=logs))
    sent, firm = asyncio.run(give_way(rig, cases))
    assert all(queued_s(stream) <= RECLAIM_S for stream in firm)
    # Each is one answer, the same as without a stop.
    complaints = {each.own_id: faults(each, moved=False) for each in sent}
    assert {own_id: found for own_id, found in complaints.items() if found} == {}
    ties = [
        each.own_id for each in sent
        if each.stream.received().text != each.case.undisturbed.text
    ]
    assert len(ties) <= NEAR_TIES, ties
    rows: dict[str, dict[str, Any]] = booked_rows(rig.cloud, sent)
    assert sum(row["attempts"] > 1 for row in rows.values()) == FLOOR, "as many as had to stop"
    for each in sent:
        row = rows[each.own_id]
        assert (row["outcome"], row["class"]) == ("finished", "batch")
        assert row["input_uncached"] + row["input_cached"] == each.case.usage["prompt_tokens"]
        if each.own_id not in ties:
            assert row["output"] == each.case.usage["completion_tokens"], "paid for once"


async def keep_paying(gold: Rig, number: int, until_s: float) -> list[Stream]:
    """Ask for no more than a part of what was sold, whatever else goes on."""
    found: list[Stream] = []
    next_s = time.monotonic()
    while next_s < until_s:
        await asyncio.sleep(max(next_s - time.monotonic(), 0.0))
        next_s += PAYS_EVERY_S
        found.append(await one(gold, story(number, "priority", name="gold")))
    return found


async def overload_what_was_sold(rig: Rig, gold: Rig) -> tuple[list[Stream], list[Stream]]:
    """(paid for, on demand) streams: five times the slots of the others."""
    deadline = time.monotonic() + SILENT_S
    while (await one(gold, story(0, "priority"))).headers.get(CLASS) != "reserved":
        assert time.monotonic() < deadline, "what was sold is honoured"
        await asyncio.sleep(0.5)
    end = time.monotonic() + LOAD_S
    flood = [
        asyncio.create_task(keep_asking(rig, "default", number, end)) for number in range(OVERLOAD)
    ]
    await asyncio.sleep(1.5)
    paid = await asyncio.gather(*(keep_paying(gold, number, end) for number in range(PAYING)))
    return (
        [stream for streams in paid for stream in streams],
        [stream for streams in await asyncio.gather(*flood) for stream in streams],
    )


def test_what_was_sold_holds_under_five_times_the_load_of_another_class(rig: Rig) -> None:
    """By an entitlement that is made while the site serves; the other class has a floor of its own
    and none of it can be stopped."""
    api = rig.cloud.api
    sold = api.post(
        "entitlements",
        {"model": MODEL, "tok_s": SOLD_TOK_S, "residency": ["any"],
         "ends_at": str(time.time_ns() + YEAR_NS)},
        idempotency_key="sold-here",
    )
    key = api.post(
        "keys", {"name": "gold", "classes": ["reserved", "on_demand"]}, idempotency_key="gold"
    )["key"]
    paid, flood = asyncio.run(overload_what_was_sold(rig, replace(rig, key=key)))
    assert len(paid) >= 2 * PAYING
    assert {stream.headers[CLASS] for stream in paid} == {"reserved"}
    waits_s = [queued_s(stream) for stream in paid]
    assert max(waits_s) <= RECLAIM_S
    served = [stream for stream in flood if stream.status == 200]
    assert served, "nobody is starved"
    assert {stream.status for stream in flood} <= {200, 429}
    assert median(map(queued_s, served)) > 3 * median(waits_s)
    assert api.delete(f"entitlements/{sold['id']}")["revoked_at"] is not None
