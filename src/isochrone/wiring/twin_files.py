"""Reads files that somebody named: plain or gzip, and packaged ones by their bare names."""

import gzip
import os
import zlib
from pathlib import Path

from isochrone.adapters.packaged import DATA
from isochrone.core.errors import InvalidInput

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


def bytes_of(path: Path) -> bytes:
    """Raises InvalidInput."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read ({error.strerror})"]) from error


def text_of(path: Path) -> str:
    """Unpacked. Raises InvalidInput."""
    data = bytes_of(path)
    try:
        plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        return plain.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidInput([f"{path}: is no text ({error})"]) from error
