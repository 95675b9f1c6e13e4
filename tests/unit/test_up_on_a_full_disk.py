"""A disk without room costs `isochrone up` lines of its logs, and no child its supervisor."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isochrone.wiring.local import watch
from isochrone.wiring.local.supervise import trim_log
from isochrone.wiring.local.up import note_in

FULL = Path("/dev/full")


def test_a_log_without_room_for_its_older_half_is_emptied_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("a" * 100)
    (tmp_path / "x.log.1").symlink_to(FULL)
    trim_log(log, 99)
    assert log.read_text() == ""


def test_what_cannot_be_noted_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "up.log"
    path.symlink_to(FULL)
    note_in(path)("child_ended", child="nats")
    path.unlink()
    note = note_in(path)
    note("child_ended", child="nats")
    assert json.loads(path.read_text())["child"] == "nats"


def test_up_json_is_written_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []
    notes: list[str] = []

    def write_up(*_: object) -> None:
        tries.append(1.0)
        if len(tries) < 3:
            raise OSError(28, "no space left on device")

    cloud: Any = SimpleNamespace(
        api=SimpleNamespace(get=lambda _: {"sites": []}),
        note=lambda event, **_: notes.append(event),
    )
    monkeypatch.setattr(watch, "write_up", write_up)
    monkeypatch.setattr(watch, "up_content", lambda *_: {"a": 1})
    monkeypatch.setattr(watch, "server_pids", lambda _: ())
    monkeypatch.setattr(watch, "KEEP_S", 0.01)

    async def main() -> None:
        keeping = asyncio.create_task(watch.keep_up_json(cloud, "key", asyncio.Event()))
        async with asyncio.timeout(10):
            while len(tries) < 3 and not keeping.done():
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert not keeping.done()
        keeping.cancel()

    asyncio.run(main())
    assert len(tries) == 3
    assert notes == ["up_json_not_written"], "said once"
