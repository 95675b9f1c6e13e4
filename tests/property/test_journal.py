"""The journal under random work and crashes: nothing synced is lost, nothing is told twice."""

import asyncio
from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.choice import Ground
from isochrone.gateway import records
from isochrone.gateway.journal import Journal
from isochrone.gateway.journal_state import Pending
from isochrone.gateway.records import Damage, Record
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.disk import MemoryDisk
from isochrone.twin.loop import VirtualLoop, run
from isochrone.wire import fleet
from isochrone.wire.usage import UsageRecord
from tests.unit.build_usage import (
    a_decision,
    a_ground,
    a_record,
    a_usage_event,
    an_opening,
)

STEPS = ("open", "open", "open", "progress", "close", "close", "commit", "commit", "busy_commit",
         "ship", "ship", "ship", "lost_ack", "die", "cut", "bad_sync", "grow", "grow", "grow")


@dataclass
class World:
    """The journal, and what it must not forget."""

    disk: MemoryDisk
    rng: Random
    journal: Journal
    made: int = 0
    open: list[str] = field(default_factory=list)
    closings: dict[str, UsageRecord] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)  # written since the last crash
    safe: set[str] = field(default_factory=set)   # must be told
    told: dict[str, set[UsageRecord]] = field(default_factory=dict)
    batches: dict[tuple[str, int], Pending] = field(default_factory=dict)


def a_journal(disk: MemoryDisk) -> Journal:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    journal = Journal(disk, VirtualClock(loop), "sydney", segment_bytes=32 * 1024)
    journal.recover()
    return journal


GROUNDS = [a_ground(f"ground-{number}", sites=7 * number) for number in range(1, 4)]


def a_closing(name: str, rng: Random) -> tuple[UsageRecord, Ground | None]:
    """Most are of the ingress, with a decision and its ground."""
    event = a_usage_event(name, output=rng.randint(0, 9))
    if rng.random() < 0.2:
        return a_record(replace(event, reporter="evidence")), None
    ground = rng.choice(GROUNDS)
    return a_record(replace(event, decision=a_decision(ground))), ground


def ship(world: World, *, acked: bool) -> None:
    for batch in world.journal.pending(world.rng.choice((3, 50))):
        known = world.batches.setdefault((batch.segment, batch.offset), batch)
        assert known == batch, "the same batch with another content"
        content = batch.content
        usage = [fleet.decode(body, UsageRecord) for body in content.usage]
        evidence = [fleet.decode(body, UsageRecord) for body in content.evidence]
        assert {record.reporter for record in evidence} <= {"evidence"}
        for record in (*usage, *evidence):
            world.told.setdefault(record.request_id, set()).add(record)
        grounds = [fleet.decode(body, Ground) for body in content.grounds]
        named = {record.decision.ground for record in usage if record.decision is not None}
        assert sorted(ground.id for ground in grounds) == sorted(named)
        assert all(ground in GROUNDS for ground in grounds)
        if acked:
            world.journal.shipped(batch)


async def act(world: World, step: str) -> None:
    journal, rng = world.journal, world.rng
    match step:
        case "open":
            name = f"r{world.made}"
            world.made += 1
            assert journal.opened(an_opening(name)) is None
            world.open.append(name)
            world.fresh.add(name)
        case "progress" if world.open:
            tokens = Tokens(output=rng.randint(1, 9), source="running")
            journal.progress(RequestId(rng.choice(world.open)), tokens)
        case "close" if world.open:
            late = rng.random() < 0.9  # most are short, some stay open for long
            name = world.open.pop(-1 if late else rng.randrange(len(world.open)))
            world.closings[name], ground = a_closing(name, rng)
            journal.closed(world.closings[name], ground)
        case "grow":
            for _ in range(120):
                await act(world, "open")
                await act(world, "close")
        case "busy_commit":
            # Requests open and close while the disk is at it.
            before = set(world.fresh)
            failing = world.disk.failing_syncs > 0
            commit = asyncio.ensure_future(journal.commit())
            await asyncio.sleep(world.disk.sync_s / 2)
            for more in ("open", "close", "close", "grow"):
                await act(world, more)
            await commit
            if not failing:
                world.safe |= before
        case "commit":
            failing = world.disk.failing_syncs > 0
            await journal.commit()
            if not failing:
                world.safe |= world.fresh
        case "ship" | "lost_ack":
            ship(world, acked=step == "ship")
        case "bad_sync":
            world.disk.failing_syncs = 1
        case "die" | "cut":
            if step == "die":
                world.safe |= world.fresh
                world.disk.process_died()
            else:
                world.disk.power_cut(rng)
            world.open.clear()
            world.fresh.clear()
            world.journal = a_journal(world.disk)
        case _:
            pass


@given(st.lists(st.sampled_from(STEPS), min_size=15, max_size=60), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_no_crash_loses_what_was_safe_or_tells_a_request_in_two_ways(
    steps: list[str], seed: int
) -> None:
    async def main() -> None:
        disk = MemoryDisk(sync_s=0.001)
        world = World(disk, Random(seed), a_journal(disk))
        for step in steps:
            await act(world, step)
            counted = world.journal._left_bytes
            world.journal._recount()
            assert counted == world.journal._left_bytes, "room that is counted wrongly"
        await act(world, "die")
        world.disk.failing_syncs = 0
        for _ in range(400):
            await world.journal.commit()
            if not world.journal.pending(1):
                break
            ship(world, acked=True)
        assert world.safe <= set(world.told)
        for name, events in world.told.items():
            assert len(events) == 1, "one request told in two ways"
            (event,) = events
            if event.outcome == "finished" and event.reporter == "ingress":
                assert event == world.closings[name]
        await world.journal.commit()
        assert len(disk.names()) <= 2, "a segment that nobody needs"

    run(main())


kinds = st.sampled_from((records.OPENED, records.CLOSED, records.BATCH))
bodies = st.lists(st.tuples(kinds, st.binary(max_size=40)), max_size=12)


@given(bodies, st.integers(0, 50))
def test_records_come_back_and_reserved_zeros_do_not_matter(
    written: list[tuple[records.Kind, bytes]], zeros: int
) -> None:
    data = b"".join(records.frame(kind, body) for kind, body in written) + b"\0" * zeros
    found = list(records.scan(data))
    assert [(r.kind, r.body) for r in found if isinstance(r, Record)] == written
    assert not any(isinstance(item, Damage) for item in found)


@given(bodies, st.data())
def test_one_damaged_byte_costs_one_record_at_most(
    written: list[tuple[records.Kind, bytes]], data: st.DataObject
) -> None:
    frames = [records.frame(kind, body) for kind, body in written]
    whole = bytearray(b"".join(frames))
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= data.draw(st.integers(1, 255))
    found = [r for r in records.scan(bytes(whole)) if isinstance(r, Record)]
    assert len(found) >= len(written) - 1
    assert all((r.kind, r.body) in written for r in found)


@given(bodies, st.integers(0, 2000))
def test_a_torn_end_costs_nothing_before_it(
    written: list[tuple[records.Kind, bytes]], cut: int
) -> None:
    frames = [records.frame(kind, body) for kind, body in written]
    whole = b"".join(frames)
    cut = min(cut, len(whole))
    kept = 0
    for i in range(len(frames)):
        if len(b"".join(frames[: i + 1])) <= cut:
            kept = i + 1
    found = list(records.scan(whole[:cut]))
    assert [(r.kind, r.body) for r in found if isinstance(r, Record)] == written[:kept]
    assert all(item.torn for item in found if isinstance(item, Damage))
