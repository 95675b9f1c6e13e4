"""Reads a price sheet from a TOML file, for the command line and for control's start."""

import tomllib
from datetime import datetime

from isochrone.control.api.written_sheet import judged
from isochrone.core.billing.sheet import PriceSheet
from isochrone.core.errors import InvalidInput
from isochrone.wire.prices import SheetText, sheet_text_of


def read_text(text: str, source: str) -> SheetText:
    """The sheet as it is written; `source` names it in messages. Raises InvalidInput."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput([f"{source}: not valid TOML: {error}"]) from error
    begins = content.get("valid_from")
    if isinstance(begins, datetime):
        content["valid_from"] = begins.isoformat()  # TOML has instants, people use them
    try:
        return sheet_text_of(content)
    except InvalidInput as error:
        raise InvalidInput([f"{source}: {problem}" for problem in error.problems]) from error


def read_sheet(text: str, source: str) -> PriceSheet:
    """The sheet as version 1. Raises InvalidInput with all problems."""
    written = read_text(text, source)
    try:
        return judged(written)
    except InvalidInput as error:
        raise InvalidInput([f"{source}: {problem}" for problem in error.problems]) from error
