"""Hosts: what is found of the machine, and what the Control API says of them and to whom."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isochrone.adapters.host import GPUS_ASKED, find_host
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.ids import HostName, ModelName, SiteName
from isochrone.core.world.digest import HostLoad, ReplicaLoad, SiteDigest
from isochrone.core.world.host import Gpu, Host
from isochrone.wire import fleet, subjects
from tests.contract.test_control_api import JOIN, NOW, Api, an_api

NO_GPUS = ("/nowhere/nvidia-smi",)
MIB = 1024 * 1024


@pytest.fixture
def api(pool: Pool) -> Iterator[Api]:
    with an_api(pool) as found:
        yield found


def written(root: Path, **files: str) -> None:
    """Files of a kernel below `root`; '__' in a name is '/', and '_dot_' a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def a_program(folder: Path, script: str) -> tuple[str]:
    """A program in place of the one that lists GPUs."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return (str(path),)


def test_this_machine_is_found() -> None:
    host = find_host(None)
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert host.memory_bytes is None or host.memory_bytes > 64 * MIB
    assert find_host("other").name == "other"
    assert find_host(None) == host, "the same at each start, its machine included"


def test_a_machine_that_says_nothing_of_itself_has_what_the_process_may_use(
    tmp_path: Path,
) -> None:
    host = find_host("a", root=tmp_path, asked=NO_GPUS)
    assert host == Host(
        name=HostName("a"), cores=len(os.sched_getaffinity(0)), memory_bytes=None
    )


def test_what_a_group_may_use_is_what_counts(tmp_path: Path) -> None:
    written(
        tmp_path, proc__meminfo="MemFree: 1 kB\nMemTotal:       8192 kB\n",
        proc__self__cgroup="4:memory:/old\n0::/pod/one\n",
        proc__sys__kernel__random__boot_id="e467a001\n",
    )
    machine = find_host("a", root=tmp_path, asked=NO_GPUS)
    assert machine.memory_bytes == 8192 * 1024
    assert machine.machine is not None
    assert "e467a001" not in machine.machine
    written(
        tmp_path, sys__fs__cgroup__pod__memory_dot_max="4194304\n",
        sys__fs__cgroup__pod__one__memory_dot_max="max\n",
        sys__fs__cgroup__pod__one__cpu_dot_max="50000 100000\n",
        sys__fs__cgroup__pod__cpu_dot_max="max 100000\n",
    )
    limited = find_host("a", root=tmp_path, asked=NO_GPUS)
    assert (limited.memory_bytes, limited.cores) == (4194304, 1)
    written(tmp_path, proc__sys__kernel__random__boot_id="e467a002\n")
    assert find_host("a", root=tmp_path, asked=NO_GPUS).machine != limited.machine


def test_gpus_are_what_their_driver_lists(tmp_path: Path) -> None:
    listed = a_program(tmp_path, "printf 'NVIDIA H200, 143771\\nNVIDIA GB10, [N/A]\\n'")
    assert find_host("a", asked=listed).gpus == (
        Gpu(kind="NVIDIA H200", memory_bytes=143771 * MIB), Gpu(kind="NVIDIA GB10"),
    )
    broken = a_program(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert find_host("a", asked=broken).gpus == ()
    assert GPUS_ASKED[1:] == (
        "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"
    ), "what the lines above are the answer to"


def a_replica(index: int, host: str | None, state: str = "ready") -> ReplicaLoad:
    return ReplicaLoad(
        id=f"sydney/tiny/{index}", model=ModelName("tiny"), generation=1, state=state, pid=42,
        running=index, waiting=1, restarts=0, prompt_tokens_total=0, cached_tokens_total=0,
        output_tokens_total=0, host=None if host is None else HostName(host),
    )


def a_load(name: str, wanted: int = 1) -> HostLoad:
    host = Host(
        name=HostName(name), cores=8, memory_bytes=64 * MIB,
        gpus=(Gpu(kind="NVIDIA H200", memory_bytes=143771 * MIB),), machine="ab" * 8,
    )
    return HostLoad(host=host, replicas_wanted=wanted)


def says(
    api: Api, site: str, hosts: tuple[HostLoad, ...], replicas: tuple[ReplicaLoad, ...] = (),
    sequence: int = 1,
) -> None:
    digest = SiteDigest(
        site=SiteName(site), epoch=1, sequence=sequence, at=NOW, loads=(), replicas=replicas,
        hosts=hosts,
    )
    api.context.fleet.on_message(subjects.digest_subject(site), fleet.encode(digest))


def test_hosts_say_what_runs_there_of_what_should(api: Api) -> None:
    token = api.make("sites/sydney/token", None)["token"]
    api.call("POST", "sites/join", {"token": token, **JOIN}, key=None)
    assert api.call("GET", "hosts")[1] == {"items": [], "next": None}
    says(
        api, "sydney", (a_load("b", 3), a_load("a")),
        (
            a_replica(0, None), a_replica(1, "b"), a_replica(2, "b"), a_replica(3, "b", "failed"),
            a_replica(4, "a", "failed"),
        ),
    )
    broken, busy = api.call("GET", "hosts")[1]["items"]
    assert 0 <= busy.pop("digest_age_ms") < 5000
    assert busy == {
        "site": "sydney", "name": "b", "cores": 8, "memory_bytes": 64 * MIB,
        "gpus": [{"kind": "NVIDIA H200", "memory_bytes": 143771 * MIB}], "machine": "ab" * 8,
        "health": "healthy", "replicas_wanted": 3, "ready": 2, "running": 6, "waiting": 3,
    }
    assert (broken["name"], broken["ready"], broken["health"]) == ("a", 0, "down")
    shown = api.call("GET", "sites/sydney")[1]["replicas"]
    assert [each["host"] for each in shown] == [None, "b", "b", "b", "a"]
    says(api, "sydney", (a_load("b", 0),), sequence=2)
    (idle,) = api.call("GET", "hosts")[1]["items"]
    assert (idle["health"], idle["replicas_wanted"]) == ("healthy", 0), "and a is told no more"
    api.call("PUT", "sites/sydney/draining", {"draining": True})
    assert api.call("GET", "hosts")[1]["items"][0]["health"] == "draining"


class MovedClock:
    """A clock whose monotonic time the test moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def wall_ns(self) -> int:
        return NOW

    def monotonic_ns(self) -> int:
        return self.now_ns


def test_a_host_whose_agent_is_silent_is_down_with_what_it_said_last(pool: Pool) -> None:
    clock = MovedClock()
    with an_api(pool, clock) as api:
        token = api.make("sites/sydney/token", None)["token"]
        api.call("POST", "sites/join", {"token": token, **JOIN}, key=None)
        says(api, "sydney", (a_load("a"),), (a_replica(0, "a"),))
        found = []
        for seconds in (4, 6):
            clock.now_ns = seconds * 1_000_000_000
            (host,) = api.call("GET", "hosts")[1]["items"]
            found.append((host["health"], host["ready"], host["digest_age_ms"]))
        assert found == [("healthy", 1, 4000.0), ("down", 1, 6000.0)]


def test_hosts_come_in_pages_and_by_site(api: Api) -> None:
    says(api, "sydney", (a_load("z"), a_load("b")))
    says(api, "ashburn", (a_load("b"),))
    found: list[tuple[str, str]] = []
    after: str | None = ""
    for _ in range(3):
        page = api.call("GET", f"hosts?limit=1&after={after}")[1]
        found += [(each["site"], each["name"]) for each in page["items"]]
        after = page["next"]
    assert found == [("ashburn", "b"), ("sydney", "b"), ("sydney", "z")]
    assert after is None
    of_one = api.call("GET", "hosts?site=sydney")[1]["items"]
    assert [each["name"] for each in of_one] == ["b", "z"]
    assert api.call("GET", "hosts?site=frankfurt")[1]["items"] == [], "never heard"
    assert api.call("GET", "hosts?site=nowhere")[0] == 404


@pytest.mark.parametrize(
    ("hosts", "replicas"),
    [
        ((a_load("a"), a_load("a")), ()), ((a_load("a/b"),), ()), ((a_load(""),), ()),
        ((a_load("[red]"),), ()), ((a_load("a"),), (a_replica(0, "b"),)),
        ((), (a_replica(0, "b"),)),
    ],
)
def test_a_digest_with_hosts_that_cannot_be_is_refused(
    api: Api, hosts: tuple[HostLoad, ...], replicas: tuple[ReplicaLoad, ...]
) -> None:
    says(api, "sydney", (a_load("good"),))
    says(api, "sydney", hosts, replicas, sequence=2)
    assert [each["name"] for each in api.call("GET", "hosts")[1]["items"]] == ["good"]


@pytest.mark.parametrize("what", ["kind", "state", "id", "model"])
def test_a_digest_that_would_command_a_terminal_is_refused(api: Api, what: str) -> None:
    title = "\x1b]0;yours\x07"
    says(api, "sydney", (a_load("good"),))
    load, replica = a_load("bad"), a_replica(0, "bad")
    if what == "kind":
        gpus = (Gpu(kind=title, memory_bytes=None),)
        load = replace(load, host=replace(load.host, gpus=gpus))
    else:
        replica = replace(replica, **{what: title})  # type: ignore[arg-type]
    says(api, "sydney", (load,), (replica,), sequence=2)
    assert [each["name"] for each in api.call("GET", "hosts")[1]["items"]] == ["good"]


def test_customers_are_told_no_host(api: Api) -> None:
    says(api, "sydney", (a_load("secret-name"),), (a_replica(0, "secret-name"),))
    owner = api.tenant("acme")
    key = api.make("keys", {}, key=owner)["key"]
    for caller in (owner, key):
        assert api.call("GET", "hosts", key=caller)[0] == 403
        assert api.call("GET", "hosts?site=sydney", key=caller)[0] == 403
        for path in ("sites/sydney", "sites", "status", "live", "deployments"):
            status, said = api.call("GET", path, key=caller)
            assert status == 200
            assert "secret-name" not in str(said), path
    assert "secret-name" in str(api.call("GET", "status")[1])
