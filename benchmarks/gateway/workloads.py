"""What is asked of every router: the workloads, and how one of them is loaded and measured."""

import http.client
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway import machine, processes
from benchmarks.gateway.bodies import body_file
from benchmarks.gateway.routers import KEY, Running

SETTLE_S = 0.3  # work that a router puts off, such as writing usage, is counted too
UPSTREAM_PORTS = 4
WARM_CONNECTIONS = 32
HELD_STREAM = "stream-1000x30000ms"  # an event at once, the next after half a minute
HOLD_S = 60.0
LOAD_DEADLINE_S = 90.0
ENDS_BESIDE_CONTENT = 2  # the usage event and [DONE]

Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load. Streams with fewer than `events` events count as short; 0 is no streams.

    `once`: one request a connection, all begun within `ramp_ms`; else a closed loop of `seconds`.
    """

    name: str
    bodies: str
    connections: int
    seconds: float
    events: int = 0
    once: bool = False
    ramp_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Steps that a freshly started router goes through. `held`: numbers of streams to hold open
    while memory is read. `routers`: None is all that `--routers` and the defaults name. `turns`:
    all routers run at once and take so many turns, each with its part of a step's seconds: for what
    is compared by its ratio, on machines that are quicker in one minute than in the next."""

    name: str
    what: str
    steps: tuple[Step, ...] = ()
    held: tuple[int, ...] = ()
    routers: tuple[str, ...] | None = None
    turns: int = 1


def workloads(*, quick: bool, seconds: float | None) -> tuple[Workload, ...]:
    """All workloads; `quick` ones show that everything works, not how fast it is."""
    loop_s = seconds or (1.0 if quick else 3.0)
    turns = 2 if quick else 6
    streams, paced, slow = (200, 100, 20) if quick else (1000, 500, 80)
    held = (100, 500) if quick else (1000, 5000)
    requests = "32 connections, closed loop"
    return (
        Workload(name="W1", what=f"short requests: 268 B in, 667 B out, {requests}", steps=(
            Step(name="W1-c32", bodies="short", connections=32, seconds=loop_s),
            Step(name="W1-c128", bodies="short", connections=128, seconds=loop_s),
        ), turns=turns),
        Workload(name="W2", what=f"conversations: 16 KB in, 22 messages, {requests}", steps=(
            Step(name="W2-c32", bodies="long", connections=32, seconds=loop_s),
        ), turns=turns),
        Workload(name="W3", what="streams of 200 events without delay, 64 at once", steps=(
            _streams("W3-c64", 200, 0, 64, loop_s),
        ), turns=turns),
        Workload(name="W4", what=f"{streams:,} slow streams at once", steps=(
            _slow("W4-20ms", paced, 20, streams), _slow("W4-100ms", slow, 100, streams),
        ), turns=2),
        Workload(name="W5", what="latency at one connection", steps=(
            Step(name="W5-request", bodies="short", connections=1, seconds=loop_s),
            _streams("W5-first", 1, 0, 1, loop_s),
        ), turns=turns),
        Workload(
            name="W6", what="the peer hop: two gateways in a row",
            steps=(
                Step(name="W6-c32", bodies="short", connections=32, seconds=4 * loop_s),
                Step(name="W6-c128", bodies="short", connections=128, seconds=4 * loop_s),
            ),
            routers=("isochrone", "isochrone-hop"), turns=4 * turns,
        ),
        Workload(
            name="W7", what="TLS towards the client, W1's requests",
            steps=(Step(name="W7-c32", bodies="short", connections=32, seconds=4 * loop_s),),
            routers=("nginx", "nginx-tls", "isochrone", "isochrone-tls"), turns=4 * turns,
        ),
        Workload(name="M", what="memory", held=held),
    )


def _streams(name: str, tokens: int, delay_ms: int, connections: int, seconds: float) -> Step:
    return Step(
        name=name, bodies=f"stream-{tokens}x{delay_ms}ms", connections=connections,
        seconds=seconds, events=tokens + ENDS_BESIDE_CONTENT,
    )


def _slow(name: str, tokens: int, delay_ms: int, streams: int) -> Step:
    """As many streams as connections, begun within a second; given twice their time."""
    return Step(
        name=name, bodies=f"stream-{tokens}x{delay_ms}ms", connections=streams,
        seconds=2 * tokens * delay_ms / 1000 + 5, events=tokens + ENDS_BESIDE_CONTENT, once=True,
        ramp_ms=1000,
    )


class Bench:
    """Loads one running router from the other core and reads what that cost."""

    def __init__(
        self, work: Path, folder: Path, cores: machine.Cores, running: Running,
        upstream: tuple[int, int],
    ) -> None:
        """`upstream`: process id, and a port that answers /metrics."""
        self._work = work
        self._log = folder / "load.log"
        self._cores = cores
        self._running = running
        self._upstream_pid, self._upstream_port = upstream
        self._start_mb = machine.pss_mb(self.pids())

    def command(self, step: Step) -> list[str]:
        """The load client's command line."""
        bodies = body_file(self._work / "bodies", step.bodies)
        argv = [
            str(self._work / "bin" / "load"), "-p", str(self._running.port), "-b", str(bodies),
            "-c", str(step.connections), "-t", str(step.seconds), "-k", KEY,
        ]
        if step.events:
            argv += ["-e", str(step.events)]
        if step.once:
            argv += ["-o", "-R", str(step.ramp_ms)]
        return [*argv, "-s"] if self._running.tls else argv

    def warm(self, seconds: float) -> None:
        """Work that is not counted: connections, caches, code paths."""
        for bodies in ("short", "stream-200x0ms"):
            step = Step(
                name="warm", bodies=bodies, connections=WARM_CONNECTIONS, seconds=seconds / 2
            )
            self._load(step)

    def measure(self, step: Step) -> Result:
        """Run the load of `step`; raises processes.NotRunning when nothing was answered."""
        before = self._spent()
        began = time.monotonic()
        loaded = self._load(step)
        time.sleep(SETTLE_S)
        wall_s = time.monotonic() - began
        router_s, upstream_s, other_s, busy_router_s, busy_load_s = (
            after - earlier for after, earlier in zip(self._spent(), before, strict=True)
        )
        if not loaded["ok"]:
            raise processes.NotRunning(f"{step.name}: nothing was answered: {loaded}")
        upstream_itself = self._running.roots == (self._upstream_pid,)
        on_router_core_s = 0.0 if upstream_itself else router_s
        return {
            **loaded,
            "router_cpu_s": round(router_s, 4),
            "upstream_cpu_s": round(upstream_s, 4),
            "others_router_core": _share(busy_router_s - on_router_core_s, wall_s),
            "others_load_core": _share(busy_load_s - upstream_s - other_s, wall_s),
            "pss_start_mb": round(self._start_mb, 1),
            "pss_end_mb": round(machine.pss_mb(self.pids()), 1),
        }

    def hold(self, counts: tuple[int, ...]) -> Result:
        """Memory with this many streams open, each having had its first event."""
        found: Result = {"pss_start_mb": round(self._start_mb, 2), "held": {}}
        held = 0
        clients = []
        try:
            for count in counts:
                step = Step(
                    name="M", bodies=HELD_STREAM, connections=count - held, seconds=HOLD_S,
                    once=True, ramp_ms=count,
                )
                clients.append(self._start(step))
                held = count
                self._wait_streams(count)
                time.sleep(1.0)
                found["held"][str(count)] = round(machine.pss_mb(self.pids()), 2)
        finally:
            lost = sum(self._stop(client)["failed"] for client in clients)
        if lost:
            raise processes.NotRunning(f"{lost} of {held} streams were lost")
        return found

    def pids(self) -> list[int]:
        return [pid for root in self._running.roots for pid in machine.tree(root)]

    def _spent(self) -> tuple[float, float, float, float, float]:
        """CPU seconds so far: router, upstream, client and this program, each core in all."""
        mine = sum(
            used.ru_utime + used.ru_stime
            for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )
        return (
            machine.cpu_s(self.pids()), machine.cpu_s([self._upstream_pid]), mine,
            machine.busy_s(self._cores.router), machine.busy_s(self._cores.load),
        )

    def _load(self, step: Step) -> Result:
        client = self._start(step)
        try:
            output, _ = client.communicate(timeout=LOAD_DEADLINE_S)
        except BaseException:
            client.kill()
            client.wait()
            raise
        return _parsed(output, client, self._log)

    def _start(self, step: Step) -> processes.Process:
        argv = ["taskset", "-c", str(self._cores.load), *self.command(step)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )

    def _stop(self, client: processes.Process) -> Result:
        client.send_signal(signal.SIGTERM)
        try:
            output, _ = client.communicate(timeout=processes.STOP_S)
        except BaseException:
            client.kill()
            client.wait()
            raise
        return _parsed(output, client, self._log)

    def _wait_streams(self, count: int) -> None:
        began = time.monotonic()
        while (streams := open_streams(self._upstream_port)) < count:
            if time.monotonic() - began > HOLD_S / 2:
                raise processes.NotRunning(f"only {streams} of {count} streams are open")
            time.sleep(processes.POLL_S)


def open_streams(port: int) -> int:
    """How many streams the upstream serves now, by its own count."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    try:
        link.request("GET", "/metrics")
        text = link.getresponse().read().decode()
    finally:
        link.close()
    line = next(each for each in text.splitlines() if each.startswith("vllm:num_requests_running"))
    return int(float(line.split()[-1]))


@contextmanager
def upstream(work: Path, folder: Path, core: int) -> Iterator[tuple[processes.Process, list[int]]]:
    """The mock engine and its ports."""
    argv = [str(work / "bin" / "upstream"), str(UPSTREAM_PORTS)]
    log = folder / "upstream.log"
    with processes.running(argv, core=core, log=log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ports = [int(port) for port in process.stdout.readline().split()]
        if len(ports) != UPSTREAM_PORTS:
            raise processes.NotRunning(f"the upstream did not start: {log.read_text()}")
        yield process, ports


def _parsed(output: bytes, client: processes.Process, log: Path) -> Result:
    if client.returncode:
        raise processes.NotRunning(
            f"the load client ended with {client.returncode}: {log.read_text()[-300:]}"
        )
    parsed: Mapping[str, Any] = json.loads(output)
    return {name: value for name, value in parsed.items() if value != ""}


def _share(seconds: float, wall_s: float) -> float:
    return round(max(0.0, seconds) / wall_s, 3)


def pin_here(core: int) -> None:
    """This program works on the load's core, so that the router has its own."""
    os.sched_setaffinity(0, {core})
