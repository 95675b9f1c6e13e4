"""Measures the local cloud as a user meets it, and appends one JSON line for each measurement.

Starts `isochrone up` in temporary folders, times it, asks it, replays recorded traffic through the
command line, and holds what was booked against the engines' own counters. See README.md.
"""

import argparse
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from isochrone.core.errors import Unavailable
from isochrone.wiring.control_api import ControlApi, connection

HERE = Path(__file__).resolve().parent
ISOCHRONE = (sys.executable, "-m", "isochrone")
ROUNDS = 3
REQUESTS = 200
WARM_REQUESTS = 3
LOCAL, FAR, FAR_COUNTRY = "sydney", "frankfurt", "DE"
REPLAYS = {
    "azure-conv-sample": ("--limit", "300", "--speed", "4", "--verify"),
    "mooncake-conv-sample": ("--limit", "100", "--verify"),
}
START_S = 60.0
STOP_S = 20.0
REPLAY_S = 180.0
SETTLE_S = 30.0
STILL_S = 4.0  # digests come every second: counters that stood this long are final
POLL_S = 0.02

Measure = Callable[[str, str, Mapping[str, object]], None]


class Up:
    """One running `isochrone up`."""

    def __init__(self, state: Path, *arguments: str) -> None:
        self.state = state
        began = time.monotonic()
        with state.with_name("up.out").open("ab") as output:
            self._process = subprocess.Popen(
                [*ISOCHRONE, "up", "--state", str(state), *arguments], env=environment(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )
        try:
            wait(lambda: self._ended() or (state / "up.json").exists(), "it is up", START_S)
            self.start_s = time.monotonic() - began
            self.start_cpu_s = sum(cpu_s for _, cpu_s in family(self._process.pid))
            if self._ended():
                raise SystemExit(f"`up` ended: {state.with_name('up.out').read_text()}")
            self.facts = json.loads((state / "up.json").read_text())
        except BaseException:
            self._process.kill()  # what it started dies with it
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def api(self) -> ControlApi:
        return ControlApi(self.facts["control"], self.facts["admin_key"])

    def endpoint(self, site: str) -> str:
        return str(next(one["endpoint"] for one in self.facts["sites"] if one["name"] == site))

    def stop(self) -> float:
        """Seconds until every process was gone."""
        below = [pid for pid, _ in family(self._process.pid)]
        began = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        wait(lambda: not any(map(alive, below)), "all processes are gone", STOP_S)
        return time.monotonic() - began

    def _ended(self) -> bool:
        return self._process.poll() is not None


@contextmanager
def running(state: Path, stops: list[float]) -> Iterator[Up]:
    """A cloud that is stopped in any case; `stops` receives how long that took."""
    up = Up(state)
    try:
        yield up
    finally:
        stops.append(up.stop())


def environment() -> dict[str, str]:
    """This process's environment without settings of a user's own cloud."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ISOCHRONE")}


def wait(condition: Callable[[], bool], what: str, deadline_s: float) -> None:
    """Return once `condition` holds; raises TimeoutError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > deadline_s:
            raise TimeoutError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(POLL_S)


def stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def alive(pid: int) -> bool:
    stat = stat_of(pid)
    return stat is not None and stat[0] not in "ZX"


def family(root: int) -> list[tuple[int, float]]:
    """(process id, CPU seconds) of `root` and all below it, each with what it waited for."""
    children: dict[int, list[int]] = {}
    cpu_s: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        stat = stat_of(int(entry.name)) if entry.name.isdigit() else None
        if stat is not None:
            children.setdefault(int(stat[1]), []).append(int(entry.name))
            cpu_s[int(entry.name)] = sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK")
    found, fresh = [root], [root]
    while fresh:
        fresh = [child for parent in fresh for child in children.get(parent, [])]
        found += fresh
    return [(pid, cpu_s.get(pid, 0.0)) for pid in found]


def measure_starts(folder: Path, rounds: int, measure: Measure) -> Path:
    """First and second starts in new folders; returns the last folder."""
    first: list[Up] = []
    second: list[Up] = []
    stops: list[float] = []
    state = folder
    for number in range(rounds):
        state = folder / str(number) / "state"
        state.parent.mkdir()
        for starts in (first, second):
            with running(state, stops) as up:
                starts.append(up)
    for name, starts in (("start_first", first), ("start_second", second)):
        measure(name, "isochrone up", {
            "seconds_until_ready": spread([up.start_s for up in starts]),
            "cpu_seconds_until_ready": spread([up.start_cpu_s for up in starts]),
        })
    measure("stop", "SIGTERM to isochrone up", {"seconds_until_gone": spread(stops)})
    return state


def spread(values: list[float]) -> dict[str, object]:
    return {
        "median": round(statistics.median(values), 2), "all": [round(each, 2) for each in values]
    }


def measure_requests(up: Up, measure: Measure) -> None:
    """The time to the first token where the client is, and one emulated round trip away."""
    links = up.api.get(f"sites/{LOCAL}")["links"]
    link = next(one for one in links if one["peer"] == FAR)
    bound = up.api.post("keys", {"name": "benchmark", "residency": [FAR_COUNTRY]})["key"]
    local = timed(up, up.facts["api_key"], LOCAL)
    far = timed(up, bound, FAR)
    what = f"{REQUESTS} streamed requests of 8 tokens in sequence at {LOCAL}"
    measure("ttft_local", f"{what}, served there", {"ttft_ms": quantiles(local)})
    measure("ttft_far", f"{what} with a key bound to {FAR_COUNTRY}, served at {FAR}", {
        "ttft_ms": quantiles(far),
        "emulated_rtt_ms": link["rtt_ms"],
        "rtt_source": link["source"],
        "added_over_rtt_ms": quantiles([each - link["rtt_ms"] for each in far]),
    })


def timed(up: Up, key: str, served_at: str) -> list[float]:
    """Milliseconds to the first token of each request; all must be served at this site."""
    link, prefix = connection(up.endpoint(LOCAL), timeout_s=20.0)
    found: list[float] = []
    try:
        wait(lambda: ask(link, prefix, key, 0)[0] == 200, "the key is known", 10.0)
        for number in range(WARM_REQUESTS + REQUESTS):
            status, site, ttft_ms = ask(link, prefix, key, number)
            if (status, site) != (200, served_at):
                raise SystemExit(f"request {number}: status {status} from {site}")
            found.append(ttft_ms)
    finally:
        link.close()
    return found[WARM_REQUESTS:]


def ask(
    link: http.client.HTTPConnection, prefix: str, key: str, number: int
) -> tuple[int, str | None, float]:
    """Status, serving site and milliseconds to the first token (infinite without one)."""
    body = json.dumps({
        "model": "tiny-fable", "stream": True, "max_tokens": 8,
        "messages": [{"role": "user", "content": f"Tell me story {number}."}],
    })
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    began = time.perf_counter()
    link.request("POST", f"{prefix}/chat/completions", body, headers)
    answer = link.getresponse()
    ttft_ms = float("inf")
    while line := answer.readline():
        if line.startswith(b"data: {") and ttft_ms == float("inf"):
            now = time.perf_counter()
            choices = json.loads(line[6:]).get("choices") or [{}]
            if choices[0].get("delta", {}).get("content"):
                ttft_ms = (now - began) * 1000
    return answer.status, answer.headers.get("x-isochrone-site"), ttft_ms


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "worst": round(max(values), 2)
    }


def measure_replays(up: Up, folder: Path, measure: Measure) -> None:
    """Replays packaged traces as a user would; each must be booked exactly once."""
    for trace, options in REPLAYS.items():
        out = folder / f"{trace}.json"
        command = ("replay", trace, *options)
        done = subprocess.run(
            [*ISOCHRONE, *command, "--state", str(up.state), "--out", str(out)],
            env=environment(), capture_output=True, text=True, timeout=REPLAY_S, check=False,
        )
        if not out.exists():
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        report = json.loads(out.read_bytes())
        kept = (
            "speed", "factor", "wall_s", "whole", "by_site", "errors", "late_ms", "input_error",
            "output_error", "cached_share",
        )
        told = [line for line in done.stdout.splitlines() if line.startswith("the book")]
        measure(f"replay_{trace}", f"isochrone {' '.join(command)}", {
            "verified": done.returncode == 0,
            "verdict": told[0] if told else done.stderr.strip(),
            **{name: rounded(report[name]) for name in kept},
            "rows_clipped": len(report["clipped_rows"]),
            "rows_lifted": len(report["lifted_rows"]),
        })


def rounded(value: Any) -> Any:
    """The same with fractions of at most four digits."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


class Totals:
    """Tokens by class, as the engines counted them and as they were booked."""

    def __init__(self, api: ControlApi) -> None:
        replicas = [one for site in api.get("status")["sites"] for one in site["replicas"]]
        self.idle = all(one["running"] == one["waiting"] == 0 for one in replicas)
        self.engines = {
            "input_uncached": self._sum(replicas, "prompt_tokens_total"),
            "input_cached": self._sum(replicas, "cached_tokens_total"),
            "output": self._sum(replicas, "output_tokens_total"),
        }
        rows = list(api.items("usage", {"by": "site"}))
        self.requests = sum(row["requests"] for row in rows)
        self.unmeasured = sum(row["unmeasured"] for row in rows)
        self.booked = {name: sum(row[name] for row in rows) for name in self.engines}

    @property
    def all(self) -> tuple[object, ...]:
        return self.requests, self.engines, self.booked

    def _sum(self, replicas: list[Mapping[str, Any]], name: str) -> int:
        counts = [one[name] for one in replicas]
        self.idle = self.idle and None not in counts
        return sum(count or 0 for count in counts)


def settled(api: ControlApi) -> Totals:
    """Totals that stand still: nothing runs, all counters are known, all usage is booked."""
    seen = Totals(api)
    still_since = began = time.monotonic()
    while time.monotonic() - still_since < STILL_S:
        time.sleep(0.5)
        now = Totals(api)
        if now.all != seen.all or not now.idle:
            still_since = time.monotonic()
        seen = now
        if time.monotonic() - began > SETTLE_S:
            raise TimeoutError(f"counters do not stand still within {SETTLE_S:.0f} s: {now.all}")
    return seen


def measure_books(before: Totals, after: Totals, measure: Measure) -> None:
    """What was booked against what the engines counted, between two moments without work."""
    booked = {name: after.booked[name] - before.booked[name] for name in after.booked}
    engines = {name: after.engines[name] - before.engines[name] for name in after.engines}
    measure("booked_tokens", "GET /api/v1/usage?by=site against GET /api/v1/status", {
        "requests": after.requests - before.requests,
        "unmeasured_requests": after.unmeasured - before.unmeasured,
        "booked": booked,
        "engines": engines,
        "difference": {name: booked[name] - engines[name] for name in booked},
    })


def measure_charges(api: ControlApi, measure: Measure) -> None:
    """Today's tokens of the whole cloud: of engines, of usage by source, of charges."""
    api.post("ledger/charges", {})
    report = api.get("reconciliation")
    tokens = ("input_uncached", "input_cached", "output")
    sides = {
        name: {each: sum(line[name][each] for line in report["replicas"]) for each in tokens}
        for name in ("engine", "exact", "other")
    }
    meters = {line["meter"].removesuffix("_tokens"): line for line in report["meters"]}
    for side in ("charged", "waiting"):
        sides[side] = {each: meters[each][side] for each in tokens}
    measure("charged_tokens", "GET /api/v1/reconciliation after POST /api/v1/ledger/charges", {
        **sides, "agrees": sides["engine"] == sides["exact"] == sides["charged"],
        "verdicts": sorted({line["verdict"] for line in report["replicas"]}),
        "findings": report["findings"],
    })


def output_of(*command: str) -> str:
    """What a command prints, empty when it fails or is not there."""
    try:
        done = subprocess.run(
            command, cwd=HERE, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, object]:
    """What the figures depend on, without names of this machine."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def recorder(results: Path) -> Measure:
    """Appends to `results`; the load is the one before this run added its own."""
    # `changed` because a tree with local changes is not the commit that it names.
    source = {
        "commit": output_of("git", "rev-parse", "HEAD") or None,
        "changed": bool(output_of("git", "status", "--porcelain", "--", "../../src")),
        "machine": {**machine(), "load_before": round(os.getloadavg()[0], 2)},
    }

    def measure(name: str, command: str, found: Mapping[str, object]) -> None:
        line = {
            "measurement": name, "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command, **source, "result": found,
        }
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {json.dumps(found)}", flush=True)

    return measure


def unrecorded(name: str, command: str, found: Mapping[str, object]) -> None:
    """Of a replay whose times say nothing; each request must be booked once all the same."""
    print(f"{name}: {found['verdict']}", flush=True)
    if not found["verified"]:
        raise SystemExit(f"{command}: {found['verdict']}")


def stop_asked(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="starts of each kind")
    parser.add_argument(
        "--counts", action="store_true", help="only replay and compare tokens; nothing is timed"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop_asked)  # so that the cloud is stopped too
    measure = recorder(options.out)
    stops: list[float] = []
    try:
        with tempfile.TemporaryDirectory(prefix="isochrone-evidence-") as folder:
            state = Path(folder) / "state"
            if not options.counts:
                state = measure_starts(Path(folder), options.rounds, measure)
            with running(state, stops) as up:
                before = settled(up.api)
                if options.counts:
                    measure_replays(up, Path(folder), unrecorded)
                else:
                    measure_requests(up, measure)
                    measure_replays(up, Path(folder), measure)
                measure_books(before, settled(up.api), measure)
                measure_charges(up.api, measure)
    except (Unavailable, TimeoutError, subprocess.TimeoutExpired) as error:
        raise SystemExit(str(error)) from error
    if not options.counts:
        measure("stop_after_work", "SIGTERM to isochrone up", {"seconds_until_gone": spread(stops)})


if __name__ == "__main__":
    main()
