"""Core is pure; time, chance and the environment enter only where the outside does."""

import ast

import pytest

from tests.arch.sources import Module, calls, dotted, imports, modules

# What core may import besides itself: nothing here reads or writes anything outside the process.
PURE = {
    "abc", "bisect", "collections", "collections.abc", "dataclasses", "difflib", "enum",
    "fractions", "functools", "hashlib", "heapq", "itertools", "math", "numpy", "operator", "re",
    "shlex", "statistics", "string", "types", "typing", "unicodedata", "uuid",
}
IMPURE_NAMES = {"open", "print", "input", "eval", "exec", "compile", "breakpoint", "__import__"}

# Only there may the clock, chance and the environment be read; everyone else is handed them.
OUTSIDE = ("adapters", "wiring", "cli")
CLOCK = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter",
    "time.perf_counter_ns", "time.sleep", "datetime.now", "datetime.utcnow", "datetime.today",
    "date.today", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today",
}
CHANCE = {"uuid.uuid1", "uuid.uuid4", "uuid4", "uuid1", "os.urandom", "SystemRandom"}
ENVIRONMENT = {"os.environ", "os.getenv", "os.putenv"}


@pytest.mark.parametrize("module", modules("src/isochrone/core"), ids=lambda module: module.path)
def test_core_is_pure(module: Module) -> None:
    for name, _, line in imports(module.tree):
        own = name == "isochrone.core" or name.startswith("isochrone.core.")
        rng = module.path.endswith("core/rng.py") and name == "random"
        assert own or rng or name in PURE, f"{module.path}:{line} imports {name}"
    for node in ast.walk(module.tree):
        where = f"{module.path}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{where} is async"
        assert not isinstance(node, ast.Global | ast.Nonlocal), f"{where} changes outer state"
        if isinstance(node, ast.Name):
            assert node.id not in IMPURE_NAMES, f"{where} uses {node.id}"


def test_clock_chance_and_environment_enter_by_ports() -> None:
    found = []
    for module in modules("src"):
        if module.within(*OUTSIDE):
            continue
        for name, line in calls(module.tree):
            if name in CLOCK | CHANCE | ENVIRONMENT:
                found.append(f"{module.path}:{line} reads {name}")
        for name, part, line in imports(module.tree):
            if name in ("time", "secrets") or f"{name}.{part}" in CLOCK | CHANCE | ENVIRONMENT:
                found.append(f"{module.path}:{line} imports {name}")
    assert found == []


def test_chance_is_a_seeded_stream_everywhere() -> None:
    found = [
        f"{module.path}:{line} imports {name}.{part}"
        for module in modules("src")
        for name, part, line in imports(module.tree)
        if name == "random" and part not in ("Random", "SystemRandom")
    ]
    assert found == [], "the module's own functions share one hidden state"


def test_system_chance_only_where_processes_are_put_together() -> None:
    found = [
        f"{module.path}:{line}"
        for module in modules("src")
        for name, part, line in imports(module.tree)
        if (name, part) == ("random", "SystemRandom") and not module.within(*OUTSIDE)
    ]
    assert found == []


def test_catch_alls_only_in_supervisors_and_with_a_reason() -> None:
    found = []
    for module in modules("src"):
        lines = module.text.splitlines()
        found += [
            f"{module.path}:{node.lineno}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ExceptHandler | ast.Call)
            and _catches_all(node)
            and "# supervisor:" not in lines[node.lineno - 1]
        ]
    assert found == [], "write what is expected, or `# supervisor: why` on the line"


def _catches_all(node: ast.ExceptHandler | ast.Call) -> bool:
    """Whether this is an `except` or a `suppress` of every exception."""
    kinds: list[ast.expr]
    if isinstance(node, ast.ExceptHandler):
        if node.type is None:
            return True
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    elif dotted(node.func).endswith("suppress"):
        kinds = node.args
    else:
        return False
    return any(dotted(kind) in ("Exception", "BaseException") for kind in kinds)


def test_fakes_not_mocks() -> None:
    found = [
        f"{module.path}:{line}"
        for module in modules("src", "tests")
        for name, part, line in imports(module.tree)
        if name.startswith("unittest") or (name, part) == ("unittest", "mock")
    ]
    assert found == []
