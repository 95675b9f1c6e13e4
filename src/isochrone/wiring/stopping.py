"""How a process is told to stop, once, however often it is asked; and that SIGHUP is no such word.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def asked_to_stop(
    ask: Callable[[], object], hang_up: Callable[[], object] | None = None
) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call `ask` on the running loop, and SIGHUP calls
    `hang_up` if there is one; one that was held until now is taken at once.

    After it SIGTERM and such a SIGHUP do nothing: a process that has ended its work and is asked
    again while it leaves still ends with its own exit code, which its supervisor reads. Ctrl-C ends
    it at once then, should it hang.
    """
    loop = asyncio.get_running_loop()
    # By the loop, which is then woken by any signal.
    loop.add_signal_handler(signal.SIGINT, ask)
    taken = {signal.SIGTERM: ask}
    if hang_up is not None:
        taken[signal.SIGHUP] = hang_up
    for number, call in taken.items():
        # Not by the loop, which restores the default action, to be ended, before it lets go.
        signal.signal(number, lambda *_, call=call: loop.call_soon_threadsafe(call))
    if hang_up is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def hang_ups_held() -> Iterator[None]:
    """Within the block SIGHUP waits, also for a process that is started in it; after it, one that
    came is taken. Until there is somebody to take it, it would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
