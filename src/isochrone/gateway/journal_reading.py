"""Reads segments of the journal: those of an earlier run, and contents that are not at hand."""

import structlog

from isochrone.gateway.journal_recovery import Reader, contents
from isochrone.gateway.journal_state import JournalSegment
from isochrone.ports.disk import Disk

ASIDE = "damaged-"

log = structlog.get_logger()


def read_segment(disk: Disk, reader: Reader, name: str, *, aside: bool) -> JournalSegment:
    """Feed the segment to `reader`. A copy of a damaged one is kept, unless it is `aside` already.
    One that cannot be read is left for a run that can: what it tells is late then, and not lost.
    """
    try:
        data = disk.read(name)
    except OSError as error:
        log.error("journal_read_failed", segment=name, why=str(error))
        return JournalSegment(name, sealed=True, keep=True)
    found = reader.feed(name, data)
    segment = JournalSegment(
        name, size_bytes=len(data), synced_bytes=len(data), sealed=True,
        keep=found.undecodable > 0,
    )
    if found.torn_bytes:
        log.warning("journal_torn", segment=name, bytes=found.torn_bytes)
    if found.undecodable:
        log.error("journal_undecodable", segment=name, records=found.undecodable)
    if found.damage_bytes:
        _note_damage(disk, segment, data, found.damage_bytes, aside=aside)
    return segment


def load_contents(disk: Disk, segment: JournalSegment) -> None:
    """Read the content of a segment's batches from the disk; None stays where it cannot be read."""
    absent = [batch for batch in segment.batches.values() if batch.content is None]
    try:
        data = disk.read(segment.name)
    except OSError as error:
        if segment.unread != str(error):
            log.error("journal_read_failed", segment=segment.name, why=str(error))
        segment.unread = str(error)
        return
    segment.unread = ""
    found, damage_bytes = contents(data, absent)
    for batch, content in zip(absent, found, strict=True):
        batch.content = content
    if damage_bytes and ASIDE + segment.name not in disk.names():
        _note_damage(disk, segment, data, damage_bytes, aside=False)


def _note_damage(
    disk: Disk, segment: JournalSegment, data: bytes, damage_bytes: int, *, aside: bool
) -> None:
    log.error("journal_damaged", segment=segment.name, bytes=damage_bytes)
    if not aside:
        try:
            disk.replace(ASIDE + segment.name, data)
        except OSError as error:
            log.error("journal_not_kept_aside", segment=segment.name, why=str(error))
            segment.keep = True
