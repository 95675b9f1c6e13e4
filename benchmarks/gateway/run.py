"""Measures gateways side by side: CPU for the same work, latency and memory, one core each.

Prints tables; a full run also appends to results.jsonl and rewrites the tables of README.md. See
README.md for the question and the method.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gateway import machine, ours, processes, report, tools
from benchmarks.gateway.bodies import body_file
from benchmarks.gateway.routers import PEERS, Place, Router
from benchmarks.gateway.workloads import Bench, Result, Workload, pin_here, upstream, workloads

ROUTERS: dict[str, Router] = {each.name: each for each in (*PEERS, *ours.FORMS)}
MAIN = (
    "direct", "nginx", "isochrone", "sglang-cache_aware", "sglang-round_robin",
    "vllm-cache_aware", "vllm-round_robin",
)
# Slow, or another form of what is compared: only where it tells something.
EXTRA = {"litellm": ("W1", "W3", "W5"), "isochrone-jetstream": ("W1",)}
DEFAULT_WORK = Path.home() / ".cache" / "isochrone-bench"
DEFAULT_ROUNDS = 3


class Session:
    """One run of this program: what it was asked, where it works, what it found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.cores = machine.choose_cores()
        self.failures: list[str] = []
        self.lines: list[dict[str, Any]] = []
        now = datetime.now(UTC)
        self.name = now.strftime("%Y%m%dT%H%M%SZ")
        self.folder: Path = self.work / "runs" / self.name
        everything = workloads(quick=options.quick, seconds=options.seconds)
        wanted = options.only or [each.name for each in everything]
        self.workloads = [each for each in everything if each.name in wanted]
        used = dict.fromkeys(
            name for each in self.workloads for name in self.routers_of(each)
        )
        self.routers = {name: ROUTERS[name] for name in used}
        self.head: dict[str, Any] = {
            "kind": "run", "run": self.name, "at": now.isoformat(timespec="seconds"),
            **machine.commit(options.source),
            "command": command_line(sys.argv[1:]),
            "rounds": options.rounds, "machine": machine.facts(),
            "routers": {
                name: {
                    "role": each.role, "cache_aware": each.cache_aware, "version": each.version,
                }
                for name, each in self.routers.items()
            },
        }

    def routers_of(self, workload: Workload) -> list[str]:
        """Who takes part in a workload."""
        asked: list[str] | None = self.options.routers
        if workload.routers is not None:
            return [each for each in workload.routers if asked is None or each in asked]
        if asked is not None:
            return asked
        extra = [name for name, where in EXTRA.items() if workload.name in where]
        return [*MAIN, *extra]

    def prepare(self) -> None:
        """Get everything before anything is measured; who cannot be got is left out."""
        tools.compile_programs(self.work / "bin")
        processes.raise_file_limit()
        for name, router in list(self.routers.items()):
            try:
                router.install(self.work)
            except tools.Missing as missing:
                self.fail(name, str(missing))
                del self.routers[name]

    def fail(self, what: str, why: str) -> None:
        tools.say(f"{what} FAILED: {why}")
        self.failures.append(f"{what}: {why.splitlines()[0]}")

    def measure(self) -> None:
        """All rounds; within a round the routers take turns at each workload."""
        for number in range(1, self.options.rounds + 1):
            for workload in self.workloads:
                names = [name for name in self.routers_of(workload) if name in self.routers]
                together = [each for each in names if workload.turns > 1 and each not in EXTRA]
                if together:
                    try:
                        self._measure_together(number, workload, together)
                    except processes.NotRunning as error:  # seen when it was stopped
                        self.fail(f"round {number} {workload.name}", str(error))
                for name in names:
                    if name not in together:
                        self._measure_one(number, workload, self.routers[name])

    def _measure_one(self, number: int, workload: Workload, router: Router) -> None:
        """One router through one workload, freshly started."""
        what = f"round {number} {workload.name} {router.name}"
        try:
            with ExitStack() as stack:
                bench = self._join(stack, workload, router)
                for step in workload.steps:
                    self._keep(number, router.name, step.name, bench.measure(step))
                if workload.held:
                    self._keep(number, router.name, workload.name, bench.hold(workload.held))
        except processes.NotRunning as error:
            self.fail(what, str(error))

    def _measure_together(self, number: int, workload: Workload, names: Sequence[str]) -> None:
        """Several routers run at once and are loaded in short turns, so that all of them meet the
        machine as it is in the same minutes."""
        with ExitStack() as stack:
            benches: dict[str, Bench] = {}
            for name in names:
                try:
                    benches[name] = self._join(stack, workload, self.routers[name])
                except processes.NotRunning as error:
                    self.fail(f"round {number} {workload.name} {name}", str(error))
            for whole in workload.steps:
                step = whole  # what is done once lasts as long as its streams
                if not whole.once:
                    step = replace(whole, seconds=whole.seconds / workload.turns)
                for turn in range(workload.turns):
                    there = list(benches.items())
                    for name, bench in there if turn % 2 == 0 else reversed(there):
                        try:
                            self._keep(number, name, step.name, bench.measure(step))
                        except processes.NotRunning as error:
                            self.fail(f"round {number} {step.name} {name}", str(error))
                            del benches[name]

    def _join(self, stack: ExitStack, workload: Workload, router: Router) -> Bench:
        """`router`, freshly started and warmed up, until `stack` is left."""
        bench = stack.enter_context(self.started(router))
        if workload.steps:
            bench.warm(self.options.warm)
        return bench

    @contextmanager
    def started(self, router: Router) -> Iterator[Bench]:
        """The upstream, and the router before it, in an empty folder of their own."""
        folder = self.folder / router.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        probe = body_file(self.work / "bodies", "short").read_bytes().splitlines()[0]
        with upstream(self.work, folder, self.cores.load) as (engine, ports):
            place = Place(
                work=self.work, folder=folder, source=self.options.source, cores=self.cores,
                upstream_ports=tuple(ports), upstream_pid=engine.pid, probe=probe,
            )
            with router.running(place) as running:
                time.sleep(1.0)  # whatever it still does after its first answer
                yield Bench(self.work, folder, self.cores, running, (engine.pid, ports[0]))

    def _keep(self, number: int, router: str, step: str, result: Result) -> None:
        self.lines.append({
            "kind": "step", "run": self.name, "round": number, "router": router, "step": step,
            "result": {"runs": 1, **result},
        })
        tools.say(f"round {number}  {router:20} {step:12} {summary(result)}")

    def text(self) -> str:
        return report.text(self.read())

    def read(self) -> report.Run:
        return report.read_runs(map(json.dumps, self.all_lines()))[0]

    def all_lines(self) -> list[dict[str, Any]]:
        return [{**self.head, "failures": self.failures}, *self.lines]

    def record(self) -> None:
        """Append to results.jsonl, then let the README say what stands there."""
        with report.RESULTS.open("a") as file:
            file.writelines(f"{json.dumps(each)}\n" for each in self.all_lines())
        report.README.write_text(report.rewrite(report.README.read_text(), self.text()))


def command_line(arguments: Sequence[str]) -> str:
    """What somebody would type to have the same again."""
    return "make bench-gateway" + (f" ARGS='{' '.join(arguments)}'" if arguments else "")


def summary(result: Result) -> str:
    """One line of progress."""
    if "held" in result:
        held = ", ".join(f"{count}: {mb} MB" for count, mb in result["held"].items())
        return f"start {result['pss_start_mb']} MB, streams {held}"
    cpu_s, wall_s = result["router_cpu_s"], result["wall_s"]
    parts = [f"{result['ok'] / wall_s:9,.0f}/s", f"{cpu_s / result['ok'] * 1000:.4f} CPU ms each"]
    if result["events"]:
        parts.append(f"{cpu_s / result['events'] * 1e6:.2f} CPU s/M events")
    parts.append(f"p50 {result['latency_p50_us'] / 1000:.3f} ms")
    errors = {
        name: result[name] for name in ("bad", "failed", "short", "unfinished") if result[name]
    }
    parts += [f"{errors} {result.get('bad_text', '')}"] if errors else []
    load = (result["upstream_cpu_s"] + result["client_cpu_s"]) / wall_s
    return "  ".join([
        *parts, f"router core {cpu_s / wall_s:.0%}", f"load core {load:.0%}",
        f"others {result['others_router_core']:.0%}/{result['others_load_core']:.0%}",
    ])


def hold(session: Session) -> None:
    """Start one router and wait for Ctrl-C, so that it can be looked at while it is loaded."""
    (name, router), *_ = session.routers.items()
    with session.started(router) as bench:
        tools.say(f"{name} runs; process ids {bench.pids()}. Load it with, for example:")
        for workload in session.workloads:
            for step in workload.steps:
                argv = ["taskset", "-c", str(session.cores.load), *bench.command(step)]
                tools.say(f"  {step.name}: {' '.join(argv)}")
        tools.say("Ctrl-C ends it.")
        signal.pause()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [each.name for each in workloads(quick=False, seconds=None)]

    def listed(known: Sequence[str]) -> Any:
        def split(text: str) -> list[str]:
            given = text.split(",")
            if wrong := [each for each in given if each not in known]:
                raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(known)}")
            return given

        return split

    parser = argparse.ArgumentParser(prog="make bench-gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, metavar="N")
    parser.add_argument("--only", type=listed(names), metavar="W1,W3", help="workloads")
    parser.add_argument(
        "--routers", type=listed(list(ROUTERS)), metavar="A,B", help=f"of {', '.join(ROUTERS)}"
    )
    parser.add_argument("--quick", action="store_true", help="short and small: shows that it works")
    parser.add_argument(
        "--seconds", type=float, help="length of closed loops, all turns together (default 3)"
    )
    parser.add_argument("--warm", type=float, default=2.0, metavar="S", help="seconds of warm-up")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="programs, peers, logs")
    parser.add_argument(
        "--source", type=Path, default=machine.ROOT / "src", metavar="DIR",
        help="the product to measure (default: of this checkout)",
    )
    parser.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=None,
        help="append to results.jsonl and rewrite README.md (default: full runs of all routers)",
    )
    parser.add_argument(
        "--hold", action="store_true", help="start the first router, print loads, wait for Ctrl-C"
    )
    return parser.parse_args(arguments)


def ended(number: int, frame: FrameType | None) -> None:
    """SIGTERM is taken as Ctrl-C: everything that was started is stopped on the way out."""
    raise KeyboardInterrupt


def main() -> int:
    options = parse(sys.argv[1:])
    options.work = options.work.expanduser().absolute()
    options.source = options.source.expanduser().absolute()
    signal.signal(signal.SIGTERM, ended)
    session = Session(options)
    session.prepare()
    pin_here(session.cores.load)
    interrupted = False
    try:
        if options.hold:
            hold(session)
            return 0
        session.measure()
    except KeyboardInterrupt:
        interrupted = True
        tools.say("interrupted; everything is stopped")
    if session.lines:
        sys.stdout.write(session.text())
    if not session.failures:
        shutil.rmtree(session.folder, ignore_errors=True)  # logs are of use after failures only
    whole = not (options.quick or options.only or options.routers or interrupted)
    if whole if options.record is None else options.record and not interrupted:
        session.record()
    return 130 if interrupted else 1 if session.failures else 0


if __name__ == "__main__":
    sys.exit(main())
