"""PostgreSQL, the book of record: embedded server, migrations, pool and the stores on it."""
