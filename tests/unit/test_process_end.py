"""A process that is signalled at every step of its way out ends with its own exit code."""

import signal
import subprocess
import sys

import pytest

ENDS = """
import asyncio, os, signal, sys
import uvloop
from isochrone.wiring.stopping import asked_to_stop, hang_ups_held

loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
number = signal.Signals(int(sys.argv[2]))
sent = 0

def signalled(frame, event, made):
    global sent
    if event == "c_return":
        sent += 1
        os.kill(os.getpid(), number)

async def run():
    stop, hung_up = asyncio.Event(), asyncio.Event()
    os.kill(os.getpid(), signal.SIGHUP)  # held: there is nobody yet to take it
    with asked_to_stop(stop.set, hang_up=hung_up.set):
        await hung_up.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        sys.setprofile(signalled)

with hang_ups_held(), asyncio.Runner(loop_factory=loops[sys.argv[1]]) as runner:
    runner.run(run())
sys.setprofile(None)
sys.exit(7 if sent > 20 else f"signalled {sent} times only")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_at_any_step_changes_no_exit_code(loop: str, number: signal.Signals) -> None:
    run = subprocess.run(
        (sys.executable, "-P", "-c", ENDS, loop, str(int(number))), capture_output=True, text=True,
        timeout=60, check=False,
    )
    assert (run.returncode, run.stderr) == (7, "")
