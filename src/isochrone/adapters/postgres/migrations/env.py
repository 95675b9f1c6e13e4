"""Alembic's entry: runs pending revisions on the connection that `migrate` passes in."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=False)
with context.begin_transaction():
    # Two processes that start together migrate one after the other; the lock ends with the
    # transaction. The number only has to be the same in every release.
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7461300018)")
    # Row-level security binds the owner too; what moves data has to see all of it.
    connection.exec_driver_sql("SELECT set_config('isochrone.tenant', '*', true)")
    context.run_migrations()
