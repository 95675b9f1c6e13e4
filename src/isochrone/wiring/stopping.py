"""How a process is told to stop, once, however often it is asked; and that SIGHUP is no such word.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def asked_to_stop(ask: Callable[[], object]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call `ask`, on the running loop.

    After it SIGTERM does nothing: a process that has ended its work and is asked again while it
    leaves still ends with its own exit code, which its supervisor reads. Ctrl-C ends it at once
    then, should it hang.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        # Taken from the loop, which would restore the default action when it is closed.
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def hang_ups_held() -> Iterator[None]:
    """Within the block SIGHUP waits; after it, whatever was before, it is taken, at once if one
    came. Until there is somebody to take it, it would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
