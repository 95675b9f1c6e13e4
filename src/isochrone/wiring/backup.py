"""Backs up and restores book and keys: a folder of files, with a manifest that is written last.

    manifest.json    what there is, with digests, the schema and what the book comes to
    tables/NAME.copy.gz    the book
    keys/NAME    the files of control that hold secrets

A backup is made beside its place and moved there. A restoration changes the database in one
transaction and the keys after it.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from isochrone import __version__
from isochrone.adapters.postgres.book_copy import CopiedBook, Tell, copy_in, copy_of, copy_out
from isochrone.adapters.postgres.pool import check_conninfo
from isochrone.control.settings import ControlSettings
from isochrone.core.errors import InvalidInput
from isochrone.wire.backup import VERSION, BackupManifest, FileCopy
from isochrone.wiring.private_file import write_private

MANIFEST, TABLES, KEYS = "manifest.json", "tables", "keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a cloud keeps its book and its keys. `database` names the owner of the tables."""

    database: str
    keys: Mapping[str, Path]


def place_of(settings: ControlSettings) -> Place:
    """Where this control keeps them. The key that `isochrone up` printed lies beside the admin's.
    Raises InvalidInput where it names no database."""
    database = settings.owner_database or settings.database
    check_conninfo(database)
    return Place(
        database=database,
        keys={
            "signing_key": settings.signing_key, "admin_key": settings.admin_key,
            "nats_secrets": settings.nats_secrets, "nats_credentials": settings.nats_credentials,
            "api_key": settings.admin_key.with_name("api.key"),
        },
    )


def backup(place: Place, folder: Path, *, now: int, tell: Tell) -> BackupManifest:
    """Back up into `folder`, which must not be there yet. Raises InvalidInput, StoreUnavailable."""
    if not folder.name or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InvalidInput([f"{folder} exists already; name a folder that does not"])
    partial = folder.with_name(folder.name + ".part")
    try:
        if partial.exists():  # of a backup that was interrupted
            shutil.rmtree(partial)
        for each in (partial, partial / TABLES, partial / KEYS):
            each.mkdir(mode=0o700, parents=each is partial)
        book = copy_out(place.database, partial / TABLES, tell=tell)
        manifest = BackupManifest(
            version=VERSION, release=__version__, schema=book.schema, made_at=now,
            tables=book.tables, archive=book.archive, totals=book.totals,
            keys=_copy_keys(place, partial / KEYS),
        )
        text = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        write_private(partial / MANIFEST, text)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise InvalidInput([f"{error.filename or folder}: {error.strerror}"]) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _copy_keys(place: Place, folder: Path) -> tuple[FileCopy, ...]:
    copies = []
    for name, path in place.keys.items():
        if not path.exists() and name == "api_key":
            continue
        write_private(folder / name, path.read_bytes())
        copies.append(copy_of(folder / name, f"{KEYS}/{name}"))
    return tuple(copies)


def read_backup(folder: Path, *, tell: Tell) -> BackupManifest:
    """The manifest of a backup whose files are all as it says. Raises InvalidInput with all
    problems."""
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=BackupManifest)
    except FileNotFoundError as error:
        raise InvalidInput(
            [f"{folder} is no backup, or not a whole one: it has no {MANIFEST}"]
        ) from error
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read: {error.strerror}"]) from error
    except msgspec.MsgspecError as error:
        raise InvalidInput([f"{path} is damaged, or of a newer release: {error}"]) from error
    if manifest.version != VERSION:
        raise InvalidInput(
            [f"{path} is of version {manifest.version}, this release reads {VERSION}; restore it "
             f"with release {manifest.release} or a later one"]
        )
    problems = []
    for each in (*(table.file for table in manifest.tables), *manifest.keys):
        tell(f"reading {each.name}", 0)
        problem = _problem_of(folder, each)
        if problem is not None:
            problems.append(problem)
    if problems:
        raise InvalidInput(problems)
    return manifest


def _problem_of(folder: Path, listed: FileCopy) -> str | None:
    place, _, name = listed.name.partition("/")
    if place not in (TABLES, KEYS) or not name or name != Path(name).name:
        return f"the manifest lists {listed.name!r}, which is no file of a backup"
    path = folder / place / name
    try:
        found = copy_of(path, listed.name)
    except OSError as error:
        return f"{path}: {error.strerror}"
    if found != listed:
        return (
            f"{path} is damaged: {found.size_bytes} bytes with the digest {found.sha256[:16]}..., "
            f"the manifest says {listed.size_bytes} and {listed.sha256[:16]}..."
        )
    return None


def restore(place: Place, folder: Path, *, replacing: bool, tell: Tell) -> BackupManifest:
    """Restore the backup in `folder`: all of it or nothing. Raises InvalidInput where a file is not
    as the manifest says, where there is a book or another key already and not `replacing`, or where
    the restored book does not come to what it should; raises StoreUnavailable."""
    manifest = read_backup(folder, tell=tell)
    keys = {
        Path(each.name).name: (folder / each.name).read_bytes() for each in manifest.keys
        if Path(each.name).name in place.keys
    }
    other = [
        f"{path} holds another key; move it away, or say --replace to lose it"
        for name, path in place.keys.items()
        if name in keys and path.exists() and _digest(path.read_bytes()) != _digest(keys[name])
    ]
    if other and not replacing:
        raise InvalidInput(other)
    book = CopiedBook(
        schema=manifest.schema, tables=manifest.tables, archive=manifest.archive,
        totals=manifest.totals,
    )
    with _room_for(place, keys):
        copy_in(place.database, folder / TABLES, book, replacing=replacing, tell=tell)
        for name, content in keys.items():
            write_private(place.keys[name], content)
    return manifest


@contextmanager
def _room_for(place: Place, keys: Mapping[str, bytes]) -> Iterator[None]:
    """Within this context there is room for the keys beside their places: a book without its keys
    would be worse than none. Raises InvalidInput where there is not."""
    beside = {name: place.keys[name].with_name(f".{name}.restoring") for name in keys}
    try:
        for name, path in beside.items():
            try:
                write_private(path, keys[name])
            except OSError as error:
                raise InvalidInput(
                    [f"{place.keys[name]}: cannot be written: {error.strerror}"]
                ) from error
        yield
    finally:
        for path in beside.values():
            with suppress(OSError):
                path.unlink()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
