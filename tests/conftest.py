"""Makes the shared fixtures known to every test, and takes the form of the code to be tested.

Tests of single parts run the sources as they are; with ISOCHRONE_TEST_FORM=compiled in the
environment they run what was compiled from them (see docs/adr/0012).
"""

import os

from isochrone.wiring.compiled import use_compiled

pytest_plugins = [
    "tests.fixtures.postgres", "tests.fixtures.nats", "tests.fixtures.loops",
    "tests.fixtures.twin_command",
]

if os.environ.get("ISOCHRONE_TEST_FORM") == "compiled":
    assert use_compiled(), "nothing is compiled that fits these sources: make compile"
