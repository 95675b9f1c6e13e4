"""What a process that plays an experiment tells the one that started it: plan, progress, results.

JSON, in files and on standard output of `isochrone twin`; control and the twin meet nowhere else.
The nouns are those of `core/lifecycle/experiment`.
"""

from typing import TypeVar

import msgspec

from isochrone.core.errors import InvalidInput

N = TypeVar("N")


def decoded(kind: type[N], data: bytes, source: str) -> N:
    """Raises InvalidInput where this is no such message."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidInput([f"{source}: {error}"]) from error
