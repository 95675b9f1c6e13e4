"""Asks before something is done that stops somebody or cannot be undone, and takes what is given on
standard input."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from isochrone.core.errors import InvalidInput

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def make_sure(question: str, *, is_sure: bool) -> None:
    """Return when the answer is yes, or with --yes. Raises InvalidInput when it is no, or when
    nobody is there to answer."""
    answer = is_sure
    if not is_sure:
        try:
            answer = typer.confirm(question, err=True)
        except typer.Abort:
            if sys.stdin.isatty():
                raise  # interrupted
            print(file=sys.stderr)
    if not answer:
        raise InvalidInput(["nothing was done; answer y, or give --yes"])


def given(read: Callable[[], str]) -> str:
    """What is read from standard input. Raises InvalidInput, without it, where it is no text."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise InvalidInput([f"standard input: is not text in {error.encoding}"]) from error
