"""Finds stop strings that lie across the seam of a continued answer.

An engine looks for stop strings in what it makes itself, so one that began in the text before the
seam is seen by nobody else. It can reach at most its length less one into the new text.
"""

from collections.abc import Sequence
from typing import Literal


def tail_for(text: str, stops: Sequence[str]) -> str:
    """As much of the end of `text` as a stop string across the seam can begin in."""
    longest = max((len(stop) for stop in stops), default=0)
    return text[-(longest - 1) :] if longest > 1 else ""


def across(tail: str, new: str, stops: Sequence[str]) -> Literal["clear", "open", "stopped"]:
    """Judge `new`, all text behind the seam so far, after `tail` (see `tail_for`).

    `stopped`: a stop string lies across the seam; delivered characters cannot be taken back, so
    the answer ends at the seam. `open`: more text must come before that is known, and `new` has to
    wait. `clear`: none does, now or later.
    """
    joined = tail + new
    judged: Literal["clear", "open"] = "clear"
    for begin in range(len(tail)):
        for stop in stops:
            if len(stop) <= len(tail) - begin:
                continue  # it would lie before the seam, where the first engine looked
            if joined.startswith(stop, begin):
                return "stopped"
            if stop.startswith(joined[begin:]):
                judged = "open"
    return judged
