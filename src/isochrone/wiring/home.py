"""Reads a `~` at the beginning of a name that somebody wrote."""

from pathlib import Path

from isochrone.core.errors import InvalidInput


def expanded(path: Path) -> Path:
    """With the folder of whoever is meant by a `~`. Raises InvalidInput where nobody knows them."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InvalidInput([f"{path}: the folder {path.parts[0]} is not known"]) from error
