"""A real cloud in a folder of its own: `isochrone up` as a process, and what a client needs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isochrone.core.errors import Unavailable
from isochrone.wiring.control_api import ControlApi, connection
from tests.rig.waiting import gone, wait_until

START_S = 150.0
STOP_S = 30.0
COMMAND = (sys.executable, "-m", "isochrone")


def environment() -> dict[str, str]:
    """This process's environment without settings of a user's own cloud."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ISOCHRONE")}


def isochrone(
    *arguments: str | Path, timeout_s: float = 60.0
) -> "subprocess.CompletedProcess[str]":
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], env=environment(), capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )


class Cloud:
    """One `isochrone up`. `output` holds everything that it printed."""

    def __init__(self, state: Path, *arguments: str | Path) -> None:
        self.state = state
        self.output = state.with_name(state.name + ".out")
        self._arguments = [str(argument) for argument in arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_after_s = 0.0

    def start(self) -> "Cloud":
        """Start it and wait until up.json says that it is ready."""
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--state", str(self.state), *self._arguments],
                env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )
        self.ready_after_s = wait_until(
            lambda: self._ended() or (self.state / "up.json").exists(), "the cloud is up",
            deadline_s=START_S,
        )
        assert not self._ended(), f"`up` ended: {self.output.read_text()}"
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Stop it and return how many seconds it took until every process was gone."""
        if self.process is None or self._ended():
            return 0.0
        family = descendants(self.process.pid)
        self.process.send_signal(number)
        self.process.wait(STOP_S)
        return wait_until(
            lambda: all(gone(pid) for pid in family), "no process is left", deadline_s=STOP_S
        )

    @property
    def up(self) -> Mapping[str, Any]:
        """The present content of up.json."""
        content: Mapping[str, Any] = json.loads((self.state / "up.json").read_text())
        return content

    @property
    def api(self) -> ControlApi:
        return ControlApi(self.up["control"], self.up["admin_key"])

    def pids(self) -> dict[str, int | None]:
        """Present process ids: postgres, nats, control, and per site gateway, agent, replica."""
        pids: dict[str, int | None] = json.loads((self.state / "run" / "pids.json").read_text())
        for site in self.up["sites"]:
            pids[f"gateway {site['name']}"] = site["gateway_pid"]
            pids[f"agent {site['name']}"] = site["agent_pid"]
            for replica in site["replicas"]:
                pids[f"replica {site['name']}"] = replica["pid"]
        return pids

    def endpoint(self, site: str) -> str:
        return str(next(one["endpoint"] for one in self.up["sites"] if one["name"] == site))

    def chat(
        self, site: str, text: str = "Hello!", *, key: str | None = None, max_tokens: int = 8,
        tier: str = "auto",
    ) -> "Reply":
        """One short answer through the gateway of `site`."""
        body = {
            "model": "tiny-fable",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "service_tier": tier,
        }
        return ask(self.endpoint(site), "/chat/completions", key or self.up["api_key"], body)

    def chats(self, site: str, *, key: str | None = None) -> bool:
        """True when the gateway of `site` answers one short request."""
        try:
            return self.chat(site, key=key).status == 200
        except OSError:
            return False

    def ready(self) -> bool:
        """True when control answers and says that every site can serve."""
        try:
            return all(site["ready"] for site in self.api.get("status")["sites"])
        except Unavailable:
            return False

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None


class Reply:
    """Status, headers in lower case, and decoded JSON body of an answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body: Any = json.loads(body) if body else None


def ask(base: str, path: str, key: str, body: object = None) -> Reply:
    """One request to a gateway; GET without a body, POST with one. Raises OSError."""
    link, prefix = connection(base, timeout_s=30.0)
    try:
        link.request(
            "GET" if body is None else "POST",
            prefix + path,
            None if body is None else json.dumps(body),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        answer = link.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        link.close()


def descendants(root: int) -> set[int]:
    """`root` and every process below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    family, fresh = {root}, [root]
    while fresh:
        fresh = [child for parent in fresh for child in children.get(parent, [])]
        family.update(fresh)
    return family
