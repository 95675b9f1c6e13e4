"""Files that a command will write: what hinders them is said before hours of play."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from isochrone.core.errors import InvalidInput


def check_outputs(files: Mapping[str, Path | None]) -> None:
    """`files` by the options that name them. Raises InvalidInput with all problems."""
    if problems := problems_of(files):
        raise InvalidInput(problems)


def problems_of(
    files: Mapping[str, Path | None], read: Sequence[Path | None] = ()
) -> list[str]:
    """What would keep one of these from being written, or from staying as it was written, or cost
    one of those that are `read`."""
    named = {option: file for option, file in files.items() if file is not None}
    problems = [
        f"{option} {file}: {problem}"
        for option, file in named.items() if (problem := _hindered(file))
    ]
    inputs = {os.path.realpath(file) for file in read if file is not None and file.is_file()}
    problems += [
        f"{option} {file}: is read here, and would be lost"
        for option, file in named.items() if os.path.realpath(file) in inputs
    ]
    first: dict[str, str] = {}
    for option, file in named.items():
        other = first.setdefault(os.path.realpath(file), option)
        if other != option and (file.is_file() or not file.exists()):  # a device takes both
            problems.append(f"{other} and {option} name one file, {file}")
    return problems


def _hindered(file: Path) -> str | None:
    """Why this cannot be written, as far as is known before it is."""
    if file.is_dir():
        return "is a folder"
    if not file.parent.is_dir():
        return f"the folder {file.parent} does not exist"
    if not os.access(file.parent, os.W_OK) and not (file.exists() and not file.is_file()):
        return f"the folder {file.parent} cannot be written to"
    return None
