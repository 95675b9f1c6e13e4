"""A site whose gateway and agent are processes of the test: killed as a whole, it stays dead."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

from tests.rig.cloud import COMMAND, Cloud, descendants, environment, isochrone
from tests.rig.waiting import gone, wait_until

STOP_S = 20.0


class OwnSite:
    """A site that the cloud's world calls `elsewhere`. It joins once and may be started again."""

    def __init__(self, cloud: Cloud, name: str, folder: Path) -> None:
        self.cloud = cloud
        self.name = name
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        token = isochrone("site", "token", name, "--state", cloud.state, "--json")
        assert token.returncode == 0, token.stderr
        joined = isochrone(
            "site", "join", json.loads(token.stdout)["token"], "--url", cloud.up["control"],
            "--port", str(self.port), "--out", folder / "identity.json",
        )
        assert joined.returncode == 0, joined.stderr
        (folder / "gateway.toml").write_text(
            f'identity = "identity.json"\nport = {self.port}\njournal = "journal"\n'
        )
        (folder / "agent.toml").write_text('identity = "identity.json"\nlogs = "logs"\n')

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def gateway(self) -> subprocess.Popen[bytes]:
        return self._processes["gateway"]

    def start(self, *, replicas: int) -> "OwnSite":
        """Start whatever does not run, and wait until so many replicas are ready."""
        for name in ("gateway", "agent"):
            running = self._processes.get(name)
            if running is None or running.poll() is not None:
                self._start(name)
        wait_until(
            lambda: len(self.engines()) == replicas, f"{replicas} replicas of {self.name} are ready"
        )
        return self

    def _start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [*COMMAND, name, "--config", str(self.folder / f"{name}.toml")],
                env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )

    def engines(self) -> dict[str, int]:
        """Process ids of the replicas that control has heard to be ready, by replica."""
        alive = descendants(self._processes["agent"].pid)
        return {
            replica["id"]: replica["pid"]
            for site in self.cloud.api.get("status")["sites"] if site["name"] == self.name
            for replica in site.get("replicas") or ()
            if replica["state"] == "ready" and replica["pid"] in alive
        }

    def kill(self) -> None:
        """SIGKILL for every process of the site, as when its power fails."""
        family: set[int] = set()
        for process in self._processes.values():
            family |= descendants(process.pid)
        for pid in family:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.wait(STOP_S)
        wait_until(lambda: all(gone(pid) for pid in family), f"nothing of {self.name} is left")

    def restart_gateway(self, settings: str) -> None:
        """Stop the gateway, if it runs, and start it with further lines in its file."""
        if self.gateway.poll() is None:
            self.gateway.terminate()
            self.gateway.wait(STOP_S)
        (self.folder / "gateway.toml").write_text(
            f'identity = "identity.json"\nport = {self.port}\njournal = "journal"\n{settings}\n'
        )
        self._start("gateway")

    def stop(self) -> None:
        """End it in an orderly way, as far as it runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            process.wait(STOP_S)
