"""Every message and every stored record says which of its fields may leave a residency set."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import msgspec
import pytest

import isochrone
import isochrone.core.world
import isochrone.wire
from isochrone.adapters.postgres.pool import Pool
from isochrone.ports.telemetry import Span
from isochrone.wire.leaving import MESSAGES, TABLES, references_of

# What crosses a process or is written to a disk: all of `wire` and of the nouns, which are its
# payload, and these.
ALSO = (
    "isochrone.core.admission.cashier", "isochrone.core.admission.loans",
    "isochrone.core.admission.stewards",
    "isochrone.core.lifecycle.experiment",
    "isochrone.core.limits.messages",
    "isochrone.core.metering.event", "isochrone.core.routing.bond", "isochrone.core.routing.choice",
    "isochrone.gateway.journal_notes", "isochrone.gateway.records",
    "isochrone.gateway.view_store", "isochrone.gateway.request_log", "isochrone.wiring.joining",
    "isochrone.wiring.local.state", "isochrone.adapters.alone.usage_file",
    "isochrone.adapters.alone.usage_line", "isochrone.twin.calibration.recording",
)
# Structs that only read what a client or an engine sent, or that stay in memory.
IN_MEMORY = {
    "isochrone.adapters.alone.stored_usage", "isochrone.adapters.engines.openai",
    "isochrone.dns.fleet",
    "isochrone.gateway.answer_fields",
    "isochrone.gateway.continuation.events",
    "isochrone.gateway.continuation.features", "isochrone.gateway.deployed",
    "isochrone.gateway.engine_errors", "isochrone.gateway.journal_state",
    "isochrone.gateway.message_counts", "isochrone.gateway.recount",
    "isochrone.gateway.request_fields", "isochrone.replay.exchange", "isochrone.replay.trace",
    "isochrone.replay.verify", "isochrone.twin.workloads.coding_sessions",
}
# What processes remember of what is listed.
NOT_STORED = {"State", "_Waiting", "_Lent", "_Cast", "_Kept"}


def fields_of(kind: type) -> tuple[str, ...] | None:
    """Fields of a dataclass or Struct; None for any other class."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    return None


def classes(module: ModuleType) -> Iterator[type]:
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if kind.__module__ == module.__name__:
            yield kind


def messages() -> Iterator[type]:
    packages = (isochrone.wire, isochrone.core.world)
    names = [
        each.name for package in packages
        for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ]
    for name in (*names, *ALSO):
        for kind in classes(importlib.import_module(name)):
            if fields_of(kind) is not None and kind.__name__ not in NOT_STORED:
                yield kind
    yield Span


def test_the_walk_finds_what_is_known_to_be_there() -> None:
    found = {kind.__name__ for kind in messages()}
    assert {"UsageRecord", "HopHead", "Site", "Policy", "StoredView", "_Line"} <= found
    assert len([kind.__name__ for kind in messages()]) == len(found), "two of one name"


@pytest.mark.parametrize("kind", list(messages()), ids=lambda kind: kind.__name__)
def test_a_message_lists_each_of_its_fields(kind: type) -> None:
    listed = MESSAGES.get(kind.__name__)
    assert listed is not None, f"{kind.__module__}.{kind.__name__} is not in wire/leaving.py"
    assert set(listed) == set(fields_of(kind) or ()), "wire/leaving.py lists other fields"


def test_nothing_is_listed_that_does_not_exist() -> None:
    assert set(MESSAGES) == {kind.__name__ for kind in messages()}


def test_a_new_struct_is_either_a_message_or_stays_in_memory() -> None:
    walked = {kind.__module__ for kind in messages()}
    found = set()
    for each in pkgutil.walk_packages(isochrone.__path__, "isochrone."):
        if "migrations" in each.name or each.name == "isochrone.__main__":
            continue
        if each.name.startswith("isochrone.console."):
            continue  # it reads what the Control API answers, shows it, and keeps nothing
        for kind in classes(importlib.import_module(each.name)):
            if issubclass(kind, msgspec.Struct):
                found.add(each.name)
    assert found - walked == IN_MEMORY


def test_a_table_lists_each_of_its_columns(pool: Pool) -> None:
    with pool.transaction() as connection:
        rows = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " JOIN information_schema.tables USING (table_schema, table_name)"
            " WHERE table_type = 'BASE TABLE' AND table_schema = 'public'"
            " AND table_name <> 'alembic_version'"
        ).fetchall()
    columns: dict[str, set[str]] = {}
    for table, column in rows:
        columns.setdefault(table, set()).add(column)
    assert {table: set(listed) for table, listed in TABLES.items()} == columns


def test_what_usage_holds_is_judged_the_same_everywhere() -> None:
    expected = {"client_request_id"}
    for name in ("UsageRecord", "UsageEvent", "Opening", "usage", "evidence", "UsageLine"):
        assert references_of(name) == expected
