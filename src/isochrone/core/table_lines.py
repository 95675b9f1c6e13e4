"""The lines of a table with commas between (CSV), for a reader of them."""

from collections.abc import Iterator

QUOTE = '"'


def lines_of(text: str) -> Iterator[str]:
    """Each a row by itself: a quotation mark that is open at the end of a line ends there. Or one
    stray mark would make a single cell of all rows after it."""
    for line in text.split("\n"):
        yield line.rstrip("\r") + QUOTE if line.count(QUOTE) % 2 else line
