"""The journal on the twin's disk: what survives, what is refused, what is kept aside."""

import asyncio
from dataclasses import replace
from random import Random

import pytest
from msgspec.structs import replace as replace_in
from structlog.testing import capture_logs

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.choice import Ground
from isochrone.gateway import journal as journal_module
from isochrone.gateway import records
from isochrone.gateway.journal import Journal
from isochrone.gateway.journal_state import Pending
from isochrone.gateway.outbox import Outbox
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
    a_usage_record,
    an_opening,
)

MIB = 1024 * 1024


def a_journal(disk: MemoryDisk) -> Journal:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    journal = Journal(disk, VirtualClock(loop), "sydney")
    journal.recover()
    return journal


def records_of(batches: list[Pending]) -> list[UsageRecord]:
    """All records of these batches."""
    return [
        fleet.decode(body, UsageRecord)
        for batch in batches
        for body in (*batch.content.usage, *batch.content.evidence)
    ]


def test_a_closed_request_is_shipped_once_and_its_segment_goes() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        assert journal.opened(an_opening("a")) is None
        journal.closed(a_usage_record("a"))
        assert journal.pending(10) == []  # nothing is shipped before it is synced
        await journal.commit()
        (batch,) = journal.pending(10)
        assert records_of([batch]) == [a_usage_record("a")]
        assert journal.pending(10) == [batch]
        journal.shipped(batch)
        assert journal.pending(10) == []
        await journal.commit()
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        assert again.pending(10) == []
        await again.commit()
        assert len(disk.names()) == 2  # the current segment and one in reserve

    run(main())


def test_a_killed_gateway_says_what_was_open() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        journal.opened(an_opening("local"))
        journal.opened(an_opening("hop", ingress="frankfurt"))
        journal.opened(an_opening("done"))
        journal.progress(an_opening("local").request_id, Tokens(output=7, source="running"))
        journal.closed(a_usage_record("done"))
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        found = {str(event.request_id): event for event in records_of(again.pending(10))}
        assert sorted(found) == ["done", "hop", "local"]
        assert found["done"] == a_usage_record("done")
        local, hop = found["local"], found["hop"]
        assert (local.reporter, local.outcome, local.output) == (
            "recovered", "ingress_lost", 7
        )
        assert local.finished_at > local.received_at
        assert hop.reporter == "evidence"

    run(main())


def test_unacknowledged_batches_come_again_alike_after_a_restart() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        for i in range(250):
            journal.closed(a_usage_record(f"r{i}"))
        await journal.commit()
        sent = journal.pending(10)
        assert [len(batch.content) for batch in sent] == [100, 100, 50]
        journal.shipped(sent[1])
        journal.closed(a_usage_record("later"))
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        found = again.pending(10)
        assert found[:2] == [sent[0], sent[2]]
        assert [event.request_id for event in records_of(found[2:])] == ["later"]

    run(main())


def test_a_full_disk_refuses_before_serving_and_keeps_every_closing() -> None:
    async def main() -> None:
        disk = MemoryDisk(capacity_bytes=9 * MIB)
        journal = a_journal(disk)
        await journal.commit()
        disk.capacity_bytes = 8 * MIB + 100
        taken: list[str] = []
        for i in range(100_000):
            name = f"r{i}"
            if journal.refusal() is not None:
                break
            assert journal.opened(an_opening(name)) is None
            taken.append(name)
        assert journal.refusal() is not None
        assert journal.opened(an_opening("late")) is not None
        assert len(taken) > 1000
        for name in taken:
            journal.closed(a_usage_record(name, output=2**30))
        seen: set[str] = set()
        for _ in range(100):
            await journal.commit()
            for batch in journal.pending(50):
                seen.update(event.request_id for event in records_of([batch]))
                journal.shipped(batch)
        assert seen == set(taken)
        disk.capacity_bytes = None
        await journal.commit()
        assert journal.refusal() is None

    run(main())


def test_no_room_at_the_start_refuses_until_there_is() -> None:
    async def main() -> None:
        disk = MemoryDisk(capacity_bytes=MIB)
        journal = a_journal(disk)
        assert "no space left" in (journal.refusal() or "")
        journal.closed(a_usage_record("a"))  # a refusal has no opening, but it is told
        disk.capacity_bytes = None
        await journal.commit()
        await journal.commit()
        assert journal.refusal() is None
        assert [event.request_id for event in records_of(journal.pending(10))] == ["a"]

    run(main())


async def damaged_in_the_middle(disk: MemoryDisk) -> tuple[Journal, str]:
    """A journal of three closed requests, of which the disk has spoilt the second; its segment."""
    journal = a_journal(disk)
    for name in ("a", "b", "c"):
        journal.closed(a_usage_record(name))
    await journal.commit()
    (segment,) = [name for name in disk.names() if disk.read(name)]
    disk.damage(segment, len(disk.read(segment)) // 2)
    return journal, segment


def test_damage_in_the_middle_is_kept_aside_and_the_rest_is_told() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        _, segment = await damaged_in_the_middle(disk)
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        told = [event.request_id for event in records_of(again.pending(10))]
        assert told == ["a", "c"]
        assert f"damaged-{segment}" in disk.names()

    run(main())


def test_a_read_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        journal.closed(a_usage_record("a"))
        disk.process_died()
        again = a_journal(disk)

        def fail(name: str) -> bytes:
            raise OSError(24, "too many open files")

        with monkeypatch.context() as patched, capture_logs() as logged:
            patched.setattr(disk, "read", fail)
            for _ in range(3):
                await again.commit()
                assert again.pending(10) == []
        assert [each["event"] for each in logged] == ["journal_read_failed"], "said once"
        await again.commit()
        assert [each.request_id for each in records_of(again.pending(10))] == ["a"]

    run(main())


def test_a_segment_that_cannot_be_read_at_the_start_keeps_nobody_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        disk = MemoryDisk()
        first = a_journal(disk)
        first.closed(a_usage_record("a"))
        await first.commit()
        (bad,) = [name for name in disk.names() if disk.read(name)]
        disk.process_died()
        read = disk.read

        def fail(name: str) -> bytes:
            if name == bad:
                raise OSError(5, "input/output error")
            return read(name)

        with monkeypatch.context() as patched, capture_logs() as logged:
            patched.setattr(disk, "read", fail)
            second = a_journal(disk)
            second.closed(a_usage_record("b"))
            for _ in range(3):
                await second.commit()
                for batch in second.pending(10):
                    assert records_of([batch]) == [a_usage_record("b")]
                    second.shipped(batch)
        assert "journal_read_failed" in [each["event"] for each in logged]
        disk.process_died()
        third = a_journal(disk)
        await third.commit()
        assert records_of(third.pending(10)) == [a_usage_record("a")]

    run(main())


def test_damage_that_comes_before_the_batch_is_sent_is_kept_aside_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "CACHED_BATCHES", 0)

    async def main() -> None:
        disk = MemoryDisk()
        journal, segment = await damaged_in_the_middle(disk)
        with capture_logs() as logged:
            told = [each.request_id for each in records_of(journal.pending(10))]
            journal.pending(10)
        assert told == ["a", "c"]
        assert [each["event"] for each in logged] == ["journal_damaged"]
        assert f"damaged-{segment}" in disk.names()

    run(main())


def test_a_failed_sync_loses_nothing() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        journal.opened(an_opening("open"))
        journal.closed(a_usage_record("early"))
        await journal.commit()
        journal.opened(an_opening("late"))
        journal.closed(a_usage_record("a"))
        disk.failing_syncs = 1
        await journal.commit()
        await journal.commit()
        told = [event.request_id for event in records_of(journal.pending(10))]
        assert sorted(told) == ["a", "early"]
        disk.power_cut(Random(1))
        again = a_journal(disk)
        await again.commit()
        told = [event.request_id for event in records_of(again.pending(10))]
        assert sorted(set(told)) == ["a", "early", "late", "open"]

    run(main())


def test_records_of_a_round_are_handed_over_together() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        outbox = Outbox(journal.flush)
        journal.defer(outbox.due)
        before = sum(len(disk.read(name).rstrip(b"\0")) for name in disk.names())
        journal.opened(an_opening("open"))
        journal.closed(a_usage_record("closed"))
        assert sum(len(disk.read(name).rstrip(b"\0")) for name in disk.names()) == before
        await asyncio.sleep(0)
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        told = [event.request_id for event in records_of(again.pending(10))]
        assert sorted(told) == ["closed", "open"]

    run(main())


def test_a_failed_write_at_the_end_of_a_round_loses_nothing() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        journal.defer(lambda: None)
        journal.closed(a_usage_record("early"))
        await journal.commit()
        journal.opened(an_opening("open"))
        journal.closed(a_usage_record("late"))
        disk.failing_appends = 1
        journal.flush()
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        told = [event.request_id for event in records_of(again.pending(10))]
        assert sorted(set(told)) == ["early", "late", "open"]

    run(main())


def test_a_failed_sync_loses_nothing_that_was_recorded_meanwhile() -> None:
    async def main() -> None:
        disk = MemoryDisk(sync_s=0.01)
        journal = a_journal(disk)
        journal.defer(lambda: None)
        journal.opened(an_opening("a"))
        journal.opened(an_opening("b"))
        disk.failing_syncs = 1
        committing = asyncio.create_task(journal.commit())
        await asyncio.sleep(0.005)
        journal.closed(a_usage_record("a"))  # in the round in which the sync fails
        journal.opened(an_opening("c"))
        await committing
        journal.flush()
        await journal.commit()
        assert [each.request_id for each in records_of(journal.pending(10))] == ["a"]
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        told = {str(each.request_id): each.reporter for each in records_of(again.pending(10))}
        assert told == {"a": "ingress", "b": "recovered", "c": "recovered"}

    run(main())


def test_open_requests_do_not_hold_old_segments() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        journal.opened(an_opening("long"))
        journal.progress(an_opening("long").request_id, Tokens(output=9, source="running"))
        for i in range(15_000):
            journal.closed(a_usage_record(f"r{i}"))
            if i % 1000 == 0:
                await journal.commit()
                for batch in journal.pending(100):
                    journal.shipped(batch)
        for _ in range(4):
            await journal.commit()
            for batch in journal.pending(100):
                journal.shipped(batch)
        assert len(disk.names()) <= 3
        disk.power_cut(Random(1))
        again = a_journal(disk)
        await again.commit()
        (left,) = records_of(again.pending(10))
        assert (left.request_id, left.output) == ("long", 9)

    run(main())


def test_a_long_outage_keeps_batches_on_the_disk_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "CACHED_BATCHES", 64)

    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        for i in range(9_000):
            journal.closed(a_usage_record(f"r{i}"))
        await journal.commit()
        cached = sum(
            batch.content is not None for s in journal._segments for batch in s.batches.values()
        )
        assert cached <= journal_module.CACHED_BATCHES
        told: list[str] = []
        while batches := journal.pending(8):
            for batch in batches:
                told += [event.request_id for event in records_of([batch])]
                journal.shipped(batch)
            await journal.commit()
        assert told == [f"r{i}" for i in range(9_000)]

    run(main())


@pytest.mark.parametrize("delay_s", [0.001, 3.0])
def test_records_are_synced_in_groups(delay_s: float) -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        loop = asyncio.get_running_loop()
        task = loop.create_task(journal.run())
        await asyncio.sleep(delay_s)
        journal.closed(a_usage_record("a"))
        begun = loop.time()
        await journal.ready.wait()
        assert loop.time() - begun <= journal_module.COMMIT_S + 0.001
        task.cancel()
        await asyncio.wait([task])

    run(main())


def test_a_batch_brings_the_grounds_of_its_decisions_once_each() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        journal = a_journal(disk)
        near, far = a_ground("near"), a_ground("far", sites=60)
        for i in range(230):
            ground = far if i == 7 else near
            event = replace(a_usage_event(f"r{i}"), decision=a_decision(ground))
            journal.closed(a_record(event), ground)
        await journal.commit()
        sent = journal.pending(10)
        grounds = [[fleet.decode(g, Ground) for g in batch.content.grounds] for batch in sent]
        assert grounds == [[near, far], [near], [near]]
        disk.process_died()
        again = a_journal(disk)
        await again.commit()
        assert again.pending(10) == sent

    run(main())


def test_a_decision_gives_way_to_the_charge_where_room_is_scarce() -> None:
    async def main() -> None:
        disk = MemoryDisk(capacity_bytes=8 * MIB)
        journal = a_journal(disk)
        ground = a_ground(sites=1000)
        event = replace(a_usage_event("a"), decision=a_decision(ground))
        journal.closed(a_record(event), ground)
        disk.capacity_bytes = 0
        while journal.refusal() is None:
            journal.opened(an_opening(f"r{len(journal._open)}"))
        journal.closed(replace_in(a_record(event), request_id=RequestId("b")), ground)
        huge = a_ground("huge", sites=10_000)
        disk.capacity_bytes = None
        await journal.commit()
        event = replace(a_usage_event("c"), decision=a_decision(huge))
        journal.closed(a_record(event), huge)
        await journal.commit()
        told = {str(each.request_id): each for each in records_of(journal.pending(10))}
        assert sorted(told) == ["a", "b", "c"]
        assert [told[name].decision is None for name in "abc"] == [False, True, True]

    run(main())


def test_a_segment_of_another_format_is_kept_and_said_to_be_unreadable() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        name = "segment-00000000000000000007"
        old = fleet.encode(a_usage_event("old"))  # as maps, which earlier releases wrote
        frames = [
            records.frame(records.OPENED, old), records.frame(records.CLOSED, old),
            records.frame(records.BATCH, b""), records.frame(records.CLOSED, old),
        ]
        segment = disk.create(name, reserve_bytes=0)
        segment.append(b"".join(frames))
        before = disk.read(name)
        with capture_logs() as logged:
            journal = a_journal(disk)
        assert {"event": "journal_undecodable", "log_level": "error", "segment": name,
                "records": 3} in logged
        journal.closed(a_usage_record("new"))
        for _ in range(3):
            await journal.commit()
            for batch in journal.pending(10):
                assert records_of([batch]) == [a_usage_record("new")]
                journal.shipped(batch)
        assert disk.read(name) == before

    run(main())
