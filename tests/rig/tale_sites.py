"""Three sites of gateways that run alone, with engines that tell tales, each a process of its own.

Madrid takes the clients and has no engine. Lisbon is near and serves; its engine waits where it is
told to. Ashburn is far, and may go on with what Lisbon leaves. It costs little processor time, so
there may be many streams.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isochrone.wiring.peer_secret import new_peer_secret
from tests.rig.alone import MODEL, Alone, a_gateway, key_table
from tests.rig.cloud import environment
from tests.rig.waiting import wait_until

SLOTS = 400  # so that nobody waits, and the near site is always the better one
FREE, BOUND = "secret", "portuguese"
COUNTRIES = {"madrid": "ES", "lisbon": "PT", "ashburn": "US"}
RTTS_MS = {"madrid": 0, "lisbon": 1, "ashburn": 9_000}


class TaleProcess:
    """One engine; `lines` are what it has noted."""

    def __init__(self, output: Path, *arguments: str) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fixtures.tale_process", *arguments],
                env=environment(), stdin=subprocess.DEVNULL, stdout=file,
            )
        wait_until(lambda: bool(self.lines), "the engine listens")

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._output.read_text().split("\n")[:-1]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.lines[0]['port']}/v1"

    @property
    def left(self) -> dict[int, dict[str, Any]]:
        """Clients that went while the engine waited, by the number of their tale."""
        return {line["number"]: line for line in self.lines if "gone_at" in line}

    @property
    def waits(self) -> set[int]:
        """Numbers of the tales at whose place the engine waits, or has waited."""
        return {line["waits"] for line in self.lines if "waits" in line}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaleSites:
    """The running gateways, and Lisbon's engine."""

    madrid: Alone
    lisbon: Alone
    engine: TaleProcess

    def kill_lisbon(self) -> None:
        """As when its power fails."""
        self.engine.process.kill()
        self.lisbon.stop(signal.SIGKILL)
        self.engine.kill()


@contextmanager
def tale_sites(folder: Path) -> Iterator[TaleSites]:
    """The three sites. The key `FREE` may be served anywhere, `BOUND` in Portugal only."""
    keys = {}
    for name in COUNTRIES:
        (folder / name).mkdir()
        keys[name] = new_peer_secret(folder / name / "peer.key")
    with ExitStack() as stack:
        engines = {
            "lisbon": TaleProcess(folder / "lisbon.tales", "--waits"),
            "ashburn": TaleProcess(folder / "ashburn.tales", "--first", "1000"),
        }
        for engine in engines.values():
            stack.callback(engine.kill)
        ports = dict.fromkeys(COUNTRIES, 9)
        running: dict[str, Alone] = {}
        for name in ("lisbon", "ashburn", "madrid"):
            url = engines[name].url if name in engines else None
            text = _config(name, keys, ports, url)
            gateway = running[name] = stack.enter_context(a_gateway(folder / name, text))
            ports[name] = gateway.logged("gateway_listening")[-1]["port"]
        yield TaleSites(
            madrid=running["madrid"], lisbon=running["lisbon"], engine=engines["lisbon"]
        )


def _config(here: str, keys: dict[str, str], ports: dict[str, int], upstream: str | None) -> str:
    """The file of one site's gateway; of the others it knows those that listen already."""
    sites = ""
    for name, country in COUNTRIES.items():
        sites += f'[[site]]\nname = "{name}"\ncountry = "{country}"\n'
        if name != here:
            sites += f'rtt_ms = {RTTS_MS[name]}\npeer_key = "{keys[name]}"\n'
            sites += f'gateway = "127.0.0.1:{ports[name]}"\nhardware = "cpu"\n'
            sites += f'serving = ["{MODEL}"]\nslots = {SLOTS}\n' if name != "madrid" else ""
        elif upstream is not None:
            sites += f'[[site.upstream]]\nurl = "{upstream}"\nengine = "llamacpp"\n'
            sites += f"slots = {SLOTS}\nprefill_tok_s = 10000\ndecode_tok_s = 1000\n"
    return f"""
[gateway]
site = "{here}"
port = 0
peer_secret_file = "peer.key"
[[model]]
name = "{MODEL}"
revision = "r1"
[[policy]]
name = "portugal"
residency = ["PT"]
{sites}{key_table("anywhere", FREE)}{key_table("bound", BOUND, policy="portugal")}"""
