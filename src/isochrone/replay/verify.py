"""Checks a replay against the book: every sent request is booked exactly once, with its tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from isochrone.replay.report import Report

# Refused before any work: the key was not looked up yet, or the journal takes no records.
_UNRECORDED = ("starting", "invalid_api_key", "journal")


class BookedRow(msgspec.Struct, frozen=True):
    """The fields of one row of `isochrone usage --by request --json` that are needed here."""

    id: str
    client_request_id: str | None
    input_uncached: int
    input_cached: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What does not agree, by client request id; all empty when the book is right.

    `lost`: answered, not booked. `double`: booked more than once. `unlike`: the client's usage is
    not what was booked. `unknown`: booked rows of this replay that it did not send. No faults are
    `unheard` (sent, but no answer came and no gateway had recorded it, so nothing was served) and
    `turned_away` (refused by a gateway that starts, or cannot record: such a refusal has no event).
    """

    booked: int
    lost: tuple[str, ...]
    double: tuple[str, ...]
    unlike: tuple[str, ...]
    unheard: tuple[str, ...]
    unknown: tuple[str, ...]
    turned_away: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return not (self.lost or self.double or self.unlike or self.unknown)


def read_rows(data: bytes) -> list[BookedRow]:
    """Parse the JSON list of usage rows. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(data, type=list[BookedRow])


def verify(report: Report, rows: Sequence[BookedRow]) -> Verdict:
    """Compare all requests of a report with all rows of the book."""
    prefix, probe = f"replay-{report.run}-", f"replay-{report.run}-probe"
    sent = {each.client_request_id: each for each in report.requests}
    ids = {each.request_id: name for name, each in sent.items() if each.request_id}
    # A policy of logs may keep the client's own id out of the book: then the answer's id tells.
    own = [
        (row.client_request_id or ids.get(row.id, ""), row) for row in rows
        if (row.client_request_id or "").startswith(prefix) or row.id in ids
    ]
    by_client = Counter(name for name, _ in own)
    by_id = Counter(row.id for _, row in own)
    booked = dict(own)
    lost: list[str] = []
    double: list[str] = []
    unlike: list[str] = []
    unheard: list[str] = []
    turned_away: list[str] = []
    for name, each in sent.items():
        row = booked.get(name)
        times = max(by_client[name], by_id[each.request_id] if each.request_id else 0)
        if times > 1:
            double.append(name)
        elif times == 0 and (each.error or "").rpartition(":")[2] in _UNRECORDED:
            turned_away.append(name)
        elif times == 0 and each.sent:
            (lost if each.request_id or each.error is None else unheard).append(name)
        elif row is not None and each.error is None and each.input_tokens is not None:
            told = (each.input_tokens, each.cached_tokens, each.output_tokens)
            if told != (row.input_uncached + row.input_cached, row.input_cached, row.output):
                unlike.append(name)
    names = set(by_client) - set(sent) - {probe}
    return Verdict(
        booked=len(own) - by_client[probe],
        lost=tuple(lost),
        double=tuple(double),
        unlike=tuple(unlike),
        unheard=tuple(unheard),
        unknown=tuple(sorted(names)),
        turned_away=tuple(turned_away),
    )
