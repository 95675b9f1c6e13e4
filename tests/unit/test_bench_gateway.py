"""The gateway benchmark's own code: arguments, bodies, our file, medians, ratios, tables."""

import json
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gateway import ours, report, run
from benchmarks.gateway.bodies import body_file
from benchmarks.gateway.processes import NotRunning
from benchmarks.gateway.routers import Router
from benchmarks.gateway.workloads import Step, Workload, workloads

from isochrone.wiring.alone_file import load_alone

UPSTREAMS = ("http://127.0.0.1:9001", "http://127.0.0.1:9002")
ROLES = {
    "direct": ("upstream", False), "nginx": ("floor", False), "isochrone": ("ours", True),
    "aware": ("rust", True), "robin": ("rust", False), "slow": ("record", False),
}


def a_head(name: str = "r1", **changes: Any) -> dict[str, Any]:
    routers = {
        router: {"role": role, "cache_aware": aware, "version": f"{router} 1"}
        for router, (role, aware) in ROLES.items()
    }
    return {
        "kind": "run", "run": name, "at": "2026-01-01", "commit": "0123456789abcdef",
        "changed": False, "command": "make bench-gateway", "rounds": 3, "failures": [],
        "routers": routers,
        "machine": {
            "processor": "a processor", "cores": 2, "system": "Linux", "python": "3.11",
            "load_before": 0.1,
        },
        **changes,
    }


def a_step(router: str, step: str, *, name: str = "r1", **result: Any) -> dict[str, Any]:
    full = {
        "runs": 1, "wall_s": 2.0, "ok": 1000, "events": 0, "bad": 0, "failed": 0, "short": 0,
        "unfinished": 0, "router_cpu_s": 1.0, "upstream_cpu_s": 0.5, "client_cpu_s": 0.5,
        "others_router_core": 0.0, "others_load_core": 0.1, **result,
    }
    return {"kind": "step", "run": name, "round": 1, "router": router, "step": step, "result": full}


def a_run(*steps: Mapping[str, Any]) -> report.Run:
    return report.read_runs(map(json.dumps, (a_head(), *steps)))[0]


def target(found: report.Run, what: str) -> report.Target:
    return next(each for each in report.targets(found) if each.what.startswith(what))


def test_runs_are_kept_apart() -> None:
    lines = (
        a_head("r1"), a_step("nginx", "W1-c32", ok=10), a_head("r2"),
        a_step("nginx", "W1-c32", name="r2", ok=20),
    )
    first, second = report.read_runs(map(json.dumps, lines))
    assert first.median("nginx", "W1-c32", "ok") == 10
    assert second.median("nginx", "W1-c32", "ok") == 20
    assert first.routers == ("nginx",)


def test_cost_is_the_median_of_the_rounds() -> None:
    rounds = [a_step("nginx", "W1-c32", router_cpu_s=cpu_s) for cpu_s in (0.02, 0.9, 0.01)]
    assert a_run(*rounds).per("nginx", "W1-c32", "ok", 1e3) == pytest.approx(0.02)


def test_the_cheapest_of_the_right_kind_is_beside_us() -> None:
    costs = {"isochrone": 0.3, "aware": 0.8, "robin": 0.5, "nginx": 0.1, "slow": 0.01}
    steps = [a_step(name, "W1-c32", router_cpu_s=cpu_s) for name, cpu_s in costs.items()]
    found = a_run(*steps)
    aware = target(found, "W1 short request, 32 connections: cheapest cache-aware")
    assert (aware.beside, aware.met) == ("aware", True)
    assert aware.theirs == pytest.approx(0.8)
    assert aware.measured == pytest.approx(0.375)
    anyone = target(found, "W1 short request, 32 connections: cheapest of any policy")
    assert anyone.beside == "robin"
    assert anyone.measured == pytest.approx(0.6)


def test_a_machine_that_grows_slower_shows_beside_the_ratio_of_medians() -> None:
    """Who was measured while it was slow is compared with who was then: 0.5 in each turn."""
    steps = [
        a_step(name, "W1-c32", router_cpu_s=cpu_s)
        for name, turns in (("aware", (0.2, 0.4, 0.6)), ("isochrone", (0.1, 0.2, 0.9)))
        for cpu_s in turns
    ]
    found = target(a_run(*steps[:3], a_step("isochrone", "W1-c32", router_cpu_s=0.1)), "W1")
    assert found.measured == pytest.approx(0.25)
    assert found.by_turns is None, "they had not the same turns"
    found = target(a_run(*steps), "W1")
    assert found.by_turns == pytest.approx(0.5)
    steps[-2:] = [a_step("isochrone", "W1-c32", router_cpu_s=cpu_s) for cpu_s in (0.3, 0.3)]
    found = target(a_run(*steps), "W1")
    assert found.measured == pytest.approx(0.75)
    assert found.by_turns == pytest.approx(0.5)


def test_a_target_that_must_be_undercut_is_not_met_by_its_equal() -> None:
    steps = [a_step(name, "W1-c32") for name in ("isochrone", "robin", "aware")]
    assert target(a_run(*steps), "W1 short request, 32 connections: cheapest of any").met is False


def test_failing_is_not_winning() -> None:
    steps = [a_step("isochrone", "W3-c64", router_cpu_s=0.1, events=9, failed=1)]
    steps += [a_step("robin", "W3-c64", router_cpu_s=1.0, events=9)]
    found = target(a_run(*steps), "W3")
    assert found.measured == pytest.approx(0.1)
    assert found.met is False


def test_slow_streams_are_compared_by_the_whole_run() -> None:
    steps = [
        a_step("isochrone", "W4-20ms", router_cpu_s=3.0, events=100),
        a_step("aware", "W4-20ms", router_cpu_s=4.0, events=900),
    ]
    assert target(a_run(*steps), "W4 slow streams, 20 ms").measured == pytest.approx(0.75)


def test_added_latency_leaves_the_upstream_out() -> None:
    times = {"direct": 10.0, "isochrone": 60.0, "robin": 110.0}
    steps = [
        a_step(name, step, latency_p50_us=us, latency_p99_us=us, first_p50_us=us)
        for name, us in times.items() for step in ("W5-request", "W5-first")
    ]
    found = a_run(*steps)
    assert target(found, "W5 added p50").measured == pytest.approx(0.5)
    assert target(found, "W5 first event").measured == pytest.approx(50.0)


def test_surcharges_are_differences() -> None:
    costs = {"isochrone": 0.30, "isochrone-tls": 0.36, "nginx": 0.10, "nginx-tls": 0.14}
    steps = [a_step(name, "W7-c32", router_cpu_s=cpu_s) for name, cpu_s in costs.items()]
    steps += [a_step("isochrone", "W6-c32", router_cpu_s=0.2)]
    steps += [a_step("isochrone-hop", "W6-c32", router_cpu_s=0.5)]
    found = a_run(*steps)
    assert target(found, "W7").measured == pytest.approx(1.5)
    assert target(found, "W6").measured == pytest.approx(2.5)
    assert target(found, "W6").met is False


def test_a_surcharge_is_judged_within_each_turn() -> None:
    """On a machine that grows slower, and by a median that a single slow turn does not move."""
    plain, secured = [0.30, 0.60, 0.90], [0.33, 0.63, 2.00]
    steps = [a_step("isochrone", "W7-c32", router_cpu_s=cpu_s) for cpu_s in plain]
    steps += [a_step("isochrone-tls", "W7-c32", router_cpu_s=cpu_s) for cpu_s in secured]
    steps += [a_step("nginx", "W7-c32", router_cpu_s=0.10)] * 3
    steps += [a_step("nginx-tls", "W7-c32", router_cpu_s=0.12)] * 3
    assert target(a_run(*steps), "W7").measured == pytest.approx(1.5)
    assert target(a_run(*steps[1:]), "W7").measured is None, "a turn of one alone compares nothing"


def test_memory_of_a_stream_is_what_the_most_streams_added() -> None:
    held = {"1000": 70.0, "5000": 150.0}
    step = a_step("isochrone", "M") | {"result": {"pss_start_mb": 50.0, "held": held}}
    found = a_run(step)
    start, end, stream = report.memory(found, "isochrone")
    assert (start, end) == (50.0, 150.0)
    assert stream == pytest.approx(20.48)
    assert target(found, "Memory of an open stream").met is True
    assert target(found, "Memory at start").met is True


def test_what_was_not_measured_is_not_met_and_not_missed() -> None:
    found = a_run(a_step("robin", "W1-c32"))
    assert {each.met for each in report.targets(found)} == {None}


def test_the_text_names_commit_and_errors() -> None:
    text = report.text(a_run(
        a_step("isochrone", "W1-c32", bad=3), a_step("aware", "W1-c32"),
        a_step("aware", "W3-c64", events=5000, first_p50_us=1500.0),
    ))
    assert "commit 0123456789ab:" in text
    row = next(line for line in text.splitlines() if line.startswith("| isochrone W1-c32"))
    assert row.split(" | ")[1:] == ["1.0000", "500", "50%", "0%", "10%", "3 |"]
    assert "| aware W3-c64 | 200.00 | 1.00 | 2,500 | 1.500 |" in text


def test_only_the_text_between_the_marks_is_rewritten() -> None:
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.rewrite(readme, "new\n")
    assert new == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.rewrite(new, "new\n") == new
    with pytest.raises(ValueError, match="lacks"):
        report.rewrite("no marks", "new")


def test_the_readme_can_be_rewritten() -> None:
    assert report.rewrite(report.README.read_text(), "tables\n")


def test_every_workload_has_its_bodies(tmp_path: Path) -> None:
    for quick in (True, False):
        for step in (step for each in workloads(quick=quick, seconds=None) for step in each.steps):
            lines = body_file(tmp_path, step.bodies).read_text().splitlines()
            assert len(lines) == 64
            body = json.loads(lines[0])
            assert body.get("stream", False) is (step.events > 0)
            if step.events:
                assert body["max_tokens"] == step.events - 2


def test_bodies_are_the_same_in_every_run(tmp_path: Path) -> None:
    one, other = (body_file(tmp_path / name, "long").read_bytes() for name in ("a", "b"))
    assert one == other
    assert all(15_500 < len(line) < 16_500 for line in one.splitlines())


def test_our_file_describes_the_view_that_is_promised(tmp_path: Path) -> None:
    process: dict[str, ours.Value] = {"site": ours.site_name(ours.NEAREST), "port": 4000}
    path = ours.write_config(tmp_path / "gateway.toml", process, UPSTREAMS)
    file = load_alone(path)
    assert len(file.sites) == 1_100
    assert sum(bool(each.models) for each in file.sites) == 60
    assert len(file.keys) == 1_000
    assert len(tomllib.loads(path.read_text())["policy"]) == 2


class Loaded:
    """Stands for a router that runs."""

    def __init__(self, name: str, turns: list[str], fails_at: int = 0) -> None:
        self._name, self._turns, self._left = name, turns, fails_at

    def measure(self, step: Step) -> dict[str, Any]:
        self._left -= 1
        if self._left == 0:
            raise NotRunning("gone")
        self._turns.append(f"{self._name} {step.seconds:g} s")
        result: dict[str, Any] = a_step(self._name, step.name, latency_p50_us=1.0)["result"]
        return result


def test_routers_that_are_compared_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    session = run.Session(run.parse(["--rounds", "1", "--only", "W2", "--quick", "--routers",
                                     "nginx,isochrone,isochrone-jetstream,sglang-round_robin"]))

    def joined(stack: ExitStack, workload: Workload, router: Router) -> Loaded:
        return Loaded(router.name, turns, fails_at=2 * (router.name == "nginx"))

    monkeypatch.setattr(session, "_join", joined)
    session.measure()
    assert turns == [
        "nginx 0.5 s", "isochrone 0.5 s", "sglang-round_robin 0.5 s",
        "sglang-round_robin 0.5 s", "isochrone 0.5 s", "isochrone-jetstream 1 s",
    ]
    assert session.failures == ["round 1 W2-c32 nginx: gone"]
    assert [line["router"] for line in session.lines if line["result"]["ok"]] == [
        turn.split()[0] for turn in turns
    ]


def test_requests_that_took_no_hop_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that answers without the second one is cheap, and nothing else shows it."""
    session = run.Session(run.parse(["--rounds", "1", "--only", "W6", "--quick"]))

    def joined(stack: ExitStack, workload: Workload, router: Router) -> Loaded:
        if router.name == "isochrone-hop":
            stack.callback(ours.check_hops, tmp_path)
        return Loaded(router.name, [])

    monkeypatch.setattr(session, "_join", joined)
    (tmp_path / "ingress-usage.jsonl").write_text("{}\n" * 1_000)
    (tmp_path / "peer-usage.jsonl").write_text("{}\n" * 990)
    session.measure()
    assert session.failures == []
    (tmp_path / "peer-usage.jsonl").write_text("{}\n" * 980)
    session.measure()
    assert session.failures == ["round 1 W6: only 980 of 1,000 requests took the hop"]


def test_arguments() -> None:
    options = run.parse(["--only", "W1,W3", "--routers", "nginx,isochrone", "--rounds", "1"])
    assert (options.only, options.routers) == (["W1", "W3"], ["nginx", "isochrone"])
    assert run.command_line(["--quick"]) == "make bench-gateway ARGS='--quick'"
    with pytest.raises(SystemExit):
        run.parse(["--only", "W9"])
