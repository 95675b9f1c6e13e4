"""The state folder of `isochrone up`: one owner at a time, checked before anything starts.

    lock  state.json  up.json  up.log  secrets/  keys of control, NATS, admin and customer, and the
                                       first password of the console
    postgres/  nats/  control/  console/  run/  logs/
    sites/NAME/  identity, settings, journal, logs
    archive/  days of usage that left the book
    experiments/  what operators had played on the twin

`state.json` is written last when a folder is made, so a folder that has it has every secret: one
that is missing or unreadable later is damage, which is told and never repaired by making new keys
(sites, ledger and customers hold the other halves of the old ones).
"""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.nats.identity import (
    Credentials,
    control_user,
    load_credentials,
    load_secrets,
    new_secrets,
)
from isochrone.core.errors import InvalidInput, IsochroneError
from isochrone.wiring.home import expanded
from isochrone.wiring.joining import load_identity
from isochrone.wiring.local.ports import Ports
from isochrone.wiring.private_file import write_private

VERSION = 1
FOLDERS = ("secrets", "nats", "control", "console", "run", "logs", "sites", "archive",
           "experiments")
_KNOWN = {*FOLDERS, "postgres", "lock", "state.json", "up.json", "up.log", "up.log.1"}
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_ADMIN_KEY = re.compile(r"isoadm_[A-Za-z0-9_-]{43}")
_API_KEY = re.compile(r"iso_[A-Za-z0-9_-]{43}")
_ELSEWHERE = "choose another folder with --state"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """state.json: what the next start keeps. `gateways` maps site names to ports."""

    version: int
    gateways: Mapping[str, int] = {}
    control: int = 0
    nats: int = 0
    console: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A checked state folder that this process owns until it ends (`lock` is the open file)."""

    root: Path
    lock: int

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def secret(self, name: str) -> Path:
        return self.root / "secrets" / name

    def site(self, name: str) -> Path:
        """The folder of one site, made if missing."""
        folder = self.root / "sites" / name
        for one in (folder, folder / "journal", folder / "logs"):
            one.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def admin_key(self) -> str:
        return self.secret("admin.key").read_text().strip()

    @property
    def api_key(self) -> str | None:
        """The key printed by `up`; None until the first start has got one from control."""
        path = self.secret("api.key")
        return path.read_text().strip() if path.exists() else None

    @property
    def console_password(self) -> str | None:
        """The first password of the operator's account; None until it was made."""
        path = self.secret("console.password")
        return path.read_text().strip() if path.exists() else None

    def kept_ports(self, sites: Sequence[str]) -> Ports | None:
        """The ports of the last start, if it had the same sites."""
        kept = _kept(self.root)
        if kept.control == 0 or set(kept.gateways) != set(sites):
            return None
        gateways = tuple(kept.gateways[site] for site in sites)
        console = kept.console or kept.nats + 1  # folders of earlier releases have none
        return Ports(
            gateways=gateways, control=kept.control, nats=kept.nats, console=console
        )

    def keep_ports(self, sites: Sequence[str], ports: Ports) -> None:
        kept = Kept(
            version=VERSION,
            gateways=dict(zip(sites, ports.gateways, strict=True)),
            control=ports.control,
            nats=ports.nats,
            console=ports.console,
        )
        write_private(self.root / "state.json", msgspec.json.encode(kept) + b"\n")

    def write_up(self, content: Mapping[str, object]) -> None:
        """Publish up.json: its presence says that the cloud is ready."""
        write_private(self.root / "up.json", json.dumps(content, indent=2).encode() + b"\n")

    def remove_up(self) -> None:
        (self.root / "up.json").unlink(missing_ok=True)


def open_state(folder: Path) -> State:
    """Make or check the folder and lock it; raises InvalidInput with one line that says what is
    wrong and what to do."""
    root = expanded(folder).absolute()
    try:
        lock = _locked(root)
        try:
            _make_or_check(root)
        except (OSError, InvalidInput):
            os.close(lock)
            raise
    except OSError as error:
        where = error.filename or root
        raise InvalidInput(
            [f"state folder {root} cannot be used: {where}: {error.strerror}; {_ELSEWHERE}"]
        ) from error
    return State(root=root, lock=lock)


def _make_or_check(root: Path) -> None:
    _check_ours(root)
    for name in FOLDERS:
        (root / name).mkdir(mode=0o700, exist_ok=True)
    if not (root / "state.json").exists():
        _make_secrets(root)
    _check_secrets(root)
    # It says that a cloud is ready, which is over when its `up` was killed.
    (root / "up.json").unlink(missing_ok=True)


def _locked(root: Path) -> int:
    if root.exists() and not root.is_dir():
        raise InvalidInput([f"state folder {root} is a file, not a folder; {_ELSEWHERE}"])
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.stat()
    if found.st_uid != os.geteuid():
        raise InvalidInput([f"state folder {root} belongs to another user; {_ELSEWHERE}"])
    if found.st_mode & 0o700 != 0o700:
        raise InvalidInput(
            [f"state folder {root} is not writable (mode {found.st_mode & 0o777:04o}); "
             f"`chmod u+rwx` it, or {_ELSEWHERE}"]
        )
    foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in _KNOWN)
    if foreign and not (root / "state.json").exists():
        raise InvalidInput(
            [f"state folder {root} holds other files ({', '.join(foreign[:3])}); {_ELSEWHERE}"]
        )
    root.chmod(0o700)
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise InvalidInput(
            [f"state folder {root} is in use by another `isochrone up` (pid {owner or 'unknown'}); "
             f"stop it, or {_ELSEWHERE}"]
        ) from error
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _check_ours(root: Path) -> None:
    if (root / "state.json").exists():
        if (version := _kept(root).version) != VERSION:
            raise InvalidInput(
                [f"state folder {root} has version {version}, this release reads {VERSION}; "
                 f"use the release that made it, or {_ELSEWHERE}"]
            )
    elif (root / "postgres").exists():
        raise _damaged(root, "state.json", "it is missing")


def _kept(root: Path) -> Kept:
    path = root / "state.json"
    if not path.exists():
        return Kept(version=VERSION)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except msgspec.MsgspecError as error:
        raise _damaged(root, "state.json", str(error)) from error


def _make_secrets(root: Path) -> None:
    folder = root / "secrets"
    nats = new_secrets()
    user: Credentials = control_user(nats)
    seed = Ed25519PrivateKey.generate().private_bytes_raw().hex()
    admin = f"isoadm_{secrets.token_urlsafe(32)}"
    write_private(folder / "control.key", f"{seed}\n".encode())
    write_private(folder / "admin.key", f"{admin}\n".encode())
    write_private(folder / "nats.json", msgspec.json.encode(nats) + b"\n")
    write_private(folder / "control.nats.json", msgspec.json.encode(user) + b"\n")
    write_private(root / "state.json", msgspec.json.encode(Kept(version=VERSION)) + b"\n")


def _check_secrets(root: Path) -> None:
    folder = root / "secrets"
    _check_text(root, "control.key", _HEX_KEY, "64 hex digits")
    _check_text(root, "admin.key", _ADMIN_KEY, "isoadm_ and 43 characters")
    if (folder / "api.key").exists():
        _check_text(root, "api.key", _API_KEY, "iso_ and 43 characters")
    loaders: list[tuple[Path, Callable[[Path], object]]] = [
        (folder / "nats.json", load_secrets),
        (folder / "control.nats.json", load_credentials),
    ]
    identities = sorted((root / "sites").glob("*/identity.json"))
    for path, load in [*loaders, *((one, load_identity) for one in identities)]:
        try:
            load(path)
        except IsochroneError as error:
            raise _damaged(root, str(path.relative_to(root)), error.message) from error


def _check_text(root: Path, name: str, pattern: re.Pattern[str], expected: str) -> None:
    try:
        text = (root / "secrets" / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _damaged(root, f"secrets/{name}", "it is missing") from error
    except UnicodeDecodeError as error:
        raise _damaged(root, f"secrets/{name}", f"expected {expected}") from error
    if not pattern.fullmatch(text.strip()):
        raise _damaged(root, f"secrets/{name}", f"expected {expected}")


def _damaged(root: Path, name: str, why: str) -> InvalidInput:
    what = f"state folder {root} is damaged: {name}: {why}"
    return InvalidInput([f"{what}; restore it from a backup, or {_ELSEWHERE}"])
