"""A store call is one transaction, and no transaction lives across an `await`."""

import ast
from collections.abc import Iterator

from tests.arch.sources import Module, modules

POOLS = ("adapters/postgres/pool.py", "wiring/faulty_pool.py")  # they make transactions


def _opens(node: ast.AST) -> bool:
    """Whether it is `with ...transaction(...)`."""
    return isinstance(node, ast.With | ast.AsyncWith) and any(
        isinstance(item.context_expr, ast.Call)
        and isinstance(item.context_expr.func, ast.Attribute)
        and item.context_expr.func.attr in ("transaction", "connection")
        for item in node.items
    )


def _functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def faults_of(module: Module) -> list[str]:
    """What one module does that it must not, in its use of transactions."""
    found = []
    for function in _functions(module):
        blocks = [node for node in ast.walk(function) if _opens(node)]
        where = f"{module.path}:{function.lineno} {function.name}"
        if blocks and isinstance(function, ast.AsyncFunctionDef):
            found.append(f"{where} is async and opens a transaction")
        if len(blocks) > 1:
            found.append(f"{where} opens {len(blocks)} transactions")
        for block in blocks:
            for node in ast.walk(block):
                if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
                    found.append(f"{where} awaits inside a transaction")
                is_handed_out = isinstance(node, ast.Yield | ast.YieldFrom)
                if is_handed_out and not module.path.endswith(POOLS):
                    found.append(f"{where} hands a transaction out")
    return found


def test_a_store_call_is_one_transaction_and_none_crosses_an_await() -> None:
    found = [fault for module in modules("src") for fault in faults_of(module)]
    assert found == []


def test_the_store_is_synchronous() -> None:
    asynchronous = [
        f"{module.path}:{node.lineno} {node.name}"
        for module in modules("src/isochrone/adapters/postgres")
        for node in _functions(module)
        if isinstance(node, ast.AsyncFunctionDef)
    ]
    assert asynchronous == []


def test_faults_are_found() -> None:
    text = (
        "async def one(pool):\n    with pool.transaction() as c:\n        await c\n"
        "def two(pool):\n    with pool.transaction():\n        pass\n"
        "    with pool.transaction():\n        pass\n"
    )
    module = Module(path="src/isochrone/control/made_up.py", text=text, tree=ast.parse(text))
    assert len(faults_of(module)) == 3
