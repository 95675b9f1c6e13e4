"""Makes the shared fixtures known to every test, and takes the form of the code to be tested.

Tests of single parts run the sources as they are; with ISOCHRONE_TEST_FORM=compiled in the
environment they run what was compiled from them (see docs/adr/0012).
"""

import os
import signal

from isochrone.wiring.compiled import use_compiled

pytest_plugins = [
    "tests.fixtures.postgres", "tests.fixtures.nats", "tests.fixtures.loops",
    "tests.fixtures.twin_command",
]

# A shell that starts tests in the background lets them ignore Ctrl-C, and with them all that they
# start; what has to end by it could not be tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if os.environ.get("ISOCHRONE_TEST_FORM") == "compiled":
    assert use_compiled(), "nothing is compiled that fits these sources: make compile"
