"""Reads how long keys last from the command line: overlaps such as 90m or 1d."""

import re
from typing import Annotated

import typer

from isochrone.core.errors import InvalidInput

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", help="When it stops to work, as 2027-06-30T00:00:00Z. [default: no]"),
]
RenewedOption = Annotated[
    str | None, typer.Option("--expires", help="When the new one stops to work. [default: as long "
                             "a term as a key was given before; a member's end stays]"),
]
OverlapOption = Annotated[
    str, typer.Option(help="How long the old key works beside the new one: 90m, 1d; 0 for not.")
]


def duration_s(text: str, option: str) -> int:
    """Whole seconds of a duration such as 30s, 90m, 12h, 7d or 0; raises InvalidInput."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is not None:
        return int(found[1]) * UNITS_S[found[2]]
    if text == "0":
        return 0
    raise InvalidInput([f"{option} {text}: expected a duration such as 90m, 12h, 7d, or 0"])
