"""What a wait that a site told will be when a request gets there.

A digest is about half a second old when it is used, and a queue has gone back towards its usual
length meanwhile: who says that nobody waits will have somebody by then, and the other way round. A
wait of a second is mostly still there; one of 50 ms has nothing to do with the one that was told.
See docs/routing.md.
"""

from typing import Final

UNKNOWN_MS: Final = -1.0  # usual wait, before anything was told
NEWS_MS: Final = 300.0    # of what was told and what is usual together, at which half is believed
SHARE: Final = 0.2        # of one digest in what is usual: five seconds or so


def usual_ms(before_ms: float, told_ms: float) -> float:
    """The usual wait, after one more digest; `before_ms` may be `UNKNOWN_MS`."""
    return told_ms if before_ms < 0.0 else before_ms + SHARE * (told_ms - before_ms)


def lean_ms(usual: float, told_ms: float) -> float:
    """By how much longer a newcomer will wait than was told, in milliseconds; below 0: shorter.
    Never more than the difference to what is usual."""
    return (usual - told_ms) * NEWS_MS / (NEWS_MS + usual + told_ms)
