"""A gateway that runs alone asks the engines of several sites itself: by distance, within rules."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.alone import MODEL, EngineThread, a_gateway, an_engine, key_table
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig


@pytest.fixture
def near() -> Iterator[EngineThread]:
    with an_engine() as running:
        yield running


@pytest.fixture
def far() -> Iterator[EngineThread]:
    with an_engine() as running:
        yield running


def site(name: str, country: str, rtt_ms: int, url: str) -> str:
    return f"""
[[site]]
name = "{name}"
country = "{country}"
rtt_ms = {rtt_ms}
[[site.upstream]]
url = "{url}"
prefill_tok_s = 10000
decode_tok_s = 100
"""


def config(near: EngineThread, far: EngineThread) -> str:
    """This gateway stands at a site without engines; two other sites have one each. The far one
    never answers within the target, so that no request is sent there to learn of it."""
    return f"""
[gateway]
port = 0
connect_timeout_s = 5
ttft_target_ms = 60
[[model]]
name = "{MODEL}"
revision = "r1"
[[policy]]
name = "norway"
residency = ["NO"]
{site("near", "DE", 5, near.url)}{site("far", "NO", 80, far.url)}
{key_table("laptop", "secret")}{key_table("bound", "norse", policy="norway")}"""


def test_each_request_goes_to_the_best_allowed_site(
    tmp_path: Path, near: EngineThread, far: EngineThread
) -> None:
    with a_gateway(tmp_path / "g", config(near, far)) as gateway:
        reply = gateway.ask("secret")
        assert reply.headers["x-isochrone-site"] == "near"
        line = gateway.usage_of(reply.headers["x-isochrone-request"])
        assert (line["ingress"], line["site"], line["country"]) == ("here", "near", "DE")
        assert line["replica"].startswith("near-")
        assert gateway.ask("norse").headers["x-isochrone-site"] == "far"

        gateway.edit('name = "near"', 'name = "near"\ndraining = true')
        wait_until(
            lambda: gateway.ask("secret").headers["x-isochrone-site"] == "far",
            "a site that is being emptied takes nothing new",
        )
        gateway.edit("draining = true", "draining = false")
        wait_until(
            lambda: gateway.ask("secret").headers["x-isochrone-site"] == "near", "it takes again"
        )


def test_a_site_whose_engine_died_is_passed_over(
    tmp_path: Path, near: EngineThread, far: EngineThread
) -> None:
    with a_gateway(tmp_path / "g", config(near, far)) as gateway:
        assert gateway.ask("secret").headers["x-isochrone-site"] == "near"
        near.call(near.engine.kill)
        for _ in range(5):
            reply = gateway.ask("secret")
            assert (reply.status, reply.headers["x-isochrone-site"]) == (200, "far")
        far.call(far.engine.kill)
        assert gateway.status("secret") == 503
        assert gateway.status("norse") == 503
