"""How loops call the synchronous store: on a thread in the live process, directly in the twin."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Offload(Protocol):
    """Runs `call` where it may block, and gives its answer to the loop."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...
