"""Makes the shared fixtures known to every test."""

pytest_plugins = ["tests.fixtures.postgres", "tests.fixtures.nats", "tests.fixtures.loops"]
