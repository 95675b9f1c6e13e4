"""The real control process on real PostgreSQL and NATS: joins, publishing, outages, stopping."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.child import child_command
from isochrone.adapters.clock import SystemClock
from isochrone.adapters.nats.bus import open_bus
from isochrone.adapters.packaged import default_world
from isochrone.control.settings import ControlSettings
from isochrone.core.rng import stream
from isochrone.core.world.model import Desired
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import KeyShard
from isochrone.ports.bus import Entry
from isochrone.wire import fleet, subjects
from isochrone.wiring.joining import join_site
from isochrone.wiring.settings import render
from tests.fixtures.nats import NatsServer
from tests.fixtures.postgres import wait_until

pytestmark = pytest.mark.rig

ADMIN = "isoadm_" + "a" * 43


class Control:
    """One control process with its files in `folder`."""

    def __init__(self, folder: Path, database: str, nats: NatsServer) -> None:
        self.folder = folder
        self.nats = nats
        self.signer = Ed25519PrivateKey.generate()
        self.port = 0
        (folder / "control.key").write_text(self.signer.private_bytes_raw().hex())
        (folder / "admin.key").write_text(ADMIN + "\n")
        (folder / "nats.json").write_bytes(msgspec.json.encode(nats.secrets))
        (folder / "control.nats.json").write_bytes(msgspec.json.encode(nats.control))
        (folder / "world.toml").write_text(default_world())
        self._database = database
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it on a free port and return when it answers."""
        settings = ControlSettings(
            port=self.port, database=self._database, nats_urls=(self.nats.plan.url,),
            nats_credentials=self.folder / "control.nats.json",
            nats_secrets=self.folder / "nats.json", signing_key=self.folder / "control.key",
            admin_key=self.folder / "admin.key", public_url="http://control.test",
            world=self.folder / "world.toml",
        )
        (self.folder / "control.toml").write_text(render(settings))
        code = "import sys, pathlib; from isochrone.wiring.control import run;"
        code += "run(pathlib.Path(sys.argv[1]))"
        log = self.folder / "control.log"
        log.unlink(missing_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                child_command([sys.executable, "-c", code, str(self.folder / "control.toml")]),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )

        def listens() -> bool:
            text = log.read_text()
            assert self._process is not None
            assert self._process.poll() is None, text
            for line in text.splitlines():
                if '"control_listens"' in line:
                    self.port = json.loads(line)["port"]
                    return True
            return False

        wait_until(listens, "control listens")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Send the signal; return how many seconds it took to exit."""
        process, self._process = self._process, None
        if process is None:
            return 0.0
        before = time.monotonic()
        os.kill(process.pid, number)
        process.wait(timeout=20)
        return time.monotonic() - before

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        link = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            link.request(
                method, f"/api/v1/{path}", None if body is None else json.dumps(body),
                {"authorization": f"Bearer {ADMIN}", "content-type": "application/json"},
            )
            answer = link.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            link.close()

    def entries(self, bucket: str) -> dict[str, bytes]:
        """What the bucket holds now."""
        return asyncio.run(self._entries(bucket))

    async def _entries(self, bucket: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}

        def on_entry(entry: Entry) -> None:
            if entry.value is not None:
                found[entry.key] = entry.value

        bus = await open_bus(
            [self.nats.plan.url], self.nats.control, name="test", clock=SystemClock(),
            rng=stream(0, "bus"),
        )
        try:
            watch = await bus.watch(bucket, "", on_entry)
            async with asyncio.timeout(20):
                await watch.synced()
            return found
        finally:
            await bus.close()


@pytest.fixture
def control(tmp_path: Path, database: str, own_nats: NatsServer) -> Iterator[Control]:
    control = Control(tmp_path, database, own_nats)
    control.start()
    yield control
    control.stop(signal.SIGKILL)


def has(control: Control, bucket: str, *keys: str) -> Callable[[], bool]:
    return lambda: set(keys) <= control.entries(bucket).keys()


def test_a_site_joins_and_the_signed_view_names_it(control: Control, tmp_path: Path) -> None:
    status, made = control.call("POST", "sites/sydney/token")
    assert status == 201
    identity = join_site(
        made["token"], f"http://127.0.0.1:{control.port}", host="127.0.0.1", port=4100,
        public_url="http://127.0.0.1:4100/v1", out=tmp_path / "identity.json",
    )
    verifier = control.signer.public_key()
    assert identity.control_key == verifier.public_bytes_raw().hex()

    def published() -> bool:
        value = control.entries(subjects.VIEW_BUCKET).get(subjects.site_key("sydney"))
        if value is None:
            return False
        site, _ = fleet.open_signed(
            value, Site, bucket=subjects.VIEW_BUCKET, key=subjects.site_key("sydney"),
            verifier=verifier,
        )
        return site.peer_key == identity.peer_key and site.port == 4100

    wait_until(published, "the view names the joined site")
    bucket = subjects.site_bucket("sydney")
    wait_until(has(control, bucket, subjects.DESIRED_KEY), "the site is told what to run")
    desired, serial = fleet.open_signed(
        control.entries(bucket)[subjects.DESIRED_KEY], Desired, bucket=bucket,
        key=subjects.DESIRED_KEY, verifier=verifier,
    )
    assert desired.serial == serial > 0
    assert desired.deployments[0].engine.source.startswith("bundled:")


def test_revoking_a_key_reaches_the_bucket_at_once(control: Control) -> None:
    _, key = control.call("POST", "keys", {"residency": ["DE"]})

    async def revoke() -> float:
        found: dict[str, Entry] = {}
        changed = asyncio.Event()

        def on_entry(entry: Entry) -> None:
            found[entry.key] = entry
            changed.set()

        def listed() -> bool:
            return any(
                entry.value is not None
                and any(
                    each.id == key["id"]
                    for each in fleet.open_signed(
                        entry.value, KeyShard, bucket=subjects.VIEW_BUCKET, key=entry.key,
                        verifier=control.signer.public_key(),
                    )[0].keys
                )
                for entry in found.values()
            )

        bus = await open_bus(
            [control.nats.plan.url], control.nats.control, name="test", clock=SystemClock(),
            rng=stream(0, "bus"),
        )
        try:
            await bus.watch(subjects.VIEW_BUCKET, "keys", on_entry)
            async with asyncio.timeout(20):
                while not listed():
                    changed.clear()
                    await changed.wait()
                before = time.monotonic()
                status, _ = await asyncio.to_thread(control.call, "DELETE", f"keys/{key['id']}")
                assert status == 200
                while listed():
                    changed.clear()
                    await changed.wait()
            return time.monotonic() - before
        finally:
            await bus.close()

    assert asyncio.run(revoke()) < 5.0  # 0.02 s; the bound allows for a busy machine


def test_a_lost_nats_is_filled_again(control: Control, tmp_path: Path) -> None:
    wait_until(has(control, subjects.VIEW_BUCKET, subjects.site_key("sydney")), "published")
    before = control.entries(subjects.VIEW_BUCKET)
    control.nats.kill()
    status, _ = control.call("GET", "sites")
    assert status == 200
    shutil.rmtree(control.nats.plan.store)
    control.nats.start()
    wait_until(has(control, subjects.VIEW_BUCKET, *before), "published again")
    wait_until(
        has(control, subjects.site_bucket("sydney"), subjects.DESIRED_KEY), "desired again"
    )


def test_killed_and_started_again_it_keeps_what_it_had(control: Control) -> None:
    _, key = control.call("POST", "keys", {"name": "kept"})
    wait_until(has(control, subjects.VIEW_BUCKET, subjects.site_key("sydney")), "published")
    before = control.entries(subjects.VIEW_BUCKET)
    control.stop(signal.SIGKILL)
    control.start()
    _, listed = control.call("GET", "keys")
    assert [each["id"] for each in listed["items"]] == [key["id"]]
    _, made = control.call("POST", "keys", {"name": "new", "residency": ["DE"]})
    wait_until(
        has(control, subjects.VIEW_BUCKET, subjects.policy_key(made["policy_id"])), "published on"
    )
    after = control.entries(subjects.VIEW_BUCKET)
    assert {name: after[name] for name in before if not name.startswith("keys")} == {
        name: before[name] for name in before if not name.startswith("keys")
    }, "what had not changed was not published again"


def test_it_stops_soon_when_asked(control: Control) -> None:
    assert control.stop() < 10.0  # 0.4 s; the bound allows for a busy machine
