"""The client commands on a real cloud: tables for people, JSON for scripts, errors of one line."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.rig.browser import SIZES, browser, program, tab
from tests.rig.cloud import COMMAND, Cloud, environment, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig


def _told(cloud: Cloud, *arguments: str) -> str:
    done = isochrone(*arguments, "--state", cloud.state)
    assert done.returncode == 0, done
    return done.stdout


def _json(cloud: Cloud, *arguments: str) -> Any:
    return json.loads(_told(cloud, *arguments, "--json"))


def test_a_request_can_be_found_and_explained(cloud: Cloud) -> None:
    said = _json(cloud, "chat", "Hello!", "--site", "sydney", "--max-tokens", "8")
    assert said["content"]
    assert said["usage"]["completion_tokens"] > 0
    request = said["request"]
    rows: dict[str, Any] = {}

    def booked() -> bool:
        rows.update({row["id"]: row for row in _json(cloud, "usage", "--by", "request")})
        return request in rows

    wait_until(booked, "the request is booked")
    row = rows[request]
    assert row["site"] == said["site"]
    assert row["country"] == said["country"]
    assert row["outcome"] == "finished"
    assert row["source"] == "engine"
    assert row["output"] == said["usage"]["completion_tokens"]
    prompt = said["usage"]["prompt_tokens"]
    assert row["input_uncached"] + row["input_cached"] == prompt
    explained = _told(cloud, "explain", request)
    assert "ingress AU saw plaintext" in explained
    for site in ("sydney", "frankfurt", "ashburn"):
        assert site in explained
    assert "emulated" in explained
    assert "█" in explained
    assert request in _told(cloud, "usage")


def test_a_bound_key_is_served_where_it_may_be(cloud: Cloud) -> None:
    made = _json(cloud, "keys", "create", "--residency", "DE,EEA", "--name", "bound")
    assert set(made) == {"id", "key", "residency", "transit"}
    assert made["residency"] == ["DE", "EEA"]
    assert made["transit"] == ["any"]

    def served_at() -> str | None:
        reply = cloud.chat("sydney", key=made["key"])
        return reply.headers.get("x-isochrone-site") if reply.status == 200 else None

    wait_until(lambda: served_at() is not None, "the gateway knows the key")
    assert served_at() == "frankfurt"
    assert made["id"] in _told(cloud, "keys")
    assert made["key"] not in _told(cloud, "keys", "list")
    assert _json(cloud, "keys", "revoke", made["id"]) == {"id": made["id"], "revoked": True}
    wait_until(
        lambda: cloud.chat("sydney", key=made["key"]).status == 401, "the gateway refuses the key"
    )


def test_lists_of_the_estate(cloud: Cloud) -> None:
    assert [row["name"] for row in _json(cloud, "models")] == ["tiny-fable"]
    assert {row["name"] for row in _json(cloud, "sites")} == {"sydney", "frankfurt", "ashburn"}
    assert "frankfurt" in _told(cloud, "sites")
    assert "emulated" in _told(cloud, "sites", "sydney")
    assert "tiny-fable" in _told(cloud, "models")
    assert len(_json(cloud, "status")["sites"]) == 3
    assert "ready" in _told(cloud, "status")
    hosts = _json(cloud, "hosts")
    assert [row["site"] for row in hosts] == ["ashburn", "frankfurt", "sydney"]
    assert len({(row["name"], row["machine"]) for row in hosts}) == 1, "one machine plays all"
    assert [row["site"] for row in _json(cloud, "hosts", "sydney")] == ["sydney"]
    for command in ("hosts", "status"):
        assert hosts[0]["name"] in _told(cloud, command).split()
    policy = _json(cloud, "policies", "create", "--residency", "EU", "--transit", "EEA")
    assert policy["id"] in _told(cloud, "policies")
    for group in ("key", "model", "site", "class", "day"):
        assert isinstance(_json(cloud, "usage", "--by", group), list)


def test_a_cloud_can_be_named_by_url(cloud: Cloud) -> None:
    up = cloud.up
    done = isochrone("sites", "--json", "--url", up["control"], "--key", up["admin_key"])
    assert len(json.loads(done.stdout)) == 3
    done = isochrone("chat", "Hi", "--url", up["control"], "--key", up["api_key"], "--json")
    assert done.returncode == 0, done


def test_a_recorded_trace_is_replayed_and_booked_once(cloud: Cloud, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    # Not so fast that a busy machine has to refuse any: how many it serves is measured elsewhere.
    options = ("--limit", "20", "--speed", "5", "--verify", "--out", str(out))
    told = _told(cloud, "replay", "azure-conv-sample", *options)
    assert "the book agrees: 20 requests booked once" in told
    assert "rows altered" in told
    report = json.loads(out.read_bytes())
    assert report["errors"] == {}
    assert report["whole"]["requests"] == report["whole"]["finished"] == 20
    assert sum(group["requests"] for group in report["by_site"]) == 20
    two = ("--limit", "2", "--speed", "99", "--site", "frankfurt", "--out", str(out))
    assert _json(cloud, "replay", "mooncake-conv-sample", *two)["format"] == "mooncake"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("keys", "create", "--residency", "XX"), 2, "XX"),
        (("keys", "create", "--residency", ","), 2, "names nothing"),
        (("keys", "revoke", "nobody"), 1, "nobody"),
        (("keys", "revoke", ""), 2, "empty"),
        (("explain", "nothing"), 1, "nothing"),
        (("explain", "a b?c#d"), 1, "a b?c#d"),
        (("usage", "--by", "moon"), 2, "expected one of"),
        (("usage", "--since", "yesterday"), 2, "since"),
        (("chat", "Hi", "--site", "atlantis"), 2, "atlantis"),
        (("chat", "Hi", "--model", "gpt-9"), 1, "gpt-9"),
        (("status", "--key", "isoadm_wrong"), 1, "key"),
        (("replay", "nothing.csv"), 2, "packaged: azure-code, azure-conv"),
        (("replay", "azure-conv-sample", "--site", "atlantis"), 2, "atlantis"),
        (("replay", "azure-conv-sample", "--speed", "0"), 2, "speed"),
    ],
)
def test_errors_are_one_line(
    cloud: Cloud, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = isochrone(*arguments, "--state", cloud.state)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done
    assert said in done.stderr


def test_a_refusal_at_the_ingress_is_explained(cloud: Cloud) -> None:
    made = _json(cloud, "keys", "create", "--transit", "DE", "--name", "enters in DE")
    wait_until(
        lambda: cloud.chat("sydney", key=made["key"]).status == 403, "the gateway knows the key"
    )
    request = cloud.chat("sydney", key=made["key"]).headers["x-isochrone-request"]
    wait_until(
        lambda: isochrone("explain", request, "--state", cloud.state).returncode == 0, "booked"
    )
    told = _told(cloud, "explain", request)
    assert "chat.completions; the body was not read\n" in told
    assert "refused by rule transit, status 403" in told
    assert "the body was not read: ingress AU saw no plaintext" in told
    assert "saw plaintext" not in told
    totals = _told(cloud, "usage", "--by", "model")
    assert "(no model)" in totals
    assert "(no site)" not in totals
    assert "(no site)" in _told(cloud, "usage", "--by", "site")


def test_up_ends_with_130_only_when_it_was_interrupted_before_it_was_ready(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [*COMMAND, "up", "--state", str(state)]
    early = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert early.stdout is not None
        assert early.stdout.readline()  # it has begun to start something
        early.send_signal(signal.SIGINT)
        told, complaints = early.communicate(timeout=60)
    finally:
        early.kill()
    assert early.returncode == 130, complaints
    assert "stopped; nothing is left running" in told
    assert complaints == ""
    late = Cloud(state).start()
    try:
        wait_until(lambda: "The cloud is up" in late.output.read_text(), "it says that it is ready")
    finally:
        late.stop(signal.SIGINT)
    assert late.process is not None
    assert late.process.returncode == 0


@pytest.mark.parametrize("module", ["typer", "isochrone.cli.app", "isochrone.cli.usage"])
def test_an_interrupt_during_the_imports_ends_quietly(module: str) -> None:
    interrupted = f"""
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.argv = ["isochrone", "--help"]
from isochrone.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", interrupted], env=environment(), capture_output=True, text=True,
        timeout=60, check=False,
    )
    assert done.returncode == 130, done
    assert done.stderr.strip() == ""


@pytest.fixture
def empty_control() -> Iterator[tuple[str, list[str]]]:
    """URL of a control without sites, and the paths that it was asked for."""
    asked: list[str] = []

    class Control(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.path)
            found = self.path == "/api/v1/status"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(b'{"sites": []}' if found else b'{"detail": "not found"}')

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *args: object) -> None:
            """Nothing: the paths are kept above."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Control) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_an_id_is_one_part_of_the_path_whatever_it_holds(
    empty_control: tuple[str, list[str]],
) -> None:
    url, asked = empty_control
    for arguments in (
        ("keys", "revoke", "../sites"), ("explain", "../keys"), ("sites", "a b?c"),
        ("site", "token", "x/../y#z"),
    ):
        assert isochrone(*arguments, "--url", url, "--key", "k").returncode == 1
    assert asked == [
        "/api/v1/keys/..%2Fsites", "/api/v1/requests/..%2Fkeys", "/api/v1/sites/a%20b%3Fc",
        "/api/v1/sites/x%2F..%2Fy%23z/token",
    ]


def test_without_sites_status_names_the_command_that_makes_a_token(
    empty_control: tuple[str, list[str]],
) -> None:
    done = isochrone("status", "--url", empty_control[0], "--key", "k")
    assert "`isochrone site token NAME`" in done.stdout


def test_check_lists_every_problem_and_masks_secrets(cloud: Cloud) -> None:
    good = isochrone("check", cloud.state / "control" / "control.toml")
    assert good.returncode == 0, good
    assert "a good control file" in good.stdout
    site = cloud.state / "sites" / "sydney"
    for name in ("gateway", "agent"):
        assert isochrone("check", site / f"{name}.toml").returncode == 0
    bad = isochrone("check", cloud.state / "control" / "world.toml", "--as", "gateway")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) >= 4
    masked = isochrone("check", cloud.state / "up.json")
    assert masked.returncode == 2
    assert cloud.up["admin_key"] not in masked.stderr + masked.stdout


@pytest.mark.skipif(program() is None, reason="there is no Chromium on this machine")
def test_the_report_of_a_twin_is_drawn_by_itself(tmp_path: Path) -> None:
    """A page from a file: its charts and its map are there, it asks nobody, and nobody is kept
    out."""
    page = tmp_path / "report.html"
    done = isochrone(
        "twin", "report", "eight-sites", "--policies", "ours,nearest,bound", "--vary",
        "workload.load=0.4,0.8", "--requests", "60", "--jobs", "1", "--out", page,
    )
    assert done.returncode == 0, done
    with browser() as chromium:
        for size in SIZES:
            with tab(chromium, page.as_uri(), size=size) as opened:
                opened.page.goto(page.as_uri())
                drawn = opened.page.locator("svg")
                assert drawn.count() == 5, "two charts by load, two by tenant, the map"
                for number in range(5):
                    box = drawn.nth(number).bounding_box()
                    assert box is not None
                    assert box["width"] > 200
                    assert box["height"] > 100
                assert "at the speed of light" in opened.text()
                wide, seen = opened.page.evaluate(
                    "[document.documentElement.scrollWidth, innerWidth]"
                )
                assert wide <= seen, "nobody has to scroll sideways"
                assert opened.barriers() == []
                assert opened.complaints == []
                opened.picture(f"report-{size}")
