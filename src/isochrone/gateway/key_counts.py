"""Counts what each key uses at this gateway, over all its workers, in rows of shared cells.

Every row is an open-addressed table of keys by the hash of their id, written by its owner alone.
A slot counts requests and tokens by bucket of time in one ring each; a cell holds the bucket's
number above its count, so that a stale cell is told from a present one without cleaning.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from isochrone.core.admission.limits import BUCKETS, Use
from isochrone.core.ids import KeyId
from isochrone.ports.counters import Counters

HEADER_CELLS = 8  # the first counts the keys that were placed in this row
SLOT_CELLS = 32
SLOTS = 16_384
ROW_CELLS = HEADER_CELLS + SLOTS * SLOT_CELLS
MOST_PROBES = 64
MOST_TOKENS = (1 << 36) - 1  # that one request may hold or use, and a key in one bucket

# Within a slot.
_HASH, _RUNNING, _HELD, _REQUESTS, _TOKENS = 0, 1, 2, 4, 4 + BUCKETS
_COUNT_BITS = 36  # the 28 bits of the bucket's number last longer than forty years
_COUNT = (1 << _COUNT_BITS) - 1
_NOWHERE = -1


class KeyTable:
    """Where the slots of keys are in each row."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.rows = counters.rows
        self.own = counters.own
        self._slots = (len(self.rows[0]) - HEADER_CELLS) // SLOT_CELLS
        clear_running(self.rows[self.own])  # what an earlier owner had running ended with it

    def find(self, row: memoryview, key_hash: int) -> int:
        """First cell of the key's slot in this row, or -1."""
        for base in self._probes(key_hash):
            found = row[base]
            if found == key_hash:
                return base
            if found == 0:
                break
        return _NOWHERE

    def place(self, key_hash: int, bucket: int) -> int:
        """First cell of a slot for this key in the own row: a slot that was never used, or that of
        a key that used nothing for a minute; -1 when there is none near."""
        row = self.rows[self.own]
        for base in self._probes(key_hash):
            if row[base] == 0 or _is_idle(row, base, bucket):
                row[base] = key_hash
                row[0] += 1
                return base
        return _NOWHERE

    def sweep_dead(self) -> int:
        """Forget what dead workers had running; returns how many there were."""
        return self.counters.sweep_dead(clear_running)

    def _probes(self, key_hash: int) -> range:
        """A run of slots from the key's home, which leaves room for the run before the end."""
        home = key_hash % max(self._slots - MOST_PROBES + 1, 1)
        last = min(home + MOST_PROBES, self._slots)
        return range(
            HEADER_CELLS + home * SLOT_CELLS, HEADER_CELLS + last * SLOT_CELLS, SLOT_CELLS
        )


class KeyCounts:
    """One key's use, counted in the own row and read from all rows.

    Buckets before the last two can no longer change, so their sum is kept for as long as the
    present bucket lasts. What `used` returns includes what was claimed and not yet ended.
    """

    __slots__ = (
        "_bases", "_hash", "_older", "_older_requests", "_older_tokens", "_own", "_placed",
        "_rows", "_table",
    )

    def __init__(self, table: KeyTable, key_id: KeyId) -> None:
        self._table = table
        self._hash = hash_of(key_id)
        self._rows = list(table.rows)
        self._own = table.own
        self._placed = [-1] * len(self._rows)  # keys in each row when it was last searched
        self._bases = [_NOWHERE] * len(self._rows)
        self._older = -1
        self._older_requests = 0
        self._older_tokens = 0

    def claim(self, bucket: int, tokens: int) -> None:
        """Count one request, running, that holds this many tokens."""
        row, base = self._own_slot(bucket)
        row[base + _RUNNING] += 1
        row[base + _HELD] += tokens
        _add(row, base + _REQUESTS + bucket % BUCKETS, bucket, 1)

    def unclaim(self, bucket: int, tokens: int) -> None:
        """Take a claim of this bucket back, as if it had not been."""
        row, base = self._own_slot(bucket)
        row[base + _RUNNING] -= 1
        row[base + _HELD] -= tokens
        _add(row, base + _REQUESTS + bucket % BUCKETS, bucket, -1)

    def end(self, bucket: int, held_tokens: int, tokens: int) -> None:
        """A claimed request ended: its hold is replaced by what it used."""
        row, base = self._own_slot(bucket)
        row[base + _RUNNING] -= 1
        row[base + _HELD] -= held_tokens
        _add(row, base + _TOKENS + bucket % BUCKETS, bucket, tokens)

    def used(self, bucket: int) -> tuple[int, int, int]:
        """(requests, tokens with the held ones, running) over all rows in this minute."""
        if bucket != self._older:
            self._sum_older(bucket)
        requests, tokens, running = self._older_requests, self._older_tokens, 0
        last = bucket - 1
        now_at, last_at = bucket % BUCKETS, last % BUCKETS
        for index, row in enumerate(self._rows):
            if row[0] != self._placed[index]:
                self._search(index)
            base = self._bases[index]
            if base < 0:
                continue
            running += row[base + _RUNNING]
            tokens += row[base + _HELD]
            base += _REQUESTS
            cell = row[base + now_at]
            if cell >> _COUNT_BITS == bucket:
                requests += cell & _COUNT
            cell = row[base + last_at]
            if cell >> _COUNT_BITS == last:
                requests += cell & _COUNT
            base += BUCKETS
            cell = row[base + now_at]
            if cell >> _COUNT_BITS == bucket:
                tokens += cell & _COUNT
            cell = row[base + last_at]
            if cell >> _COUNT_BITS == last:
                tokens += cell & _COUNT
        return requests, tokens, running

    def use(self, bucket: int) -> Use:
        """The same in detail, for a refusal that says how long to wait."""
        requests, tokens, running, held = [0] * BUCKETS, [0] * BUCKETS, 0, 0
        for index, row in enumerate(self._rows):
            if row[0] != self._placed[index]:
                self._search(index)
            base = self._bases[index]
            if base < 0:
                continue
            running += row[base + _RUNNING]
            held += row[base + _HELD]
            for age in range(BUCKETS):
                at, each = (bucket - age) % BUCKETS, BUCKETS - 1 - age
                requests[each] += _count(row[base + _REQUESTS + at], bucket - age)
                tokens[each] += _count(row[base + _TOKENS + at], bucket - age)
        return Use(requests=requests, tokens=tokens, held_tokens=held, running=running)

    def is_idle(self, bucket: int) -> bool:
        """Whether this worker may forget the key: it counted nothing for a minute, nothing runs."""
        own = self._own
        row = self._rows[own]
        if row[0] != self._placed[own]:
            self._search(own)
        base = self._bases[own]
        return base < 0 or _is_idle(row, base, bucket)

    def _own_slot(self, bucket: int) -> tuple[memoryview, int]:
        own = self._own
        row = self._rows[own]
        if row[0] != self._placed[own]:
            self._search(own)
        base = self._bases[own]
        if base < 0:
            base = self._place(bucket)
        return self._rows[own], base

    def _search(self, index: int) -> None:
        row = self._rows[index]
        self._placed[index] = row[0]
        self._bases[index] = self._table.find(row, self._hash)

    def _place(self, bucket: int) -> int:
        own = self._own
        base = self._table.place(self._hash, bucket)
        if base < 0:
            # No room near its place: this worker counts the key by itself, in a row of one slot.
            self._rows[own] = memoryview(array("q", [0] * SLOT_CELLS))
            base = 0
        self._placed[own] = self._rows[own][0]
        self._bases[own] = base
        return base

    def _sum_older(self, bucket: int) -> None:
        use = self.use(bucket)
        self._older_requests = sum(use.requests[:-2])
        self._older_tokens = sum(use.tokens[:-2])
        self._older = bucket


def hash_of(key_id: KeyId) -> int:
    """64 bits, as a signed cell; never 0, which marks a slot that was never used."""
    digest = blake2b(key_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def clear_running(row: memoryview) -> None:
    """Nothing runs in this row any more; what it counted stays counted."""
    slots = np.frombuffer(row, dtype=np.int64)[HEADER_CELLS:].reshape(-1, SLOT_CELLS)
    used = np.flatnonzero(slots[:, _HASH])
    slots[used, _RUNNING] = 0
    slots[used, _HELD] = 0


def _add(row: memoryview, at: int, bucket: int, count: int) -> None:
    cell = row[at]
    if cell >> _COUNT_BITS == bucket:
        count += cell & _COUNT
    row[at] = bucket << _COUNT_BITS | (count if count < _COUNT else _COUNT)


def _count(cell: int, bucket: int) -> int:
    return cell & _COUNT if cell >> _COUNT_BITS == bucket else 0


def _is_idle(row: memoryview, base: int, bucket: int) -> bool:
    if row[base + _RUNNING] or row[base + _HELD]:
        return False
    rings: Sequence[int] = row[base + _REQUESTS : base + _TOKENS + BUCKETS].tolist()
    return all(cell >> _COUNT_BITS <= bucket - BUCKETS for cell in rings)
