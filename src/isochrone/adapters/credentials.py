"""Finds the key of an upstream: `file:PATH` or `env:NAME`, read when it is needed, never stored."""

import os
from pathlib import Path

from isochrone.core.errors import Unavailable


def read_credential(reference: str | None) -> str | None:
    """The secret behind `reference`, None for None; raises Unavailable when it cannot be read."""
    if reference is None:
        return None
    kind, _, place = reference.partition(":")
    if kind == "env":
        value = os.environ.get(place, "")
    elif kind == "file":
        try:
            value = Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"cannot read the key file {place}: {error}") from error
    else:
        raise Unavailable(f"a key is named by file:PATH or env:NAME, not by {kind}:...")
    value = value.strip()
    if not value or not value.isprintable() or not value.isascii():
        raise Unavailable(f"{reference} holds no usable key (one line of plain characters)")
    return value
