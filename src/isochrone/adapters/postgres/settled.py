"""Which rows of a log that only grows nothing can come before any more.

Numbers are drawn when a row is added and seen when its transaction ends, so a row may be seen
before one with a smaller number. Who follows such a log by the number of the last row that it had
would never see that one. So nobody is told of rows behind a transaction that may still add some:
those of transactions that began to write after one that is under way.
"""

from typing import Final

# Of a row of the table or alias in the braces. The difference of ages is right when the counter of
# transactions has turned over; frozen rows are older than all.
SETTLED: Final = "age({0}.xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid)"
# A condition, always true, that makes the transaction one under way: of an INSERT ... SELECT it is
# looked at before the number is drawn.
UNDER_WAY: Final = "pg_current_xact_id() IS NOT NULL"
