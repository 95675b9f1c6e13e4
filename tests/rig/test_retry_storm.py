"""Half of all upstream answers fail: attempts stay within the retry budget, and breakers heal."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fixtures.scripted_engine import Asked, ScriptedEngine
from tests.rig.alone import MODEL, Alone, EngineThread, a_gateway, key_table
from tests.rig.load import Load, Result
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

ENGINES = 4
REQUESTS = 400
THREADS = 6
RATIO, MIN_PER_S = 0.1, 1.0
CREDIT_S = 11.0  # ten seconds of credit, and the second that has just begun


@dataclass(slots=True, kw_only=True)
class FaultyEngine(ScriptedEngine):
    """Fails a share of its answers with 503, and resets another share of its connections."""

    failing: float = 0.0
    resetting: float = 0.0
    rng: Random = field(default_factory=lambda: Random(7))

    async def _answer(
        self, asked: Asked, writer: asyncio.StreamWriter, reader: asyncio.StreamReader
    ) -> None:
        drawn = self.rng.random()
        if drawn < self.resetting:
            self.asked.append(asked)
            writer.transport.abort()
            raise ConnectionResetError
        self.status = 503 if drawn < self.resetting + self.failing else 200
        # Not super(): a dataclass with slots is another class than the one written here.
        await ScriptedEngine._answer(self, asked, writer, reader)


@pytest.fixture
def engines() -> Iterator[list[EngineThread]]:
    with ExitStack() as stack:
        found = []
        for seed in range(ENGINES):
            thread = EngineThread(FaultyEngine(rng=Random(seed))).start()
            stack.callback(thread.stop)
            found.append(thread)
        yield found


def change(engine: EngineThread, *, failing: float = 0.0, resetting: float = 0.0) -> None:
    faulty = engine.engine
    assert isinstance(faulty, FaultyEngine)

    def set_both() -> None:
        faulty.failing, faulty.resetting = failing, resetting

    engine.call(set_both)


def config(engines: Sequence[EngineThread], settings: str) -> str:
    upstreams = "".join(f'[[site.upstream]]\nurl = "{each.url}"\n' for each in engines)
    return f"""
[gateway]
port = 0
{settings}
[[model]]
name = "{MODEL}"
revision = "r1"
[[site]]
name = "here"
country = "DE"
{upstreams}{key_table("laptop", "secret")}"""


def storm(gateway: Alone, name: str) -> tuple[list[Result], float]:
    """All results of one load, and how long it took."""
    began = time.monotonic()
    load = Load([("here", gateway.url)], "secret", name=name, threads=THREADS, most=REQUESTS)
    load.start()
    wait_until(lambda: len(load.results) >= REQUESTS, "the load is over", deadline_s=120)
    return load.stop(), time.monotonic() - began


def lines_of(gateway: Alone, results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Usage by request, once all of it is written."""
    ids = {each.request_id for each in results}
    assert None not in ids, "every request was answered"
    lines: dict[str, dict[str, Any]] = {}

    def written() -> bool:
        lines.update({line["request_id"]: line for line in gateway.usage()})
        return ids <= set(lines)

    wait_until(written, "all usage is written")
    return {str(each): lines[str(each)] for each in ids}


def asked(engines: Sequence[EngineThread]) -> int:
    return sum(len(each.engine.asked) for each in engines)


# Breakers leave out what fails; these settings leave that to the budget alone.
NO_BREAKERS = "breaker_failures = 20\nbreaker_failure_rate = 1.0\n"


def test_attempts_stay_within_the_budget(tmp_path: Path, engines: list[EngineThread]) -> None:
    for engine in engines:
        change(engine, failing=0.5)
    budget = f"retry_ratio = {RATIO}\nretry_min_per_s = {MIN_PER_S}\n"
    with a_gateway(tmp_path / "g", config(engines, budget + NO_BREAKERS)) as gateway:
        results, took_s = storm(gateway, "storm")
        lines = lines_of(gateway, results)
        attempts = asked(engines)
        assert sum(line["attempts"] for line in lines.values()) == attempts
        retries, most = attempts - REQUESTS, RATIO * REQUESTS + MIN_PER_S * (took_s + CREDIT_S)
        assert 0 < retries <= most
        outcomes = Counter((line["status"], line["reason"]) for line in lines.values())
        print(f"{REQUESTS} requests, {attempts} attempts, {took_s:.1f} s: {outcomes}")
        assert set(outcomes) <= {(200, None), (503, "retry_budget"), (503, "no_healthy_site")}
        # The budget was used up before anybody was refused for it.
        assert outcomes[503, "retry_budget"]
        assert retries >= 0.9 * RATIO * REQUESTS
        for one in results:
            line = lines[str(one.request_id)]
            assert (one.status, one.reason) == (line["status"], line["reason"])
            assert line["reason"] != "no_healthy_site" or line["attempts"] == 3


def test_nobody_sees_an_error_while_a_retry_is_in_budget(
    tmp_path: Path, engines: list[EngineThread]
) -> None:
    for engine in engines:
        change(engine, failing=0.5)
    budget = "retry_ratio = 1.0\nretry_min_per_s = 1000\n"
    with a_gateway(tmp_path / "g", config(engines, budget + NO_BREAKERS)) as gateway:
        results, _ = storm(gateway, "ample")
        lines = lines_of(gateway, results)
        refused = [line for line in lines.values() if line["status"] != 200]
        assert {(line["reason"], line["attempts"]) for line in refused} <= {("no_healthy_site", 3)}
        assert len(refused) < 0.25 * REQUESTS  # an eighth, and chance
        assert asked(engines) == sum(line["attempts"] for line in lines.values())


def test_a_breaker_opens_and_a_probe_closes_it(
    tmp_path: Path, engines: list[EngineThread]
) -> None:
    change(engines[0], resetting=1.0)
    # Its work comes back at once; that it does so by and by is seen elsewhere.
    held = "breaker_longest_hold_s = 2\nrecovery_s = 0.1\n"
    with a_gateway(tmp_path / "g", config(engines, held)) as gateway:
        results, took_s = storm(gateway, "reset")
        assert [each for each in results if not each.whole or each.status != 200] == []
        # One loss opens it; holds of at least 0.75 s and 1.5 s lie between the probes.
        tries = len(engines[0].engine.asked)
        print(f"{REQUESTS} requests in {took_s:.1f} s, {tries} of them tried the lost engine")
        assert 1 <= tries <= THREADS + 2 + took_s
        change(engines[0])
        seen = 0

        def serves_again() -> bool:
            nonlocal seen
            seen = len(engines[0].engine.asked)
            return gateway.status("secret") == 200 and seen > tries + 5

        wait_until(serves_again, "the healed engine has its share again")
        again, _ = storm(gateway, "healed")
        assert [each for each in again if not each.whole or each.status != 200] == []
        assert len(engines[0].engine.asked) - seen > REQUESTS / ENGINES / 2
        lines = lines_of(gateway, again)
        assert {line["attempts"] for line in lines.values()} == {1}
