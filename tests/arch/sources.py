"""Walks the project's own files for the tests beside it: paths, parsed modules, functions."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "isochrone"

# What belongs to the project: everything else at the root is made by tools.
FOLDERS = (
    ".ci", "benchmarks", "changes", "docs", "examples", "src", "tests", "tools",
)
NOT_OURS = {"__pycache__", ".hypothesis"}


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file: its path from the root, its text and its parsed form."""

    path: str
    text: str
    tree: ast.Module

    def within(self, *folders: str) -> bool:
        return any(self.path.startswith(f"src/isochrone/{folder}/") for folder in folders)


def files(*folders: str) -> Iterator[Path]:
    """Files below these folders of the root, without caches, in order."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and NOT_OURS.isdisjoint(path.parts):
                yield path


def text_files() -> Iterator[tuple[str, str]]:
    """(path from the root, text) of every text file of the project, top level included."""
    tops = [path for path in sorted(ROOT.iterdir()) if path.is_file()]
    for path in (*tops, *files(*FOLDERS)):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield str(path.relative_to(ROOT)), text


def modules(*folders: str) -> tuple[Module, ...]:
    """Every Python module below these folders of the root."""
    return tuple(_module(path) for path in files(*folders) if path.suffix == ".py")


@cache
def _module(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(str(path.relative_to(ROOT)), text, ast.parse(text))


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every call and every attribute path that is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = dotted(node)
            if name:
                yield name, node.lineno


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of names, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def imports(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """(module, name or empty, line) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module or "", alias.name, node.lineno
