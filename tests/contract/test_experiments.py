"""Experiments that operators have control play: what plays them, the loop, the API, the log."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from isochrone.adapters.child.experiments import ChildPlayer
from isochrone.adapters.clock import SystemClock
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.console import api as console
from isochrone.console.pages import experiments as page
from isochrone.console.pages.audit import names_of
from isochrone.console.parts.words import NOTHING
from isochrone.control import experimenting
from isochrone.control.experimenting import Experimenting
from isochrone.core.errors import Conflict, InvalidInput, NotFound
from isochrone.core.lifecycle.experiment_run import ExperimentOrder, ExperimentRun, RunState
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.audit import AuditFilter
from isochrone.ports.experiments import Ending, Player
from isochrone.ports.registry import Registry
from isochrone.ports.tenants import Once, Page
from isochrone.twin.fakes.player import FakePlayer
from tests.contract.test_console_pages import asks
from tests.contract.test_control_api import ADMIN, Api, an_api

PAGE = Page(most=100)
PATIENCE_S = 30.0
SMALL = ExperimentOrder(wanted="eight-sites", policies=("ours",), loads=(0.5,), requests=20)
LONG = ExperimentOrder(wanted="eight-sites", requests=60_000)
OWN = """length_s = 20.0
hours = false
[fleet]
engine_sites = 2
replicas = 3
[workload]
load = 0.5
"""


@pytest.fixture(params=["child", "fake"])
def player(request: pytest.FixtureRequest, tmp_path: Path) -> Player:
    if request.param == "fake":
        return FakePlayer()
    return ChildPlayer(tmp_path / "kept", most_s=60.0, jobs=1)


def test_an_order_is_checked_before_anything_is_played(player: Player) -> None:
    async def all_of_it() -> None:
        planned = await player.plan(
            ExperimentOrder(wanted="eight-sites", policies=("ours", "bound"), loads=(0.5, 0.9)), ""
        )
        assert (planned.policies, planned.loads) == (("ours", "bound"), (0.5, 0.9))
        assert (planned.points, planned.runs) == (2, 4)
        assert min(planned.requests, planned.about_s) > 0
        for order, content, said in (
            (ExperimentOrder(wanted="eight-sites", policies=("luck",)), "", "there is no policy"),
            (ExperimentOrder(wanted="x", is_own=True),
             f'rtt = "/etc/passwd"\n{OWN}', "no packaged file"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await player.plan(order, content)
            (problem,) = refused.value.problems
            assert said in problem

    asyncio.run(all_of_it())


def test_a_run_leaves_its_report_and_its_figures(player: Player) -> None:
    player.keep("r1", OWN)
    order = ExperimentOrder(wanted="mine", is_own=True, policies=("ours",), requests=20)
    assert (player.progress("r1"), player.results("r1")) == (None, None)
    assert asyncio.run(player.play("r1", order)) == Ending()
    progress, results = player.progress("r1"), player.results("r1")
    assert progress is not None
    assert (progress.done, progress.of) == (1, 1)
    assert results is not None
    assert "ours" in results.rows[0]
    assert len(results.columns) == len(results.rows[0])
    assert (player.kept("r1", "report") or "").startswith("<!doctype html>")
    assert player.kept("r1", "scenario") == OWN
    player.forget("r1")
    player.forget("r1")
    assert (player.results("r1"), player.kept("r1", "report")) == (None, None)


def processes() -> dict[int, tuple[int, int]]:
    """Parent and group of each process that runs."""
    found: dict[int, tuple[int, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                found[int(stat.parent.name)] = (int(parent), int(group))
    return found


def children() -> set[int]:
    return {pid for pid, (parent, _) in processes().items() if parent == os.getpid()}


def members(group: int) -> set[int]:
    return {pid for pid, (_, own) in processes().items() if own == group}


def first_to_go(pid: int) -> bool:
    """Whether the kernel takes it first when memory runs out."""
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.02)


def test_a_run_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    player, before = ChildPlayer(tmp_path, most_s=60.0, jobs=2), children()

    async def all_of_it() -> None:
        playing = asyncio.create_task(player.play("r1", LONG))
        await until(lambda: player.progress("r1") is not None)
        (child,) = children() - before
        assert os.getpriority(os.PRIO_PROCESS, child) == 19
        assert first_to_go(child)
        assert child in members(child)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        await until(lambda: not members(child))

    asyncio.run(all_of_it())
    assert children() == before


def test_a_run_that_takes_too_long_or_fails_says_so(tmp_path: Path) -> None:
    slow = ChildPlayer(tmp_path, most_s=0.2, jobs=1)
    ending = asyncio.run(slow.play("r1", LONG))
    assert "not done after 0.2 s" in (ending.problem or "")
    wrong = ChildPlayer(tmp_path, most_s=60.0, jobs=1)
    ending = asyncio.run(wrong.play("r2", ExperimentOrder(wanted="nowhere")))
    assert "there is no file nowhere" in (ending.problem or "")


@pytest.fixture
def registry(pool: Pool) -> Registry:
    return open_registry(pool)


def a_run(run_id: str, order: ExperimentOrder = SMALL) -> ExperimentRun:
    return ExperimentRun(
        id=run_id, order=order, title=order.wanted, state="waiting", asked_by="principal:ada",
        asked_at=1, runs=1, about_s=1.0,
    )


def test_the_book_keeps_runs_and_plays_one_at_a_time(registry: Registry) -> None:
    store, own = registry.experiments, ExperimentOrder(
        wanted="mine", is_own=True, policies=("ours", "bound"), loads=(0.5, 0.9), requests=7,
        seed=3, full=True,
    )
    once = Once(caller="ada", key="k", body_sha256="0")
    first = store.add(EVERY_TENANT, a_run("r1", own), once=once, most_open=2)
    assert store.add(EVERY_TENANT, a_run("r9"), once=once, most_open=2) == first
    store.add(EVERY_TENANT, a_run("r2"), once=None, most_open=2)
    with pytest.raises(Conflict, match="2 experiments are running or waiting"):
        store.add(EVERY_TENANT, a_run("r3"), once=None, most_open=2)
    assert store.run("r1") == a_run("r1", own)
    assert [each.id for each in store.runs(PAGE)] == ["r2", "r1"]
    assert [each.id for each in store.runs(Page(most=5, after="r2"))] == ["r1"]
    assert [each.id for each in store.open()] == ["r1", "r2"]
    store.step(EVERY_TENANT, "r1", "begun", now=5)
    with pytest.raises(Conflict):
        store.step(EVERY_TENANT, "r2", "begun", now=6)
    with pytest.raises(Conflict, match="stop it first"):
        store.remove(EVERY_TENANT, "r1")
    failed = store.step(EVERY_TENANT, "r1", "failed", now=7, problem="why")
    assert (failed.begun_at, failed.ended_at, failed.problem) == (5, 7, "why")
    assert store.remove(EVERY_TENANT, "r1") == failed
    for call in (store.run, lambda run: store.remove(EVERY_TENANT, run)):
        with pytest.raises(NotFound):
            call("r1")


T = TypeVar("T")


async def offload(call: Callable[[], T], /) -> T:
    return call()


def a_loop(registry: Registry, player: Player, *, most_kept: int = 50) -> Experimenting:
    return Experimenting(
        registry.experiments, registry.leases, player, holder="one", clock=SystemClock(),
        offload=offload, most_kept=most_kept,
    )


@asynccontextmanager
async def working(loop: Experimenting) -> AsyncIterator[None]:
    """The loop beside the test, and cancelled at its end as when control stops."""
    task = asyncio.create_task(loop.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_runs_are_played_in_their_order_and_old_ones_go(registry: Registry) -> None:
    player, store = FakePlayer(), registry.experiments
    for number in range(4):
        player.keep(f"r{number}", "")
        store.add(EVERY_TENANT, a_run(f"r{number}"), once=None, most_open=9)
    assert asyncio.run(a_loop(registry, player, most_kept=2).turn()) == 4
    assert list(player.orders) == ["r0", "r1", "r2", "r3"]
    assert [(each.id, each.state) for each in store.runs(PAGE)] == [("r3", "done"), ("r2", "done")]
    assert player.results("r0") is None, "its files went with it"
    assert player.results("r3") is not None


@pytest.mark.parametrize("problem", [None, "it was too much"])
def test_a_run_that_plays_ends_as_it_did(registry: Registry, problem: str | None) -> None:
    player, store = FakePlayer(at_once=False), registry.experiments
    store.add(EVERY_TENANT, a_run("r1"), once=None, most_open=9)

    async def all_of_it() -> None:
        async with working(a_loop(registry, player)):
            await until(lambda: "r1" in player.playing)
            assert store.run("r1").state == "running"
            player.finish("r1", problem)
            await until(lambda: not store.run("r1").is_open)

    asyncio.run(all_of_it())
    ended = store.run("r1")
    assert (ended.state, ended.problem) == ("failed" if problem else "done", problem)


def test_somebody_stops_a_run_and_the_next_begins(registry: Registry) -> None:
    player, store = FakePlayer(at_once=False), registry.experiments
    for name in ("r1", "r2", "r3"):
        store.add(EVERY_TENANT, a_run(name), once=None, most_open=9)

    async def all_of_it() -> None:
        loop = a_loop(registry, player)
        async with working(loop):
            await until(lambda: "r1" in player.playing)
            assert store.step(EVERY_TENANT, "r2", "stop_asked", now=3).state == "stopped"
            assert store.step(EVERY_TENANT, "r1", "stop_asked", now=3).state == "stopping"
            loop.wake()
            await until(lambda: "r3" in player.playing)
            assert store.run("r1").state == "stopped"
            assert "r1" not in player.playing

    asyncio.run(all_of_it())
    assert store.run("r3").state == "interrupted", "control stopped, and says so"


def test_a_run_whose_control_was_killed_is_interrupted(registry: Registry) -> None:
    store = registry.experiments
    states: dict[str, RunState] = {}
    for name in ("r1", "r2"):
        store.add(EVERY_TENANT, a_run(name), once=None, most_open=9)
        store.step(EVERY_TENANT, name, "begun", now=2)
        if name == "r2":
            store.step(EVERY_TENANT, name, "stop_asked", now=3)
        # Another copy may still play it, as long as its lease holds.
        lease = registry.leases.take("experiments", "two", now=SystemClock().wall_ns(),
                                     ttl_ns=60_000_000_000)
        assert lease is not None
        assert asyncio.run(a_loop(registry, FakePlayer()).turn()) == 0
        assert store.run(name).is_open
        registry.leases.release(lease)
        assert asyncio.run(a_loop(registry, FakePlayer()).turn()) == 0
        states[name] = store.run(name).state
    assert states == {"r1": "interrupted", "r2": "stopped"}


def test_a_copy_that_lost_its_lease_stops_playing(registry: Registry) -> None:
    player, store = FakePlayer(at_once=False), registry.experiments
    store.add(EVERY_TENANT, a_run("r1"), once=None, most_open=9)

    async def all_of_it() -> None:
        loop = a_loop(registry, player)
        async with working(loop):
            await until(lambda: "r1" in player.playing)
            later = SystemClock().wall_ns() + 10 * experimenting.LEASE_NS
            assert registry.leases.take("experiments", "two", now=later, ttl_ns=1 << 40) is not None
            store.step(EVERY_TENANT, "r1", "lost", now=3)
            loop.wake()
            await until(lambda: not player.playing)

    asyncio.run(all_of_it())
    assert store.run("r1").state == "interrupted"


@pytest.fixture
def api(pool: Pool) -> Iterator[Api]:
    with an_api(pool, player=FakePlayer()) as found:
        yield found


def plays(api: Api) -> None:
    """The loop's turn."""
    assert api.context.experiments is not None
    asyncio.run(a_loop(api.context.registry, api.context.experiments.player).turn())


def test_from_an_order_to_its_report(api: Api) -> None:
    order = {"wanted": "eight-sites", "policies": ["ours"], "loads": [0.5, 0.9], "requests": 30}
    status, plan = api.call("POST", "experiments/plans", order)
    assert (status, plan["runs"], plan["requests"], plan["about_s"]) == (200, 2, 60, 2.0)
    assert api.call("GET", "experiments")[1]["items"] == [], "nothing was begun"
    status, run = api.call("POST", "experiments", order, once="a")
    assert (status, run["state"], run["runs"]) == (201, "waiting", 2)
    assert run["command"].endswith(
        "report eight-sites --policies ours --vary workload.load=0.5,0.9 --requests 30"
    )
    assert api.call("POST", "experiments", order, once="a")[1]["id"] == run["id"]
    assert api.changes[-1:] == [True], "the loop was told"
    path = f"experiments/{run['id']}"
    assert api.call("GET", f"{path}/report")[0] == 404
    plays(api)
    done = api.call("GET", path)[1]
    assert (done["state"], done["asked_by"]) == ("done", run["asked_by"])
    answer = api.client.get(
        f"/api/v1/{path}/report", headers={"authorization": f"Bearer {ADMIN}"}
    )
    assert answer.text == f"<!doctype html>{run['id']}"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert api.call("GET", f"{path}/results")[1]["rows"] == [["ours", "1"]]
    assert api.call("POST", f"{path}/stop", {})[0] == 409
    assert api.call("DELETE", path)[0] == 200
    assert api.call("GET", path)[0] == 404
    entries = api.context.registry.audit.entries(
        EVERY_TENANT, AuditFilter(kind="experiment", subject=run["id"]), most=100
    )
    states = [(each.after or {}).get("state") for each in entries]
    assert states == ["waiting", "running", "done", None]
    asked_by = run["asked_by"]
    assert [each.actor for each in entries] == [asked_by, "control", "control", asked_by]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wanted": "../../etc/passwd"}, "wanted: "), ({"wanted": "--help"}, "wanted: "),
        ({"wanted": "nowhere"}, "there is no file nowhere"), ({"loads": [0.0]}, "loads.0: "),
        ({"policies": ["luck"]}, "there is no policy luck"), ({"requests": 0}, "requests: "),
        ({"policies": ["ours --cluster"]}, "policies.0: "), ({"content": "[["}, "not a TOML file"),
    ],
)
def test_a_wrong_order_is_told_once_and_begins_nothing(
    api: Api, changes: dict[str, object], said: str
) -> None:
    status, problem = api.call("POST", "experiments", {"wanted": "eight-sites", **changes})
    assert status == 422
    (only,) = problem["problems"]
    assert said in only
    assert api.call("GET", "experiments")[1]["items"] == []


def test_one_that_waits_is_stopped_by_whoever_asks(api: Api) -> None:
    for _ in range(5):
        run = api.make("experiments", {"wanted": "eight-sites"})
    status, problem = api.call("POST", "experiments", {"wanted": "eight-sites"})
    assert (status, "5 experiments" in problem["detail"]) == (409, True)
    status, stopped = api.call("POST", f"experiments/{run['id']}/stop", {})
    assert (status, stopped["state"]) == (200, "stopped")
    assert api.call("DELETE", f"experiments/{run['id']}")[0] == 200


def test_without_a_folder_nothing_is_played(pool: Pool) -> None:
    with an_api(pool) as api:
        status, problem = api.call("POST", "experiments", {"wanted": "eight-sites"})
        assert (status, "docs/experiments.md" in problem["detail"]) == (503, True)
        assert api.call("GET", "experiments") == (200, {"items": [], "next": None})


def test_the_page_shows_what_the_api_says(api: Api) -> None:
    (plan,) = asks(api, lambda control: control.items("experiments/packaged", page.Plan))
    assert "3 simulations with 300 requests in all: 1 point at load 0.6" in (
        page.effects_of(plan)[0].text
    )
    body = page.order_in({"wanted": "mine", "content": OWN, "policies": "ours"})

    async def begun(control: console.Api) -> page.Run:
        return await control.post("experiments", page.Run, body)

    run = asks(api, begun)
    assert (run.own, page.far(run)) == (True, "waits until what plays before it is over")
    plays(api)
    (after,) = asks(api, lambda control: control.items("experiments", page.Run))
    assert (after.state, page.took(after) != NOTHING) == ("done", True)
    names = asks(api, names_of)
    assert names[after.asked_by] == "operator"
    path = f"experiments/{run.id}"
    assert asks(api, lambda control: control.text(f"{path}/scenario")) == OWN
    results = asks(api, lambda control: control.get(f"{path}/results", page.Results))
    assert results.columns == ("policy", "p99")
