"""Entry point of `isochrone`: runs the command line so that Ctrl-C ends it quietly at any moment.

Exit codes: 0 done, 1 something failed, 2 the input was wrong (nothing was done), 130 interrupted.
"""

import signal
import sys

INTERRUPTED = 130
PROCESSES = ("control", "gateway", "agent", "dns", "console")  # they are many, and start at once


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:2] in (["gateway"], ["dns"]):
        # One with a file takes SIGHUP as word of its file, and must not end by it while it starts.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        # Before anything that has a compiled form is imported: the two forms must not be mixed.
        from isochrone.wiring.compiled import use_compiled

        use_compiled()
        # Here, not above: the imports take a good part of a short command's time.
        if sys.argv[1:2] and sys.argv[1] in PROCESSES:
            from isochrone.cli.processes import run
        else:
            from isochrone.cli.app import run

        code = run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)
