"""Reads files that somebody named: plain or gzip, and packaged ones by their bare names."""

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO

from isochrone.adapters.packaged import DATA
from isochrone.core.errors import InvalidInput

MOST_BYTES = 2_000_000_000   # of a trace or a table, unpacked too
MOST_PLAN_BYTES = 10_000_000  # of a scenario or an experiment
CHUNK_BYTES = 1 << 20
FOLDERS = ("traces", "workloads", "sites", "network")  # of the packaged data


def shown(name: str) -> str:
    """The name of a file as text that can be printed and written: names may have any bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def at_home(file: str) -> Path:
    """With the folder of whoever is meant by a `~`; as it is where nobody knows them."""
    try:
        return Path(file).expanduser()
    except RuntimeError:
        return Path(file)


def path_of(file: str) -> Path:
    """The file, or the packaged one of this bare name where there is none here."""
    path = at_home(file)
    if not path.exists() and path.name == file:
        for folder in FOLDERS:
            packaged = DATA / folder / file
            if packaged.is_file():
                return packaged
    return path


def is_packaged(file: str) -> bool:
    """Whether this is the bare name of a packaged file."""
    return Path(file).name == file and any((DATA / each / file).is_file() for each in FOLDERS)


def bytes_of(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Raises InvalidInput, above all where there is more than `most`: a pipe or a device may have
    no end."""
    try:
        with path.open("rb") as file:
            return _all_of(file, path, most)
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read ({error.strerror})"]) from error


def text_of(path: Path, *, most: int = MOST_BYTES) -> str:
    """Unpacked. Raises InvalidInput."""
    try:
        return unpacked_of(path, most=most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput([f"{path}: is no text ({error})"]) from error


def unpacked_of(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """What a plain or a gzip file says; neither may have more than `most`. Raises InvalidInput."""
    data = bytes_of(path, most=most)
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return _all_of(gzip.GzipFile(fileobj=io.BytesIO(data)), path, most)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput([f"{path}: is damaged gzip ({error})"]) from error


def _all_of(file: BinaryIO | gzip.GzipFile, path: Path, most: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := file.read(CHUNK_BYTES):
        size += len(chunk)
        if size > most:
            raise InvalidInput([f"{path}: has more than {most / 1e6:,.0f} MB, or no end"])
        chunks.append(chunk)
    return b"".join(chunks)
