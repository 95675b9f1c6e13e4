"""Hosts: how they may be called, which replicas run on them, and how pages write them."""

from pathlib import Path

import msgspec
import pytest

from isochrone.adapters.host import named
from isochrone.agent.hosting import host_of
from isochrone.agent.settings import AgentSettings
from isochrone.console.estate import Replica
from isochrone.console.hosts import Gpu, Host, grouped, memory, shared
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import HostName
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.host import is_host_name
from isochrone.core.world.model import EngineSpec
from isochrone.wire import fleet
from isochrone.wiring.settings import parse

OWN = HostName("rack3-gpu07")
GIB = 1024**3


@pytest.mark.parametrize("name", ["a", "rack3-gpu07", "node_1", "x" * 253, "Vm.example.net"])
def test_names_of_machines_are_names_of_hosts(name: str) -> None:
    assert is_host_name(name)
    assert named(name) == name


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("", "unnamed"), ("-", "unnamed"), ("a b", "a-b"), ("a/b", "a-b"), ("vm.", "vm"),
        ("Jörg's PC", "J-rg-s-PC"), ("x" * 254, "x" * 253), ("a\n", "a"), ("[red]", "red"),
    ],
)
def test_other_node_names_are_written_as_one(node: str, name: str) -> None:
    assert not is_host_name(node)
    assert named(node) == name


def test_a_host_that_is_badly_named_stops_the_start() -> None:
    text = 'identity = "i"\nlogs = "l"\nhost = "{}"\n'
    good = parse(text.format(OWN), AgentSettings, source="agent.toml", folder=Path("/"))
    assert good.host == OWN
    with pytest.raises(InvalidInput) as told:
        parse(text.format("a/b"), AgentSettings, source="agent.toml", folder=Path("/"))
    assert "agent.toml: host: must be up to 253 letters" in told.value.problems[0]
    assert "not 'a/b'" in told.value.problems[0]


@pytest.mark.parametrize(
    ("kind", "source", "host"),
    [
        ("llamacpp", "/models/m.gguf", OWN), ("llamacpp", "bundled:tiny.gguf", OWN),
        ("openai", "http://127.0.0.1:8000/v1", OWN), ("openai", "http://localhost:8000/v1", OWN),
        ("openai", "http://[::1]:8000/v1", OWN), ("openai", "http://127.9.9.9/v1", OWN),
        ("openai", "http://10.0.0.7:8000/v1", None), ("openai", "https://api.example/v1", None),
        ("openai", "http://localhost.example/v1", None), ("openai", "http://[::1/v1", None),
    ],
)
def test_a_replica_runs_where_its_agent_can_know(
    kind: str, source: str, host: HostName | None
) -> None:
    spec = EngineSpec(kind=kind, source=source)  # type: ignore[arg-type]
    assert host_of(spec, OWN) == host


def test_a_digest_of_an_agent_that_tells_no_hosts_is_understood() -> None:
    replica = {
        "id": "s/m/0", "model": "m", "generation": 1, "state": "ready", "pid": None, "running": 0,
        "waiting": 0, "restarts": 0, "prompt_tokens_total": None, "cached_tokens_total": None,
        "output_tokens_total": None,
    }
    said = {"site": "s", "epoch": 1, "sequence": 1, "at": 1, "loads": [], "replicas": [replica]}
    digest = fleet.decode(msgspec.msgpack.encode(said), SiteDigest)
    assert digest.hosts == ()
    assert digest.replicas[0].host is None


def a_host(site: str, name: str, machine: str | None, *gpus: Gpu) -> Host:
    return Host(
        site=site, name=name, cores=1, memory_bytes=23 * GIB + GIB // 2, gpus=gpus, machine=machine,
        health="healthy", replicas_wanted=2, ready=1, running=0, waiting=0, digest_age_ms=900.0,
    )


def test_a_host_is_described_in_a_line() -> None:
    assert a_host("s", "a", None).about == (
        "1 core, 24 GiB, no GPU found. 1 of 2 wanted replicas ready. Heard now."
    )
    large, other = Gpu(kind="NVIDIA H200", memory_bytes=140 * GIB), Gpu("Odd", None)
    assert a_host("s", "a", None, large, other, large).machinery == (
        "1 core, 24 GiB, 2 × NVIDIA H200 (140 GiB), 1 × Odd"
    )
    assert [memory(size) for size in (None, GIB // 2, 9 * GIB)] == ["–", "0.5 GiB", "9.0 GiB"]


def test_hosts_that_are_one_machine_are_said_to_be() -> None:
    found = [
        a_host("b", "vm", "m1"), a_host("a", "vm", "m1"), a_host("c", "vm", "m2"),
        a_host("d", "vm", None), a_host("e", "vm", None),
    ]
    (said,) = shared(found)
    assert said.startswith("vm at a and b is one machine")
    many = [a_host(site, f"on-{site}", "m") for site in "abcdef"]
    assert shared(many)[0].startswith("on-a, on-b, on-c and 3 more at a, b, c and 3 more")


def test_replicas_stand_with_their_hosts_and_those_of_no_known_host_last() -> None:
    def a_replica(id_: str, host: str | None) -> Replica:
        return Replica(
            id=id_, model="m", state="ready", health="healthy", why=None, generation=1, pid=None,
            running=0, waiting=0, restarts=0, kept_tokens=None, host=host,
        )

    replicas = [a_replica("0", None), a_replica("1", "b"), a_replica("2", "gone")]
    found = grouped(replicas, [a_host("s", "a", None), a_host("s", "b", None)])
    assert {name: [each.id for each in group] for name, group in found.items()} == {
        "a": [], "b": ["1"], None: ["0", "2"],
    }
    assert list(found)[-1] is None
    assert grouped([], []) == {None: []}
    assert list(grouped([], [a_host("s", "a", None)])) == ["a"]
