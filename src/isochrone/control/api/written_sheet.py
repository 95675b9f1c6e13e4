"""Judges a price sheet as people write it, and says at once all that is wrong with it."""

from isochrone.control.api.instants import instant_of
from isochrone.core.billing.new_sheet import problems_of_new
from isochrone.core.billing.sheet import PriceSheet
from isochrone.core.errors import InvalidInput
from isochrone.wire.prices import SheetText, sheet_of


def judged(text: SheetText) -> PriceSheet:
    """The sheet as version 1. Raises InvalidInput with all problems."""
    faults: list[str] = []
    valid_from = None
    try:
        valid_from = instant_of("valid_from", str(text.valid_from))
    except InvalidInput as error:
        faults += error.problems
    try:
        sheet = sheet_of(text, version=1, valid_from=valid_from or 0)
        faults += problems_of_new(sheet)
    except InvalidInput as error:
        raise InvalidInput([*faults, *error.problems]) from error
    if faults:
        raise InvalidInput(faults)
    return sheet
