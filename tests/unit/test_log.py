"""The log of a process on its standard output: what comes out, and what must not stop it."""

import json
import os
import subprocess
import sys

import pytest

SPEAK = """
import logging, sys
from isochrone.wiring.log import configure_log, write_output
import structlog
configure_log("gateway")
for number in range(3):
    structlog.get_logger().info("said", number=number)
    write_output(b'{"event":"request"}\\n')
    logging.getLogger("library").warning("also said")
print("went on", file=sys.stderr)
"""


def speak(stdout: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SPEAK], stdout=stdout, stderr=subprocess.PIPE, timeout=60,
        check=False,
    )


def test_events_come_line_by_line_and_in_order() -> None:
    done = speak(subprocess.PIPE)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["event"] for each in said] == ["said", "request", "also said"] * 3
    assert {each["process"] for each in said if each["event"] == "said"} == {"gateway"}


@pytest.mark.parametrize("place", ["/dev/full", "nobody reads"])
def test_whoever_cannot_speak_goes_on(place: str) -> None:
    if place == "/dev/full":
        with open(place, "wb") as full:
            done = speak(full.fileno())
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = speak(writer)
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"went on\n")
