"""Turns results.jsonl into tables: medians of the rounds, ratios within a run, targets met or not.

Without arguments it rewrites the tables of README.md from the latest recorded run.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
README = HERE / "README.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
OURS = "isochrone"
NOTHING = "-"

Value = float | None
Row = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: its first line, and (router, step) -> one result for each turn of each round."""

    head: Mapping[str, Any]
    results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]

    @property
    def routers(self) -> tuple[str, ...]:
        """Those with any result, in the order of the run."""
        measured = {router for router, _ in self.results}
        return tuple(name for name in self.head["routers"] if name in measured)

    def median(self, router: str, step: str, name: str) -> Value:
        """The middle one of the turns' values; None where there is none."""
        values = [
            float(each[name]) for each in self.results.get((router, step), ()) if name in each
        ]
        return statistics.median(values) if values else None

    def per(self, router: str, step: str, unit: str, factor: float) -> Value:
        """The median of the router's CPU seconds for `factor` times one `unit` of work."""
        values = self._costs(router, step, unit, factor)
        return statistics.median(values) if values else None

    def more(self, router: str, other: str, step: str, unit: str, factor: float) -> Value:
        """What `router` takes more than `other`: the median over the turns that both had, each
        compared with its neighbour, since a small difference drowns in what a machine does between
        two minutes."""
        ours, theirs = (self._costs(each, step, unit, factor) for each in (router, other))
        if not ours or len(ours) != len(theirs):
            return None
        return statistics.median(a - b for a, b in zip(ours, theirs, strict=True))

    def times(self, router: str, other: str, step: str, unit: str) -> Value:
        """How many times what `other` takes `router` does, compared turn by turn likewise."""
        ours, theirs = (self._costs(each, step, unit, 1.0) for each in (router, other))
        if not ours or len(ours) != len(theirs):
            return None
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))

    def _costs(self, router: str, step: str, unit: str, factor: float) -> list[float]:
        return [
            each["router_cpu_s"] / each[unit] * factor
            for each in self.results.get((router, step), ()) if each.get(unit)
        ]

    def role(self, *roles: str, cache_aware: bool | None = None) -> tuple[str, ...]:
        described = self.head["routers"]
        return tuple(
            name for name in self.routers
            if described[name]["role"] in roles
            and (cache_aware is None or described[name]["cache_aware"] is cache_aware)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`ours` against `theirs` of `beside`: the ratio, or the value itself, is to be at most
    `at_most` (below it when `strictly`). With `errors` of ours nothing is met: failing is cheap.
    `by_turns` is the ratio again, as the median of those within a turn: both had the same machine
    then, and where the two ratios differ the machine did."""

    what: str
    unit: str
    ours: Value
    beside: str
    theirs: Value
    at_most: float
    is_ratio: bool = True
    strictly: bool = False
    errors: int = 0
    by_turns: Value = None

    @property
    def measured(self) -> Value:
        if not self.is_ratio:
            return self.ours
        if self.ours is None or self.theirs is None or self.theirs <= 0:
            return None
        return self.ours / self.theirs

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        if self.errors:
            return False
        return self.measured < self.at_most if self.strictly else self.measured <= self.at_most


def read_runs(lines: Iterable[str]) -> list[Run]:
    """All runs of a results file, oldest first."""
    heads: dict[str, Mapping[str, Any]] = {}
    results: dict[str, dict[tuple[str, str], list[Mapping[str, Any]]]] = {}
    for line in lines:
        if not line.strip():
            continue
        entry = json.loads(line)
        if entry["kind"] == "run":
            heads[entry["run"]] = entry
            results[entry["run"]] = {}
        else:
            place = (entry["router"], entry["step"])
            results[entry["run"]].setdefault(place, []).append(entry["result"])
    return [Run(head=head, results=results[name]) for name, head in heads.items()]


def least(values: Mapping[str, Value]) -> tuple[str, Value]:
    """(name, value) of the smallest value there is."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return NOTHING, None
    name = min(known, key=lambda each: known[each])
    return name, known[name]


def difference(one: Value, other: Value) -> Value:
    return None if one is None or other is None else one - other


def targets(run: Run) -> list[Target]:
    """What this benchmark is to show, each with what was measured."""
    rust = run.role("rust")
    aware = run.role("rust", cache_aware=True)
    found: list[Target] = []

    def against(
        what: str, step: str, unit: str, factor: float, rivals: Sequence[str], at_most: float,
        strictly: bool = False,
    ) -> None:
        name, theirs = least({each: run.per(each, step, unit, factor) for each in rivals})
        scale = {1e3: "CPU ms a request", 1e6: "CPU s a million events", 1.0: "CPU s"}[factor]
        found.append(Target(
            what=what, unit=scale, ours=run.per(OURS, step, unit, factor), beside=name,
            theirs=theirs, at_most=at_most, strictly=strictly, errors=errors(run, OURS, step),
            by_turns=run.times(OURS, name, step, unit),
        ))

    for step, load in (("W1-c32", "32 connections"), ("W1-c128", "128 connections")):
        what = f"W1 short request, {load}"
        against(f"{what}: cheapest cache-aware", step, "ok", 1e3, aware, 0.5)
        against(f"{what}: cheapest of any policy", step, "ok", 1e3, rust, 1.0, True)
    against("W2 16 KB: cheapest cache-aware", "W2-c32", "ok", 1e3, aware, 0.6)
    against("W3 streams: cheapest", "W3-c64", "events", 1e6, rust, 0.6)
    for step, pace in (("W4-20ms", "20 ms"), ("W4-100ms", "100 ms")):
        against(f"W4 slow streams, {pace}: cheapest", step, "runs", 1.0, rust, 1.0)
    return [*found, *_latency(run, rust), *_surcharges(run), *_memory(run)]


def _latency(run: Run, rust: Sequence[str]) -> list[Target]:
    def added(router: str, quantile: str) -> Value:
        own = run.median("direct", "W5-request", quantile)
        return difference(run.median(router, "W5-request", quantile), own)

    p50, p99 = "latency_p50_us", "latency_p99_us"
    quickest, theirs = least({each: added(each, p50) for each in rust})
    steadiest, worst = least({each: run.median(each, "W5-request", p99) for each in rust})
    own_first = run.median("direct", "W5-first", "first_p50_us")
    first = difference(run.median(OURS, "W5-first", "first_p50_us"), own_first)
    return [
        Target(what="W5 added p50, one connection", unit="us", ours=added(OURS, p50),
               beside=quickest, theirs=theirs, at_most=1.0, strictly=True),
        Target(what="W5 p99, one connection", unit="us",
               ours=run.median(OURS, "W5-request", p99), beside=steadiest, theirs=worst,
               at_most=1.0),
        Target(what="W5 first event after the upstream's, p50", unit="us", ours=first,
               beside="direct", theirs=own_first, at_most=300.0, is_ratio=False, strictly=True),
    ]


def _surcharges(run: Run) -> list[Target]:
    def cost(router: str, step: str) -> Value:
        return run.per(router, step, "ok", 1e3)

    hops = [
        Target(what=f"W6 peer hop, {clients} connections, both gateways: the local hop",
               unit="CPU ms a request", ours=cost("isochrone-hop", f"W6-c{clients}"),
               beside=OURS, theirs=cost(OURS, f"W6-c{clients}"), at_most=2.2,
               by_turns=run.times("isochrone-hop", OURS, f"W6-c{clients}", "ok"))
        for clients in (32, 128)
    ]
    return [
        *hops,
        Target(what="W7 what TLS adds", unit="CPU ms a request",
               ours=run.more("isochrone-tls", OURS, "W7-c32", "ok", 1e3),
               beside="nginx", at_most=2.0,
               theirs=run.more("nginx-tls", "nginx", "W7-c32", "ok", 1e3)),
    ]


def _memory(run: Run) -> list[Target]:
    start, _, stream = memory(run, OURS)
    return [
        Target(what="Memory at start", unit="MB", ours=start, beside=NOTHING, theirs=None,
               at_most=90.0, is_ratio=False, strictly=True),
        Target(what="Memory of an open stream", unit="KB", ours=stream, beside=NOTHING,
               theirs=None, at_most=30.0, is_ratio=False, strictly=True),
    ]


def memory(run: Run, router: str) -> tuple[Value, Value, Value]:
    """(MB at start, MB with the most streams, KB a stream) of a router, medians of the rounds."""
    rounds = run.results.get((router, "M"), ())
    if not rounds:
        return None, None, None
    starts, ends, streams = [], [], []
    for each in rounds:
        count, end_mb = max((int(count), mb) for count, mb in each["held"].items())
        starts.append(each["pss_start_mb"])
        ends.append(end_mb)
        streams.append((end_mb - each["pss_start_mb"]) * 1024 / count)
    return statistics.median(starts), statistics.median(ends), statistics.median(streams)


# -- text ----------------------------------------------------------------------------------------


def show(value: Value, digits: int = 0) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def significant(value: Value) -> str:
    """Three digits that count."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def target_table(run: Run) -> str:
    rows = []
    for each in targets(run):
        if each.ours is None and each.theirs is None:
            continue
        met = {None: "not measured", True: "yes", False: "**no**"}[each.met]
        sign = "<" if each.strictly else "<="
        theirs = "" if each.theirs is None else f"{each.beside} {significant(each.theirs)}"
        ratio = significant(each.measured) if each.is_ratio else NOTHING
        rows.append((
            each.what, f"{significant(each.ours)} {each.unit}", theirs or NOTHING, ratio,
            significant(each.by_turns), f"{sign} {each.at_most:g}", met,
        ))
    return table(
        ("measure", "isochrone", "beside", "ratio", "turn by turn", "target", "met"), rows
    )


def _requests(run: Run, steps: Sequence[str]) -> str:
    rows = [
        (
            f"{router} {step}", show(run.per(router, step, "ok", 1e3), 4),
            show(rate(run, router, step, "ok")), *_checks(run, router, step),
        )
        for router, step in _places(run, steps)
    ]
    return table(("router", "CPU ms a request", "requests/s", *CHECKS), rows)


def _events(run: Run, steps: Sequence[str]) -> str:
    rows = [
        (
            f"{router} {step}", show(run.per(router, step, "events", 1e6), 2),
            show(run.median(router, step, "router_cpu_s"), 2),
            show(rate(run, router, step, "events")),
            milliseconds(run, router, step, "first_p50_us"),
            milliseconds(run, router, step, "first_p99_us"),
            milliseconds(run, router, step, "gap_p99_us"), *_checks(run, router, step),
        )
        for router, step in _places(run, steps)
    ]
    head = ("router", "CPU s a million events", "CPU s", "events/s", "first event p50 ms",
            "p99 ms", "gap p99 ms", *CHECKS)
    return table(head, rows)


def _places(run: Run, steps: Sequence[str]) -> list[tuple[str, str]]:
    """(router, step) of every result among these steps, in the order of the steps."""
    return [
        (router, step) for step in steps for router in run.routers if (router, step) in run.results
    ]


CHECKS = ("load core used", "others, router core", "others, load core", "errors")


def _checks(run: Run, router: str, step: str) -> Row:
    """How far to trust a line: was the load near its limit, who else worked, what went wrong."""
    rounds = run.results[router, step]
    used = statistics.median(
        (each["upstream_cpu_s"] + each["client_cpu_s"]) / each["wall_s"] for each in rounds
    )
    others = [run.median(router, step, f"others_{core}_core") or 0.0 for core in ("router", "load")]
    wrong = str(errors(run, router, step))
    return (f"{used:.0%}", *(f"{each:.0%}" for each in others), wrong)


def errors(run: Run, router: str, step: str) -> int:
    """Answers of all rounds that were refused, lost, short, or not there in time."""
    return sum(
        each[name] for each in run.results.get((router, step), ())
        for name in ("bad", "failed", "short", "unfinished")
    )


def rate(run: Run, router: str, step: str, unit: str) -> Value:
    """Units a second, the median of the rounds."""
    rounds = run.results.get((router, step), ())
    return statistics.median(each[unit] / each["wall_s"] for each in rounds) if rounds else None


def milliseconds(run: Run, router: str, step: str, name: str) -> str:
    value = run.median(router, step, name)
    return NOTHING if value is None else f"{value / 1000:.3f}"


def _latencies(run: Run) -> str:
    rows = [
        (
            router, milliseconds(run, router, "W5-request", "latency_p50_us"),
            milliseconds(run, router, "W5-request", "latency_p99_us"),
            milliseconds(run, router, "W5-first", "first_p50_us"),
            milliseconds(run, router, "W5-first", "first_p99_us"),
            show(run.per(router, "W5-request", "ok", 1e3), 4),
        )
        for router in run.routers if (router, "W5-request") in run.results
    ]
    head = ("router", "request p50 ms", "p99 ms", "first event p50 ms", "p99 ms",
            "CPU ms a request")
    return table(head, rows)


def _memories(run: Run) -> str:
    rows = []
    for router in run.routers:
        start, end, stream = memory(run, router)
        if start is not None:
            most = max(map(int, run.results[router, "M"][0]["held"]))
            rows.append((router, show(start), f"{show(end)} ({most:,})", show(stream, 1)))
    return table(("router", "MB at start", "MB (streams)", "KB a stream"), rows)


def text(run: Run) -> str:
    """Everything a run says, in Markdown."""
    head = run.head
    machine = head["machine"]
    changed = " with local changes" if head["changed"] else ""
    versions = ", ".join(
        dict.fromkeys(head["routers"][name]["version"] for name in run.routers)
    )
    parts = [
        f"Run of {head['at']}, commit {head['commit'][:12]}{changed}: `{head['command']}`, "
        f"rounds: {head['rounds']}, on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['system']}, Python {machine['python']}; load beforehand "
        f"{machine['load_before']}. {versions}.\n",
        target_table(run),
    ]
    steps = {step for _, step in run.results}
    for title, render, names in (
        ("W1 short requests", _requests, ("W1-c32", "W1-c128")),
        ("W2 conversations of 16 KB", _requests, ("W2-c32",)),
        ("W3 streams without delay", _events, ("W3-c64",)),
        ("W4 slow streams", _events, ("W4-20ms", "W4-100ms")),
        ("W6 the peer hop", _requests, ("W6-c32", "W6-c128")),
        ("W7 TLS", _requests, ("W7-c32",)),
    ):
        if steps & set(names):
            parts += [f"#### {title}\n", render(run, names)]
    if "W5-request" in steps:
        parts += ["#### W5 latency at one connection\n", _latencies(run)]
    if "M" in steps:
        parts += ["#### Memory\n", _memories(run)]
    if head["failures"]:
        parts += ["Did not run: " + "; ".join(head["failures"]) + "\n"]
    return "\n".join(parts)


def rewrite(readme: str, tables: str) -> str:
    """The README with the text between its marks replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the README lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="a results file to read")
    parser.add_argument("--print", action="store_true", help="print instead of rewriting README.md")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    runs = read_runs(lines)
    if not runs:
        raise SystemExit(f"{options.results} has no run; make one with `make bench-gateway`")
    if options.print:
        sys.stdout.write(text(runs[-1]))
    else:
        README.write_text(rewrite(README.read_text(), text(runs[-1])))


if __name__ == "__main__":
    main()
