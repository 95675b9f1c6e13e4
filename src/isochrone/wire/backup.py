"""What a backup says of itself: `manifest.json` beside the files that it lists.

A folder without a manifest is no backup: it is written last. Sums are text, since JSON readers lose
digits of large numbers.
"""

import msgspec

VERSION = 1


class FileCopy(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the backup. `sha256` is of its bytes as they lie there."""

    name: str
    size_bytes: int
    sha256: str


class TableCopy(msgspec.Struct, frozen=True, kw_only=True):
    """One table: its rows in the order of its primary key, in PostgreSQL's text format, gzipped.
    `content_sha256` is of the text, so that a table that was restored can be compared."""

    name: str
    columns: tuple[str, ...]
    rows: int
    content_sha256: str
    file: FileCopy


class LedgerSum(msgspec.Struct, frozen=True, kw_only=True):
    """What all entries of one kind of account came to, in 10^-12 of the currency's unit."""

    account: str
    currency: str
    amount_pico: str


class BookTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What a restored book must come to as well. Tokens are those of all hours."""

    requests: str
    input_uncached: str
    input_cached: str
    output: str
    ledger: tuple[LedgerSum, ...]


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`schema` is the revision of the book; `keys` are files that hold secrets; `archive` are those
    of days that left the book, which are not copied. Instants are wall ns UTC."""

    version: int
    release: str
    schema: str
    made_at: int
    tables: tuple[TableCopy, ...]
    keys: tuple[FileCopy, ...]
    archive: tuple[FileCopy, ...]
    totals: BookTotals
