"""Parses one TOML file into one frozen settings dataclass, and renders settings back to TOML.

All problems of a file are found before anything is refused: unknown keys, missing keys, wrong
types, numbers out of range. Fields may be str, int, float, bool, Path, tuple[str, ...], a Literal
of strings, or any of these or None. Units in names give the bounds: `port` and `*_port` hold
0..65535, `*_s`, `*_ms` and `*_bytes` are above zero, and durations at most LONGEST. `host` and
`*_host` name something: an empty one would listen at every address without saying so. A field's
metadata may say `min` and `max`, or the `pattern` of a string and, in words, what it `expected`.
Relative paths are relative to the folder of the TOML file. Metadata `secret` marks a value that
must not be shown.
"""

import dataclasses
import json
import re
import sys
import tomllib
import types
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from isochrone.core.errors import InvalidInput

S = TypeVar("S")

MASK = "********"
_PASSWORD = re.compile(r"(password=)('[^']*'|\S+)|(://[^:/@\s]*:)([^@/\s]+)(?=@)")
_ABOVE_ZERO = ("_s", "_ms", "_bytes")
_DURATIONS = ("_s", "_ms")
LONGEST = 1_000_000_000  # of a duration: thirty years of seconds, which nanoseconds can count


def load(path: Path, kind: type[S]) -> S:
    """Read settings of `kind` from a TOML file; raises InvalidInput with every problem found."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput([f"{path}: cannot be read: {reason}"]) from error
    return parse(text, kind, source=str(path), folder=path.parent)


def parse(text: str, kind: type[S], *, source: str, folder: Path) -> S:
    """Parse settings from TOML text; `source` names it in messages."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number may be too long for Python
        raise InvalidInput([f"{source}: not valid TOML: {error}"]) from error
    problems: list[str] = []
    values = values_of(document, kind, folder.absolute(), problems)
    if problems:
        raise InvalidInput([f"{source}: {problem}" for problem in problems])
    return kind(**values)


def render(settings: object) -> str:
    """TOML text that `parse` turns into the same settings; unset optional values are left out."""
    lines = [
        f"{name} = {toml_value(value)}" for name, value, _ in _items(settings) if value is not None
    ]
    return "\n".join(lines) + "\n"


def render_masked(settings: object) -> str:
    """The effective settings for people: defaults included, secrets masked, None as a comment."""
    lines = []
    for name, value, secret in _items(settings):
        if value is None:
            lines.append(f"# {name} is not set")
        elif secret:
            lines.append(f'{name} = "{MASK}"')
        else:
            lines.append(f"{name} = {masked(toml_value(value))}")
    return "\n".join(lines) + "\n"


def masked(text: str) -> str:
    """`text` with passwords in connection strings and URLs replaced."""
    return _PASSWORD.sub(lambda match: (match[1] or match[3]) + MASK, text)


def _items(settings: object) -> list[tuple[str, Any, bool]]:
    assert dataclasses.is_dataclass(settings)
    return [
        (field.name, getattr(settings, field.name), bool(field.metadata.get("secret")))
        for field in dataclasses.fields(settings)
    ]


def toml_value(value: object) -> str:
    """TOML text of one scalar or tuple."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    # A JSON string is a TOML basic string, except that TOML wants DEL escaped too.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def values_of(
    document: Mapping[str, Any], kind: type, folder: Path, problems: list[str],
    *, without: Container[str] = (),
) -> dict[str, Any]:
    """The given values for the fields of `kind`; notes problems. `without` are unknown here."""
    fields = {
        field.name: field for field in dataclasses.fields(kind) if field.name not in without
    }
    hints = get_type_hints(kind)
    known = ", ".join(sorted(fields))
    problems += [
        f"unknown key {name!r}; known keys: {known}"
        for name in sorted(document.keys() - fields.keys())
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in document:
            problem, value = _value(document[name], hints[name], folder)
            problem = problem or _out_of_range(name, value, field.metadata)
            problem = problem or _no_host(name, value)
            problem = problem or _unlike_pattern(value, field.metadata)
            if problem is not None:
                problems.append(f"{name}: {problem}, not {_shown(field, document[name])}")
            values[name] = value
        elif (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ):
            problems.append(f"missing key {name!r} ({_type_name(hints[name])})")
    return values


def _shown(field: "dataclasses.Field[Any]", given: object) -> str:
    return MASK if field.metadata.get("secret") else masked(repr(given))


def _value(given: object, hint: Any, folder: Path) -> tuple[str | None, object]:
    """(problem, None) or (None, value) of one given TOML value for one type hint."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        return _value(given, inner[0], folder)
    wrong = f"must be {_type_name(hint)}", None
    if origin is Literal:
        return (None, given) if given in get_args(hint) else wrong
    if origin is tuple:
        if isinstance(given, list) and all(isinstance(item, str) for item in given):
            return None, tuple(given)
        return wrong
    if hint is float:
        if isinstance(given, int | float) and not isinstance(given, bool):
            # Whole numbers are of any size here, and floats are not.
            return (None, float(given)) if abs(given) <= sys.float_info.max else wrong
        return wrong
    if hint is Path:
        return (None, folder / given) if _is_path(given) else wrong
    if type(given) is hint:
        return None, given
    return wrong


def _is_path(given: object) -> TypeGuard[str]:
    return isinstance(given, str) and bool(given) and "\0" not in given


def _out_of_range(name: str, value: object, metadata: Mapping[str, Any]) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    least, most = metadata.get("min"), metadata.get("max")
    if name == "port" or name.endswith("_port"):
        least, most = metadata.get("min", 0), metadata.get("max", 65535)
    if most is None and name.endswith(_DURATIONS):
        most = LONGEST
    if least is None and name.endswith(_ABOVE_ZERO) and value <= 0:
        return "must be above 0"
    if least is not None and value < least:
        return f"must be at least {least}"
    if most is not None and value > most:
        return f"must be at most {most}"
    return None


def _no_host(name: str, value: object) -> str | None:
    if (name == "host" or name.endswith("_host")) and isinstance(value, str) and not value.strip():
        return "must be an address or the name of a host"
    return None


def _unlike_pattern(value: object, metadata: Mapping[str, Any]) -> str | None:
    pattern = metadata.get("pattern")
    if pattern is None or not isinstance(value, str) or re.fullmatch(pattern, value):
        return None
    return f"must be {metadata['expected']}"


def _type_name(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _type_name(next(part for part in get_args(hint) if part is not type(None)))
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    if origin is tuple:
        return "a list of strings"
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a path")
