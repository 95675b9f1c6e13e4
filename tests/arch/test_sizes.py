"""Files, functions and lines stay small; what is over a limit is listed and may only shrink."""

import ast
from pathlib import Path

from tests.arch.sources import ROOT, files, modules

FILE_LINES = 500
FUNCTION_LINES = 60
LINE_CHARACTERS = 100

CODE = ("src", "tests", "tools", "benchmarks", "examples")
LISTED = Path(__file__).with_name("oversize.txt")
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base", "stuff"}


def oversize() -> dict[str, int]:
    """Every file and function over its limit, with its size in lines."""
    found = {}
    for path in files(*CODE):
        if path.suffix in (".py", ".sql"):
            lines = path.read_text(encoding="utf-8").count("\n")
            if lines > FILE_LINES:
                found[str(path.relative_to(ROOT))] = lines
    for module in modules(*CODE):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    found[f"{module.path}:{node.name}"] = lines
    return found


def listed() -> dict[str, int]:
    """`path size` or `path:function size` a line; `#` starts a comment."""
    entries = {}
    for line in LISTED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, size = line.split()
            entries[name] = int(size)
    return entries


def test_files_and_functions_are_small_or_listed() -> None:
    allowed = listed()
    grown = {
        name: size for name, size in oversize().items() if size > allowed.get(name, 0)
    }
    assert grown == {}, "split it; the list of exceptions may only shrink"


def test_the_list_of_exceptions_shrinks_with_the_code() -> None:
    now = oversize()
    stale = {name: size for name, size in listed().items() if now.get(name) != size}
    assert stale == {}, f"lower or remove these in {LISTED.name}"


def test_lines_are_short() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files(*CODE)
        if path.suffix in (".py", ".sql")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > LINE_CHARACTERS
    ]
    assert found == []


def test_every_module_says_what_it_does() -> None:
    found = [each.path for each in modules(*CODE) if not ast.get_docstring(each.tree)]
    assert found == []


def test_names_say_what_is_inside() -> None:
    found = [
        each.path for each in modules(*CODE) if VAGUE & set(Path(each.path).with_suffix("").parts)
    ]
    assert found == []
