"""The log of a process on its standard output: what comes out, and what must not stop it."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from isochrone.wiring.log import PatientWriter

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


TALK = """
import sys
from isochrone.wiring.log import write_output
for number in range(20_000):
    write_output(b'{"number":%d,"said":"%b"}\\n' % (number, b"x" * 200))
print("went on", file=sys.stderr, flush=True)
sys.stdin.read()
"""


def test_a_reader_that_does_not_read_keeps_nobody_waiting() -> None:
    talking = subprocess.Popen(
        [sys.executable, "-c", TALK], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert talking.stdin is not None
        assert talking.stdout is not None
        assert talking.stderr is not None
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(talking.stderr.readline)
            try:
                assert said.result(timeout=60) == b"went on\n"
            except TimeoutError:
                talking.kill()
                raise
        # Now it reads: nothing was lost meanwhile, and all is in order.
        talking.stdin.close()
        lines = [json.loads(line)["number"] for line in talking.stdout.read().splitlines()]
        assert lines == list(range(20_000))
        assert talking.wait(60) == 0
    finally:
        talking.kill()
        talking.wait()


def test_what_cannot_wait_any_more_is_lost_and_counted() -> None:
    reader, writer = os.pipe()
    patient = PatientWriter(writer, most_bytes=200_000)
    for number in range(10_000):
        patient.write(b'{"number":%d,"said":"%b"}\n' % (number, b"x" * 200))
    with os.fdopen(reader, "rb") as reading:
        first = json.loads(reading.readline())
        assert first["number"] == 0
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(reading.read)
            patient.finish(60)
            patient.write(b'{"number":-1}\n')
            patient.finish(60)
            patient.close()
            os.close(writer)
            lines = [first, *map(json.loads, rest.result(60).splitlines())]
    numbers = [each["number"] for each in lines if "number" in each]
    assert numbers == [*range(len(numbers) - 1), -1], "what came too late is lost, nothing else"
    lost = sum(each["writes"] for each in lines if each.get("event") == "log_lost")
    assert lost == 10_000 - (len(numbers) - 1) > 0


def test_writers_to_one_pipe_do_not_come_between_each_others_lines() -> None:
    reader, writer = os.pipe()
    both = [PatientWriter(writer), PatientWriter(writer)]
    for _ in range(100):
        for name, patient in zip(b"ab", both, strict=True):
            patient.write((b"%c" % name * 99 + b"\n") * 100)
    with os.fdopen(reader, "rb") as reading, ThreadPoolExecutor(1) as pool:
        read = pool.submit(reading.read)
        for patient in both:
            patient.finish(60)
            patient.close()
        os.close(writer)
        lines = Counter(read.result(60).splitlines())
    assert lines == {b"a" * 99: 10_000, b"b" * 99: 10_000}
