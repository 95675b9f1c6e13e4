"""Runs llama.cpp replicas: one child process each, spoken to over loopback HTTP.

The engine is never loaded into the agent: a load blocks the interpreter, repeated starts grow the
process, and a crash would take the supervisor with it.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from isochrone.adapters.child import child_command
from isochrone.adapters.engines.child_log import ChildLog
from isochrone.adapters.engines.counters import FAMILIES, LoadReader, read_series
from isochrone.adapters.http import request
from isochrone.core.errors import EngineUnavailable, Unavailable
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from isochrone.core.world.model import EngineSpec
from isochrone.ports.engine import EngineStart, EngineTraits

CHILD = Path(__file__).with_name("llamacpp_child.py")
LOAD_TIMEOUT_S = 0.8
KILL_WAIT_S = 5.0
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH",
                    "CUDA_VISIBLE_DEVICES")


def check_gguf(path: str | Path) -> str | None:
    """Why `path` is not a model file that llama.cpp can read, or None when it looks like one."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            head = opened.read(8)
    except FileNotFoundError:
        return f"{file}: no such file; name a GGUF file or a bundled model"
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror}); check its permissions"
    if head[:4] != b"GGUF":
        return f"{file}: not a GGUF file (it starts with {head[:4]!r}); convert it to GGUF first"
    version = int.from_bytes(head[4:8], "little")
    if version not in (2, 3):
        return f"{file}: GGUF version {version} is not supported; convert it to version 3"
    return None


def child_environment() -> dict[str, str]:
    """The few variables that an engine may see; waiting threads must not burn the other cores."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    return kept | {"OMP_WAIT_POLICY": "PASSIVE"}


class LlamaCppEngine:
    """One running child. Made by LlamaCppDriver.start only."""

    def __init__(
        self, process: asyncio.subprocess.Process, url: str, key: str, log: ChildLog,
        reading: asyncio.Task[None],
    ) -> None:
        self._process = process
        self._url = url
        self._key = key
        self._log = log
        self._reading = reading
        self._reader = LoadReader(family="llamacpp")

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def base_url(self) -> str:
        return f"{self._url}/v1"

    @property
    def key(self) -> str | None:
        return self._key

    @property
    def traits(self) -> EngineTraits:
        return FAMILIES["llamacpp"].traits

    async def load(self) -> EngineLoad:
        """Counters and gauges. A busy engine answers its health but not its metrics: unknown."""
        try:
            metrics, slots = await asyncio.gather(self._get("/metrics"), self._get("/slots"))
        except Unavailable as error:
            if self._process.returncode is not None:
                raise EngineUnavailable(f"the engine has ended: {error}") from error
            await self._get("/health")
            return UNKNOWN_LOAD
        load = self._reader.read(read_series(metrics.decode("utf-8", "replace")))
        return with_slots(load, slots)

    async def _get(self, path: str) -> bytes:
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            answer = await request(
                "GET", self._url + path, headers=headers, timeout_s=LOAD_TIMEOUT_S
            )
        except Unavailable as error:
            raise EngineUnavailable(error.message) from error
        if answer.status != 200:
            raise EngineUnavailable(f"GET {path}: status {answer.status}")
        return answer.body

    async def exited(self) -> str:
        code = await self._process.wait()
        await self._reading
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = self._log.last_lines()
        return f"ended by {how}" + (f": {last}" if last else "")

    async def stop(self, *, deadline_s: float) -> None:
        await end_process(self._process, deadline_s=deadline_s)
        await self._reading


def with_slots(load: EngineLoad, slots: bytes) -> EngineLoad:
    """Add what the running requests have still to prefill, have decoded, and hold of the cache,
    from `/slots`."""
    prompt = decoded = held = 0
    try:
        for slot in json.loads(slots):
            if not slot["is_processing"]:
                continue
            written = sum(int(part["n_decoded"]) for part in slot["next_token"])
            decoded += written
            known = int(slot["n_prompt_tokens_processed"]) + int(slot["n_prompt_tokens_cache"])
            held += known + written
            if written == 0:  # later, `n_prompt_tokens` grows with the answer
                prompt += max(0, int(slot["n_prompt_tokens"]) - known)
    except (ValueError, KeyError, TypeError):
        return load
    return replace(
        load, running_prompt_tokens=prompt, running_output_tokens=decoded, held_tokens=held
    )


async def end_process(process: asyncio.subprocess.Process, *, deadline_s: float) -> None:
    """SIGTERM, then SIGKILL after the deadline; returns when the process is gone."""
    if process.returncode is None:
        _send(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(deadline_s):
                await process.wait()
        except TimeoutError:
            _send(process, signal.SIGKILL)
    async with asyncio.timeout(KILL_WAIT_S):
        await process.wait()


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may end by itself in this moment
        process.send_signal(number)


class LlamaCppDriver:
    """Starts children of this process; logs go to `logs`, one file a replica. `find` turns the
    source of a deployment into the path of a GGUF file on this host."""

    def __init__(self, logs: Path, *, find: Callable[[str], Path] = Path) -> None:
        self._logs = logs
        self._find = find
        self._revisions: dict[tuple[str, int, int], str] = {}

    async def start(self, start: EngineStart, *, deadline_s: float) -> LlamaCppEngine:
        model = self._find(start.spec.source)
        problem = check_gguf(model)
        if problem is not None:
            raise EngineUnavailable(problem)
        self._logs.mkdir(parents=True, exist_ok=True)
        log = ChildLog(self._logs / f"{_file_name(start.replica)}.log")
        log.note(f"{start.replica} generation {start.generation}: {start.spec.source}")
        process = await asyncio.create_subprocess_exec(
            *child_command([sys.executable, "-I", str(CHILD)]),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=child_environment(), start_new_session=True,
        )
        assert process.stderr is not None
        reading = asyncio.create_task(log.follow(process.stderr), name=f"log {start.replica}")
        ready = False
        try:
            async with asyncio.timeout(deadline_s):
                engine = await self._make_ready(start, process, log, reading)
            ready = True
        except TimeoutError as error:
            raise EngineUnavailable(
                f"{start.replica}: not ready within {deadline_s:g} s; {log.last_lines()}"
            ) from error
        finally:
            if not ready:
                await end_process(process, deadline_s=0.5)
                await reading
        return engine

    async def _make_ready(
        self, start: EngineStart, process: asyncio.subprocess.Process, log: ChildLog,
        reading: asyncio.Task[None],
    ) -> LlamaCppEngine:
        key = secrets.token_hex(24)
        settings = {
            "model": str(self._find(start.spec.source)), "alias": start.model, "key": key,
            "slots": start.spec.slots, "threads": start.spec.threads,
            "context_tokens": start.context_tokens, "embeddings": start.spec.embeddings,
            "shares_cache": start.spec.shares_cache,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.close()
        line = await process.stdout.readline()
        if not line:
            await process.wait()
            await reading
            raise EngineUnavailable(f"{start.replica} did not start: {log.last_lines()}")
        url = str(json.loads(line)["url"])
        await prove_ready(f"{url}/v1", key, start)
        return LlamaCppEngine(process, url, key, log, reading)

    async def revision(self, spec: EngineSpec) -> str | None:
        """sha256 of the file; computed in a thread, once for each size and change time."""
        try:
            return await asyncio.to_thread(self._revision, self._find(spec.source))
        except OSError as error:
            raise EngineUnavailable(f"{spec.source}: {error.strerror}") from error

    def _revision(self, path: Path) -> str:
        state = path.stat()
        key = (str(path), state.st_size, state.st_mtime_ns)
        if key not in self._revisions:
            self._revisions[key] = file_sha256(path)
        return self._revisions[key]


def file_sha256(path: Path) -> str:
    """Hex digest of the whole file. Raises OSError."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(4 * 1024 * 1024):
            digest.update(piece)
    return digest.hexdigest()


async def prove_ready(base_url: str, key: str, start: EngineStart) -> None:
    """One real answer from the engine; raises EngineUnavailable with what it said instead."""
    body: dict[str, object]
    if start.spec.embeddings:
        path, body = "/embeddings", {"model": start.model, "input": "ready"}
    else:
        path, body = "/completions", {"model": start.model, "prompt": "ready", "max_tokens": 1}
    try:
        answer = await request(
            "POST", base_url + path, body=body,
            headers={"authorization": f"Bearer {key}"}, timeout_s=3600.0,
        )
    except Unavailable as error:
        raise EngineUnavailable(f"{start.replica}: {error.message}") from error
    if answer.status != 200:
        said = answer.body[:300].decode("utf-8", "replace")
        raise EngineUnavailable(f"{start.replica}: its first answer was {answer.status}: {said}")


def _file_name(replica: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in replica)
