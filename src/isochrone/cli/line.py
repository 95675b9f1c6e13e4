"""What a command line of `isochrone` looks like, and how its failures become one clear line."""

import os
import sys
from errno import ENOSPC
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isochrone.core.errors import InvalidInput, IsochroneError

MOST = 2**31 - 1  # of whatever is counted: more rows or seeds than anybody has
LimitOption = Annotated[
    int | None, typer.Option(min=1, max=MOST, help="Most rows. [default: all]")
]


class Group(TyperGroup):
    """Commands of one kind. Options that stand before the command hold for it: `isochrone key
    --state mine revoke ID` must not revoke a key of another cloud."""

    def invoke(self, ctx: Any) -> Any:
        given = {name: value for name, value in ctx.params.items() if value}
        ctx.default_map = dict.fromkeys(self.commands, given)
        return super().invoke(ctx)


def new_line() -> typer.Typer:
    """A command line without commands."""
    return typer.Typer(
        name="isochrone",
        help="One inference cloud over GPU pools in many data centres.",
        epilog="Start with `isochrone up`; then, in another terminal, `isochrone chat 'Hello!'`.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_line(app: typer.Typer) -> int:
    """Run a command line; return its exit code. Raises KeyboardInterrupt."""
    try:
        code = app(standalone_mode=False)
    except InvalidInput as error:
        for problem in error.problems:
            _complain(problem)
        return 2
    except IsochroneError as error:
        _complain(error.message)
        return 1
    except typer.TyperException as error:
        _complain(" ".join(f"{error.format_message()} See --help.".split()))
        return error.exit_code
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except BrokenPipeError:
        _print_no_more()  # the reader of our output left
        return 1
    except OSError as error:
        if error.filename is None and error.errno == ENOSPC:
            _complain(f"the output cannot be written: {error.strerror}")
            _print_no_more()
            return 1
        if error.filename is None:
            raise
        _complain(f"{os.fsdecode(error.filename)}: {error.strerror}")
        return 2
    return code if isinstance(code, int) else 0


def _print_no_more() -> None:
    """What is still to be printed at exit goes nowhere, or the interpreter would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(line: str) -> None:
    print(f"isochrone: {line}", file=sys.stderr)
