"""A gateway that runs alone, as people start it: one file, the official client, a usage file."""

import json
import os
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from tests.fixtures.scripted_engine import ScriptedEngine
from tests.rig.alone import MODEL, Alone, EngineThread, a_gateway, an_engine, config_text, key_table
from tests.rig.cloud import COMMAND, environment, isochrone
from tests.rig.waiting import gone, wait_until

pytestmark = pytest.mark.rig

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "standalone.toml"
HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def engine() -> Iterator[EngineThread]:
    with an_engine() as running:
        yield running


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def test_the_example_is_good_with_a_key_that_was_hashed(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(EXAMPLE.read_text())
    assert "there is no [[key]]" in isochrone("check", path).stderr
    made = isochrone("keys", "hash", "--name", "laptop")
    assert made.stderr.startswith("secret  iso_")
    with path.open("a") as file:
        file.write(made.stdout)
    checked = isochrone("check", path)
    assert checked.returncode == 0, checked.stderr
    assert "gateway of site lyon, alone: 1 models, 2 sites, 2 policies, 1 keys" in checked.stdout
    assert "# not here yet: upstream" in checked.stdout, "its key is to be in the environment"
    path.write_text(path.read_text().replace('key_env = "', 'key_file = "no/such/'))
    checked = isochrone("check", path)
    assert checked.returncode == 2
    assert "cannot read the key file" in checked.stderr
    secret = made.stderr.split()[1]
    again = subprocess.run(
        [*COMMAND, "keys", "hash", "--stdin", "--json"], input=secret, env=environment(),
        capture_output=True, text=True, timeout=60, check=True,
    )
    assert json.loads(again.stdout)["secret_sha256"] in made.stdout


def test_what_the_file_sells_is_reserved_and_no_more(tmp_path: Path, engine: EngineThread) -> None:
    gold = key_table("gold", "golden").rstrip() + (
        '\nclasses = ["reserved", "on_demand"]\norganisation = "acme"\n'
        '[[entitlement]]\nname = "gold"\ntok_s = 20\norganisation = "acme"\n'
    )
    with a_gateway(tmp_path / "g", config_text(engine.url, more=gold)) as gateway:
        client = gateway.client("golden")

        def class_() -> str | None:
            raw = client.chat.completions.with_raw_response.create(
                model=MODEL, messages=HELLO, service_tier="priority", max_tokens=2
            )
            return raw.headers["x-isochrone-class"]

        wait_until(lambda: class_() == "reserved", "it has been told", deadline_s=10)
        found = [class_() for _ in range(40)]
        assert found.count("reserved") <= 40 // 2, "14 tokens each, and 20 a second were sold"
        wait_until(lambda: class_() == "reserved", "it fills again", deadline_s=10)


def test_it_answers_streams_meters_and_stops(tmp_path: Path, engine: EngineThread) -> None:
    bound = key_table("bound", "french", policy="french") + (
        '[[policy]]\nname = "french"\nresidency = ["FR"]\n'
    )
    text = config_text(engine.url, gateway='request_log = "log/requests.jsonl"', more=bound)
    with a_gateway(tmp_path / "g", text) as gateway:
        client = gateway.client()
        assert [model.id for model in client.models.list()] == [MODEL]
        line = gateway.usage_of(gateway.chat())
        assert (line["key"], line["site"], line["outcome"]) == ("laptop", "here", "finished")
        assert (line["input_uncached"], line["input_cached"], line["output"]) == (6, 4, 2)
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, stream=True
        )
        text = "".join(c.choices[0].delta.content or "" for c in raw.parse() if c.choices)
        assert text == "xxxx" * 3
        line = gateway.usage_of(raw.headers["x-isochrone-request"])
        assert (line["stream"], line["output"], line["token_source"]) == (True, 3, "engine")
        assert line["country"] == "DE"
        assert gateway.status("wrong") == 401
        assert gateway.status("french") == 403
        last = gateway.chat()
        assert gateway.stop() == 0
        assert gateway.usage_of(last)["outcome"] == "finished"
        log = (gateway.folder / "log" / "requests.jsonl").read_text()
        assert last in log
        assert "secret" not in gateway.config.read_text().replace("secret_sha256", "")


def test_changes_of_the_file_are_taken_and_no_stream_is_dropped(
    tmp_path: Path, engine: EngineThread
) -> None:
    engine.call(engine.engine.hold.clear)
    with a_gateway(tmp_path / "g", config_text(engine.url)) as gateway:
        stream = gateway.client().chat.completions.create(
            model=MODEL, messages=HELLO, stream=True
        )
        words = [next(stream).choices[0].delta.content]
        laptop = key_table("laptop", "secret")
        gateway.edit(laptop, key_table("phone", "other"))
        wait_until(lambda: bool(gateway.logged("reloaded")), "the change is taken")
        engine.call(engine.engine.hold.set)
        assert gateway.status("secret") == 401
        assert gateway.status("other") == 200
        words += [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
        assert "".join(word or "" for word in words) == "xxxx" * 3
        assert gateway.status("other") == 200

        gateway.edit('country = "DE"', 'country = "de"\ncolour = "red"')
        wait_until(lambda: len(gateway.logged("reload_refused")) >= 2, "both problems are logged")
        assert gateway.status("other") == 200
        os.kill(gateway.pid, signal.SIGHUP)
        wait_until(lambda: len(gateway.logged("reload_refused")) >= 4, "it looked again")

        gateway.edit('country = "de"\ncolour = "red"', 'country = "DE"')
        gateway.edit("port = 0", "port = 0\ndrain_timeout_s = 1")
        wait_until(lambda: bool(gateway.logged("reload_needs_restart")), "it says what it cannot")
        (said,) = gateway.logged("reload_needs_restart")
        assert said["settings"] == ["drain_timeout_s"]


def test_files_that_were_moved_away_are_made_again(tmp_path: Path, engine: EngineThread) -> None:
    with a_gateway(tmp_path / "g", config_text(engine.url)) as gateway:
        gateway.usage_of(gateway.chat())
        (gateway.folder / "usage.jsonl").rename(gateway.folder / "usage.1")
        os.kill(gateway.pid, signal.SIGHUP)
        wait_until(lambda: (gateway.folder / "usage.jsonl").exists(), "the file is made again")
        gateway.usage_of(gateway.chat())
        assert len(gateway.usage("usage.1")) == 1


def test_a_kill_loses_no_request_and_doubles_none(tmp_path: Path, engine: EngineThread) -> None:
    with a_gateway(tmp_path / "g", config_text(engine.url)) as gateway:
        done = [gateway.chat() for _ in range(20)]
        engine.call(engine.engine.hold.clear)
        raw = gateway.client().chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, stream=True
        )
        next(iter(raw.parse()))
        gateway.stop(signal.SIGKILL)
        gateway.start()
        cut = gateway.usage_of(raw.headers["x-isochrone-request"])
        assert (cut["outcome"], cut["reporter"]) == ("ingress_lost", "recovered")
        for request in done:
            assert gateway.usage_of(request)["outcome"] == "finished"
        assert len(gateway.usage()) == 21


def test_workers_share_a_port_and_a_usage_file(tmp_path: Path, engine: EngineThread) -> None:
    text = config_text(engine.url)
    with a_gateway(tmp_path / "g", text, "--workers", "2", listening=2) as gateway:
        (port, other) = (entry["port"] for entry in gateway.logged("gateway_listening"))
        assert port == other
        first = children(gateway.pid)
        assert len(first) == 2
        done = [gateway.chat() for _ in range(40)]  # a connection each, so both get some
        for request in done:
            gateway.usage_of(request)
        assert len({line["batch"].split("-")[2] for line in gateway.usage()}) >= 2

        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(gateway.logged("gateway_listening")) >= 3, "it is started again")
        assert gateway.logged("worker_ended")[0]["code"] == -signal.SIGKILL
        done += [gateway.chat() for _ in range(10)]
        second = children(gateway.pid)
        assert len(second) == 2
        gateway.edit(key_table("laptop", "secret"), key_table("phone", "other"))
        wait_until(lambda: len(gateway.logged("reloaded")) >= 2, "both take the change")
        assert [gateway.status("secret") for _ in range(10)] == [401] * 10
        assert gateway.stop() == 0
        assert all(gone(pid) for pid in (*first, *second))
        counts = Counter(line["request_id"] for line in gateway.usage())
        assert set(counts) == set(done)
        assert set(counts.values()) == {1}


def test_a_worker_that_is_started_again_shares_what_the_others_have(
    tmp_path: Path, engine: EngineThread
) -> None:
    """Also when the file names another folder by then, which needs a restart of all."""
    text = config_text(engine.url).replace(
        'name = "laptop"', 'name = "laptop"\nrequests_per_min = 20'
    )
    with a_gateway(tmp_path / "g", text, "--workers", "2", listening=2) as gateway:
        assert Counter(gateway.status("secret") for _ in range(30)) == {200: 20, 429: 10}
        gateway.edit("port = 0", 'port = 0\njournal = "elsewhere"')
        wait_until(lambda: len(gateway.logged("reload_needs_restart")) == 2, "both are told")
        for pid in children(gateway.pid):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(gateway.logged("gateway_listening")) >= 4, "both are started again")
        assert Counter(gateway.status("secret") for _ in range(10)) == {429: 10}
        assert not (gateway.folder / "elsewhere").exists()
        assert gateway.stop() == 0
        assert len({line["request_id"] for line in gateway.usage()}) == 40


def test_a_worker_that_cannot_be_started_again_now_takes_nobody_with_it(
    tmp_path: Path, engine: EngineThread
) -> None:
    """A system that is short of memory kills one, and refuses the next."""
    text = config_text(engine.url)
    with a_gateway(tmp_path / "g", text, "--workers", "2", listening=2) as gateway:
        first, second = children(gateway.pid)
        in_use = max(int(each) for each in os.listdir(f"/proc/{gateway.pid}/fd")) + 1
        _, most = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (in_use, most))
        os.kill(first, signal.SIGKILL)
        wait_until(
            lambda: gateway.ended or len(gateway.logged("worker_not_started")) >= 2, "it is tried"
        )
        assert not gateway.ended
        assert children(gateway.pid) == [second]
        assert gateway.status("secret") == 200
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (most, most))
        wait_until(lambda: len(gateway.logged("gateway_listening")) >= 3, "it is started again")
        assert gateway.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hang_up_while_it_starts_ends_nothing(
    tmp_path: Path, engine: EngineThread, workers: int
) -> None:
    """`logrotate` and editors' hooks send it whenever they like."""
    gateway = Alone(tmp_path / "g", config_text(engine.url), "--workers", str(workers))
    maps = ""
    with gateway.output.open("ab") as output:
        gateway.process = subprocess.Popen(
            [*COMMAND, "gateway", "--config", str(gateway.config), "--workers", str(workers)],
            env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )
    try:
        while "msgspec" not in maps:  # the interpreter itself has started
            maps = Path(f"/proc/{gateway.pid}/maps").read_text()

        def listens(processes: int) -> bool:
            with suppress(ProcessLookupError):
                os.kill(gateway.pid, signal.SIGHUP)
            return gateway.ended or len(gateway.logged("gateway_listening")) >= processes

        wait_until(lambda: listens(workers), "all listen", poll_s=0.005)
        assert not gateway.ended
        if workers > 1:
            os.kill(children(gateway.pid)[0], signal.SIGKILL)
            wait_until(lambda: listens(workers + 1), "it is started again", poll_s=0.005)
            codes = [entry["code"] for entry in gateway.logged("worker_ended")]
            assert codes == [-signal.SIGKILL]
        seen = len(gateway.logged("reloaded"))
        os.kill(gateway.pid, signal.SIGHUP)
        wait_until(lambda: len(gateway.logged("reloaded")) >= seen + workers, "all are told")
        assert gateway.status("secret") == 200
    finally:
        assert gateway.stop() == 0


def test_workers_die_with_their_parent_and_one_alone_ships_what_they_left(
    tmp_path: Path, engine: EngineThread
) -> None:
    text = config_text(engine.url)
    with a_gateway(tmp_path / "g", text, "--workers", "2", listening=2) as gateway:
        engine.call(engine.engine.hold.clear)
        streams = [
            gateway.client().chat.completions.with_raw_response.create(
                model=MODEL, messages=HELLO, stream=True
            )
            for _ in range(12)
        ]
        workers = children(gateway.pid)
        assert len(workers) == 2
        gateway.stop(signal.SIGKILL)
        wait_until(lambda: all(gone(pid) for pid in workers), "no worker is left")
    with a_gateway(tmp_path / "g", text) as gateway:
        for stream in streams:
            line = gateway.usage_of(stream.headers["x-isochrone-request"])
            assert line["outcome"] == "ingress_lost"
        assert len(gateway.usage()) == 12


def test_what_keeps_it_from_running_is_one_line(tmp_path: Path, engine: EngineThread) -> None:
    with a_gateway(tmp_path / "g", config_text(engine.url)) as gateway:
        port = gateway.logged("gateway_listening")[-1]["port"]
        for arguments in ((), ("--workers", "2")):
            other = Alone(tmp_path / f"other{len(arguments)}", "")
            other.config.write_text(config_text(engine.url).replace("port = 0", f"port = {port}"))
            done = isochrone("gateway", "--config", other.config, *arguments)
            assert done.returncode == 1
            assert "address already in use" in done.stderr
            assert "Traceback" not in done.stderr
        done = isochrone("gateway", "--config", gateway.config)
        assert "is in use by another process" in done.stderr  # the journal
    ports = tmp_path / "ports.toml"
    ports.write_text(config_text(engine.url, gateway="metrics_port = 4998").replace(
        "port = 0", "port = 4999", 1
    ))
    done = isochrone("gateway", "--config", ports, "--workers", "2")
    assert done.returncode == 2
    assert "port 4999 is a port of metrics: 2 workers have 4998 to 4999" in done.stderr
    bad = tmp_path / "bad.toml"
    bad.write_text("[gateway]\nprot = 1\n")
    done = isochrone("gateway", "--config", bad, "--workers", "2")
    assert done.returncode == 2
    assert "unknown key 'prot'" in done.stderr
    assert "there is no [[model]]" in done.stderr


def test_two_gateways_serve_each_other(tmp_path: Path, engine: EngineThread) -> None:
    keys = {}
    for name in ("near", "far"):
        (tmp_path / name).mkdir()
        made = isochrone("gateway", "--new-peer-secret", tmp_path / name / "peer.key")
        keys[name] = made.stdout.strip()
        assert keys[name].startswith('peer_key = "')
    refused = isochrone("gateway", "--new-peer-secret", tmp_path / "near" / "peer.key")
    assert refused.returncode == 2
    secret = 'peer_secret_file = "peer.key"'
    near_site = f'[[site]]\nname = "near"\nrtt_ms = 1\ngateway = "127.0.0.1:9"\n{keys["near"]}\n'
    far_text = config_text(engine.url, gateway=f'site = "far"\n{secret}', more=near_site)
    with a_gateway(tmp_path / "far", far_text.replace('"here"', '"far"')) as far:
        port = far.logged("gateway_listening")[-1]["port"]
        near_text = f"""
[gateway]
site = "near"
port = 0
{secret}
[[model]]
name = "{MODEL}"
[[site]]
name = "far"
country = "DE"
rtt_ms = 1
gateway = "127.0.0.1:{port}"
serving = ["{MODEL}"]
{keys["far"]}
{key_table("laptop", "secret")}"""
        with a_gateway(tmp_path / "near", near_text) as near:
            request = near.chat()
            line, evidence = near.usage_of(request), far.usage_of(request)
            assert (line["reporter"], line["ingress"], line["site"]) == ("ingress", "near", "far")
            assert evidence["reporter"] == "evidence"
            assert line["output"] == evidence["output"] == 2
            raw = near.client().chat.completions.with_raw_response.create(
                model=MODEL, messages=HELLO, stream=True
            )
            assert sum(bool(chunk.choices) for chunk in raw.parse()) >= ScriptedEngine().chunks
            assert near.usage_of(raw.headers["x-isochrone-request"])["output"] == 3
