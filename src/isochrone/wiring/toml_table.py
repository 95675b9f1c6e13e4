"""Reads typed values out of parsed TOML tables and notes every problem instead of raising at once.

A getter that finds a problem notes it and returns a harmless value, so that the reader can go on
and the person who wrote the file sees all problems together.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches

from isochrone.core.errors import InvalidInput

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(2262, 1, 1, tzinfo=UTC)  # nanoseconds since 1970 have 63 bits


class Problems:
    """The problems of one file, in the order found; each starts with the file and the place."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[str] = []

    def add(self, where: str, what: str) -> None:
        place = f"{where}: " if where else ""
        text = f"{self.source}: {place}{what}"
        if not text.isprintable():  # a value may hold a line end, or commands for a terminal
            text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        self.found.append(text)

    def raise_if_any(self) -> None:
        """Raise InvalidInput when anything was noted."""
        if self.found:
            raise InvalidInput(self.found)


class TomlTable:
    """One table of the file; `where` says which, for people. Call `finish` when all keys are read.

    Every key that a getter is asked for counts as known, whether it is there or not.
    """

    def __init__(self, where: str, values: Mapping[str, object], problems: Problems) -> None:
        self.where = where
        self._values = values
        self._problems = problems
        self._known: list[str] = []

    def problem(self, what: str) -> None:
        self._problems.add(self.where, what)

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, *, pattern: str | None = None, expected: str = "text") -> str | None:
        """The text of `key`, None when it is absent; blank text is a problem."""
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, str) and value.strip() and re.fullmatch(pattern or r"[^\n\0]*", value):
            return value
        self._wrong(key, expected, value)
        return None

    def need_text(self, key: str, *, pattern: str | None = None, expected: str = "text") -> str:
        """Like `text`, but an absent key is a problem; empty text then stands for it."""
        self._need(key, expected)
        return self.text(key, pattern=pattern, expected=expected) or ""

    def choice(self, key: str, options: Sequence[str], *, default: str | None = None) -> str | None:
        """One of `options`, None when it is not; without a default the key must be there."""
        expected = "one of " + ", ".join(options)
        if default is None:
            self._need(key, expected)
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, str) and value in options:
            return value
        self._wrong(key, expected + _did_you_mean(value, options), value)
        return None

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._wrong(key, "true or false", value)
            return default
        return value

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """A whole number within [low, high]; without a default the key must be there."""
        expected = f"a whole number from {low} to {high}"
        if default is None:
            self._need(key, expected)
        value = self._take(key)
        if value is None:
            return low if default is None else default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._wrong(key, expected, value)
            return low if default is None else default
        return value

    def number(
        self, key: str, low: float, high: float, *, default: float | None = None
    ) -> float:
        """A finite number within [low, high]; without a default the key must be there."""
        expected = f"a number from {low:g} to {high:g}"
        if default is None:
            self._need(key, expected)
        value = self._take(key)
        fallback = low if default is None else default
        if value is None:
            return fallback
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        self._wrong(key, expected, value)  # NaN is in no range
        return fallback

    def instant(self, key: str, *, default: int) -> int:
        """Wall nanoseconds UTC of a TOML date and time, which must have its offset."""
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, datetime) and value.tzinfo is not None and _EPOCH <= value < _LAST:
            return (value - _EPOCH) // timedelta(microseconds=1) * 1000
        expected = "a date and time with its offset, as 2027-01-01T00:00:00Z, from 1970 to 2261"
        self._wrong(key, expected, value)
        return default

    def texts(self, key: str, count: int) -> tuple[str, ...]:
        """Exactly `count` texts; empty when there is a problem."""
        expected = f"a list of {count} names"
        self._need(key, expected)
        value = self._take(key)
        if value is None:
            return ()
        if isinstance(value, list) and len(value) == count:
            texts = tuple(each for each in value if isinstance(each, str))
            if len(texts) == count:
                return texts
        self._wrong(key, expected, value)
        return ()

    def names(self, key: str, *, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of one text or more; without a default the key must be there."""
        expected = "a list of names"
        if default is None:
            self._need(key, expected)
        value = self._take(key)
        if value is None:
            return default or ()
        if isinstance(value, list) and value:
            texts = tuple(each for each in value if isinstance(each, str) and each.strip())
            if len(texts) == len(value):
                return texts
        self._wrong(key, expected, value)
        return default or ()

    def tables(self, key: str, *, name_key: str | None = None) -> list["TomlTable"]:
        """The array of tables `[[key]]`, empty when absent; each knows its name or its number."""
        value = self._take(key)
        if value is None:
            return []
        header = f"{self.where.split(' ')[0]}.{key}" if self.where else key
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self.problem(f"{key} is not an array of tables; write [[{header}]]")
            return []
        return [
            TomlTable(self._place(key, number, each, name_key), each, self._problems)
            for number, each in enumerate(value, start=1)
        ]

    def table(self, key: str) -> "TomlTable | None":
        """The table `key`, None when it is absent."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.problem(f"{key} is not a table")
            return None
        return TomlTable(f"{self.where}, {key}" if self.where else key, value, self._problems)

    def plain(self, key: str) -> Mapping[str, object]:
        """The table `key` as it is written, for somebody else to read; empty when it is absent."""
        value = self._take(key)
        if value is None or isinstance(value, dict):
            return value or {}
        self._wrong(key, "a table", value)
        return {}

    def scalars(self, key: str) -> tuple[str | int | float | bool, ...]:
        """A list of texts, numbers and booleans, one at least."""
        value = self._take(key)
        if isinstance(value, list) and value:
            found = [each for each in value if isinstance(each, str | int | float)]
            if len(found) == len(value):
                return tuple(found)
        self._wrong(key, "a list of texts or numbers", value)
        return ()

    def finish(self) -> None:
        """Note every key that no getter asked for."""
        for key in self._values:
            if key not in self._known:
                hint = _did_you_mean(key, self._known)
                known = ", ".join(sorted(self._known))
                self.problem(f'unknown key "{key}"{hint or f"; known keys: {known}"}')

    def _place(
        self, key: str, number: int, values: Mapping[str, object], name_key: str | None
    ) -> str:
        name = values.get(name_key) if name_key is not None else None
        label = f'{key} "{name}"' if isinstance(name, str) and name else f"{key} {number}"
        return f"{self.where}, {label}" if self.where else label

    def _take(self, key: str) -> object | None:
        if key not in self._known:
            self._known.append(key)
        return self._values.get(key)

    def _need(self, key: str, expected: str) -> None:
        if key not in self._values:
            self.problem(f"{key} is missing; expected {expected}")

    def _wrong(self, key: str, expected: str, value: object) -> None:
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        self.problem(f"{key} is {shown}; expected {expected}")


def _did_you_mean(word: object, options: Sequence[str]) -> str:
    close = get_close_matches(word, options, n=1) if isinstance(word, str) else []
    return f'; did you mean "{close[0]}"?' if close else ""
