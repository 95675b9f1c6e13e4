"""PostgreSQL transactions that fail on purpose: refused before anything, or told to have failed
after they were committed.

What runs is the real database; only what its caller is told differs. A lock that was waited for too
long is noted: in virtual time nobody else can hold one, so a store call held it over an `await`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import StoreUnavailable
from isochrone.core.world.tenant import Scope

Fate = Literal["done", "away", "reply_lost"]


class FaultyPool(Pool):
    """`fate` is asked once a transaction. `lock_timeouts` are what the server said."""

    def __init__(self, conninfo: str, *, most: int = 8) -> None:
        super().__init__(conninfo, most=most)
        self.fate: Callable[[], Fate] = lambda: "done"
        self.lock_timeouts: list[str] = []

    @contextmanager
    def transaction(
        self, scope: Scope | None = None, *, one_instant: bool = False
    ) -> Iterator[psycopg.Connection[TupleRow]]:
        fate = self.fate()
        if fate == "away":
            raise StoreUnavailable("PostgreSQL does not answer: told to be away")
        try:
            with super().transaction(scope, one_instant=one_instant) as connection:
                yield connection
        except StoreUnavailable as error:
            if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                self.lock_timeouts.append(error.message)
            raise
        if fate == "reply_lost":
            raise StoreUnavailable("PostgreSQL does not answer: committed, the reply was lost")
