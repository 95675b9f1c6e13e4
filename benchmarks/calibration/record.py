"""Records live runs of the local cloud: starts it, replays each mix through the command line, and
keeps when each request came, how long it was and when its answer began and ended. No text is kept.
"""

import contextlib
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.calibration.mixes import WORLDS, Mix
from benchmarks.gateway.machine import ROOT, TICKS_PER_S, commit, cpu_s, facts, tree
from benchmarks.local_cloud.run import ISOCHRONE, Up, environment

from isochrone.adapters.engines.llamacpp_child import PREFILL_BATCH
from isochrone.twin.calibration.recording import Recording, Seen, write_recording

WARM = ("azure-code", "--start", "5000", "--limit", "12", "--speed", "20", "--factor", "0.1")
REPLAY_S = 150.0
NICE = -15           # where we may
MOST_FOREIGN = 0.15  # of the machine, that others may take during a run
LOOK_S = 2.0
PATIENCE_S = 12.0  # until others have ended, before a run


def record(mixes: Sequence[Mix], folder: Path, *, takes: Sequence[int], within_s: float) -> bool:
    """Each take of each mix, into a file of `folder` with the names of both, where it is not there
    already. Runs that others disturbed are made again, in turn, for so long; whether all are there.
    """
    missing = True
    for world in sorted({mix.world for mix in mixes}):
        wanted = [
            (mix, take) for take in takes for mix in mixes
            if mix.world == world and not _path(folder, mix, take).exists()
        ]
        if wanted:
            with tempfile.TemporaryDirectory(prefix="isochrone-calibration-") as name:
                missing = _record_world(world, wanted, Path(name), folder, within_s)
    return not missing


def _record_world(
    world: str, wanted: list[tuple[Mix, int]], scratch: Path, folder: Path, within_s: float
) -> bool:
    up = Up(scratch / "state", "--sites", str(WORLDS / f"{world}.toml"))
    began_s, number = time.monotonic(), 0
    try:
        _go_first([os.getpid(), *tree(up.pid)])
        _replay(up, WARM, scratch / "warm.json")
        while wanted and time.monotonic() - began_s < within_s:
            mix, take = wanted.pop(0)
            if not _record(up, mix, scratch, folder, take, number):
                wanted.append((mix, take))
            number += 1
    finally:
        up.stop()
    return bool(wanted)


def _path(folder: Path, mix: Mix, take: int) -> Path:
    return folder / f"{mix.name}-{take}.jsonl.gz"


def _go_first(pids: Sequence[int]) -> None:
    """Give these processes, and the sessions that they are scheduled in, a higher priority."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, NICE)
            Path(f"/proc/{pid}/autogroup").write_text(str(NICE), encoding="utf-8")


def _record(
    up: Up, mix: Mix, scratch: Path, folder: Path, take: int, number: int
) -> bool:
    """Whether there is a recording: none where others were at work meanwhile."""
    cloud = _cloud(up, mix)
    _wait_for_quiet(up.pid)
    watch = _Watch(up.pid)
    report = _replay(up, mix.options(take, number), scratch / f"{mix.name}.json")
    foreign = watch.foreign()
    print(
        f"{mix.name} {take}: others took {foreign:.1%} of the machine; first tokens "
        f"{report['whole']['ttft_ms']}", flush=True,
    )
    if foreign > MOST_FOREIGN:
        return False
    recording = Recording(
        mix=mix.name, trace=mix.trace, take=take, options=mix.options(take, number),
        at=datetime.now(UTC).isoformat(timespec="seconds"), source=commit(ROOT / "src"),
        machine=facts(), foreign_share=round(foreign, 4), seen=_seen(report), **cloud,
    )
    _path(folder, mix, take).write_bytes(write_recording(recording))
    return True


def _wait_for_quiet(cloud: int) -> None:
    """Return once others leave the machine alone, or have not for too long."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < PATIENCE_S:
        watch = _Watch(cloud)
        time.sleep(LOOK_S)
        if watch.foreign() <= MOST_FOREIGN:
            return


class _Watch:
    """How much of the machine others take: what the cores did, less what we know of. Work at lower
    priority counts, too, as it takes caches and the other half of a core."""

    def __init__(self, cloud: int) -> None:
        self._cloud = cloud
        self._began_s, self._before_s = time.monotonic(), self._others_s()

    def _others_s(self) -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # of replays that have ended
        own_s = cpu_s([*tree(self._cloud), os.getpid()]) + usage.ru_utime + usage.ru_stime
        user, nice, system, _, _, hard, soft = map(
            int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:8]
        )
        return (user + nice + system + hard + soft) / TICKS_PER_S - own_s

    def foreign(self) -> float:
        spent_s = (time.monotonic() - self._began_s) * (os.cpu_count() or 1)
        return (self._others_s() - self._before_s) / spent_s


def _cloud(up: Up, mix: Mix) -> dict[str, Any]:
    """What the cloud is, as control says it."""
    import tomllib

    world = tomllib.loads((WORLDS / f"{mix.world}.toml").read_text(encoding="utf-8"))
    site = next(one for one in world["site"] if "deployment" in one)
    deployment = site["deployment"][0]
    rtts = {one["peer"]: one["rtt_ms"] for one in up.api.get(f"sites/{site['name']}")["links"]}
    return {
        "site": site["name"], "replicas": deployment["replicas"], "slots": deployment["slots"],
        "threads": deployment["threads"], "context_tokens": world["model"][0]["context"],
        "chunk_tokens": PREFILL_BATCH,
        "rtt_ms": {
            one["name"]: float(rtts.get(one["name"], 0.0)) for one in world["site"]
        },
    }


def _replay(up: Up, options: Sequence[str], out: Path) -> dict[str, Any]:
    time.sleep(2.0)  # digests and journals of what came before are through
    done = subprocess.run(
        [*ISOCHRONE, "replay", *options, "--state", str(up.state), "--out", str(out)],
        env=environment(), capture_output=True, text=True, timeout=REPLAY_S, check=False,
    )
    if done.returncode != 0 or not out.exists():
        raise SystemExit(f"replay {' '.join(options)}: {done.stderr or done.stdout}")
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


def _seen(report: dict[str, Any]) -> tuple[Seen, ...]:
    return tuple(
        Seen(
            at_s=one["at_s"], late_ms=one["late_ms"], ingress=one["ingress"] or "",
            site=one["site"] or "", prompt_tokens=one["input_tokens"] or 0,
            cached_tokens=one["cached_tokens"] or 0,
            wanted_tokens=one["wanted_output_tokens"],
            output_tokens=one["output_tokens"] or 0, ttft_ms=one["ttft_ms"],
            total_ms=one["total_ms"], error=one["error"],
        )
        for one in report["requests"]
    )
