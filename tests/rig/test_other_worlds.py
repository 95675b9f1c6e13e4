"""A world of one's own: an upstream as a replica, embeddings, a site without engines."""

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.rig.cloud import COMMAND, Cloud, ask, environment, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

WORLD = """
[[model]]
name = "far-fable"
context = 2048
kind = "chat"

[[model]]
name = "fable-vectors"
file = "bundled:tiny-fable-q8_0.gguf"
context = 512
kind = "embedding"

[[site]]
name = "paris"
country = "FR"
operator = "Example"
latitude = 48.86
longitude = 2.35
  [[site.hardware]]
  kind = "cpu"
  [[site.deployment]]
  model = "far-fable"
  replicas = 1
  engine = "openai"
  url = "{url}"
  upstream_model = "tiny-fable"
  key_file = "{key_file}"
  [[site.deployment]]
  model = "fable-vectors"
  replicas = 1
  engine = "llamacpp"

[[site]]
name = "oslo"
country = "NO"
operator = "Example"
latitude = 59.91
longitude = 10.75

[[site]]
name = "bergen"
country = "NO"
operator = "Example"
latitude = 60.39
longitude = 5.32
elsewhere = true
  [[site.deployment]]
  model = "bergen-fable"
  replicas = 1
  engine = "llamacpp"

[[model]]
name = "bergen-fable"
file = "bundled:tiny-fable-q8_0.gguf"
context = 2048
kind = "chat"
"""

GATEWAY = """
identity = "identity.json"
port = {port}
journal = "journal"
"""

AGENT = """
identity = "identity.json"
logs = "logs"
"""


@pytest.fixture(scope="module")
def other(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A second cloud whose chat model is the first cloud, used as a partner's endpoint."""
    folder: Path = tmp_path_factory.mktemp("other")
    key_file = folder / "upstream.key"
    key_file.write_text(cloud.up["api_key"] + "\n")
    world = folder / "world.toml"
    world.write_text(WORLD.format(url=cloud.endpoint("frankfurt"), key_file=key_file))
    running = Cloud(folder / "state", "--sites", world)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(params=["paris", "oslo"])
def client(other: Cloud, request: pytest.FixtureRequest) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=other.endpoint(request.param), api_key=other.up["api_key"], max_retries=0
    )


def test_an_upstream_is_a_replica_like_any_other(
    other: Cloud, client: openai.OpenAI
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="far-fable", messages=[{"role": "user", "content": "Hello!"}], max_tokens=12,
        temperature=0,
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert raw.headers["x-isochrone-site"] == "paris"
    assert booked(other, raw.headers["x-isochrone-request"])["output"] == (
        answer.usage.completion_tokens
    )
    stream = client.chat.completions.create(
        model="far-fable", messages=[{"role": "user", "content": "Hello!"}], max_tokens=12,
        temperature=0, stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == answer.choices[0].message.content


def booked(other: Cloud, request_id: str) -> dict[str, object]:
    """The usage row of a request, once it is there."""
    found: list[dict[str, object]] = []

    def there() -> bool:
        found[:] = [one for one in other.api.items("usage") if one["id"] == request_id]
        return bool(found)

    wait_until(there, f"request {request_id} is booked")
    return found[0]


def test_embeddings_are_served_and_metered(other: Cloud, client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(
        model="fable-vectors", input=["a dragon", "a key"], encoding_format="float"
    )
    answer = raw.parse()
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) == 256
    row = booked(other, raw.headers["x-isochrone-request"])
    total = int(str(row["input_uncached"])) + int(str(row["input_cached"]))
    assert total == answer.usage.prompt_tokens
    assert row["output"] == 0


def test_distance_is_not_emulated_unless_asked_for(other: Cloud) -> None:
    assert "emulated" not in {
        link["source"] for link in other.api.get("sites/oslo").get("links", [])
    }


def test_a_site_on_another_host_joins_with_a_token(other: Cloud, tmp_path: Path) -> None:
    """As its operator would do it: a token, an identity, and two processes with a file each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = isochrone("site", "token", "bergen", "--state", other.state, "--json")
    assert token.returncode == 0, token.stderr
    joined = isochrone(
        "site", "join", json.loads(token.stdout)["token"], "--url", other.up["control"], "--port",
        str(port), "--out", tmp_path / "identity.json",
    )
    assert joined.returncode == 0, joined.stderr
    (tmp_path / "gateway.toml").write_text(GATEWAY.format(port=port))
    (tmp_path / "agent.toml").write_text(AGENT)
    for name in ("gateway", "agent"):
        assert isochrone("check", tmp_path / f"{name}.toml").returncode == 0
    processes = [
        subprocess.Popen(
            [*COMMAND, name, "--config", str(tmp_path / f"{name}.toml")], env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for name in ("gateway", "agent")
    ]
    body = {
        "model": "bergen-fable", "max_tokens": 4,
        "messages": [{"role": "user", "content": "Hello!"}],
    }
    key = other.up["api_key"]

    def served_from(base: str) -> bool:
        try:
            reply = ask(base, "/chat/completions", key, body)
        except OSError:
            return False
        return reply.status == 200 and reply.headers["x-isochrone-site"] == "bergen"

    try:
        wait_until(lambda: served_from(f"http://127.0.0.1:{port}/v1"), "Bergen serves itself")
        wait_until(lambda: served_from(other.endpoint("oslo")), "Oslo sends requests to Bergen")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=20)
    again = isochrone(
        "site", "join", json.loads(token.stdout)["token"], "--url", other.up["control"], "--port",
        str(port), "--out", tmp_path / "stolen.json",
    )
    assert again.returncode != 0, "a token is spent once"
    assert not (tmp_path / "stolen.json").exists()
