"""Backs up the cloud of a state folder while it runs, and restores one into a state folder."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from isochrone.adapters.child import child_command
from isochrone.adapters.nats.identity import load_credentials, load_secrets
from isochrone.adapters.nats.server import keep_revoked
from isochrone.adapters.postgres.book_copy import Tell
from isochrone.adapters.postgres.estate import PostgresEstate
from isochrone.adapters.postgres.pool import open_pool
from isochrone.adapters.postgres.server import PostgresPlan, prepare, ready
from isochrone.control.settings import ControlSettings
from isochrone.core.errors import InvalidInput, Unavailable
from isochrone.wire.backup import BackupManifest
from isochrone.wiring.backup import Place, place_of, read_backup, restore
from isochrone.wiring.home import expanded
from isochrone.wiring.local.state import State, open_state
from isochrone.wiring.settings import load

START_S = 60.0
STOP_S = 10.0


def place_of_cloud(root: Path) -> Place:
    """Where the running cloud of a state folder keeps its book and its keys."""
    settings = root / "control" / "control.toml"
    if not settings.exists():
        raise InvalidInput(
            [f"{root} holds no cloud; name its folder with --state, or control's settings with "
             "--config"]
        )
    return place_of(load(settings, ControlSettings))


def restore_cloud(root: Path, folder: Path, *, replacing: bool, tell: Tell) -> BackupManifest:
    """Restore the backup in `folder` into the state folder `root`, for the next `isochrone up`.

    What is not restored is removed from a folder that was new. Raises InvalidInput, Unavailable.
    """
    read_backup(folder, tell=tell)
    root = expanded(root).absolute()
    is_new = not root.exists() or not any(root.iterdir())
    if not is_new and not replacing and (root / "state.json").exists():
        raise InvalidInput(
            [f"{root} holds a cloud already; restore into a new folder, or say --replace to lose "
             "its book and its keys"]
        )
    os.umask(0o077)
    state = open_state(root)
    was_restored = False
    try:
        with _serving(state, tell) as plan:
            place = Place(
                database=plan.conninfo,
                keys={
                    "signing_key": state.secret("control.key"),
                    "admin_key": state.secret("admin.key"),
                    "nats_secrets": state.secret("nats.json"),
                    "nats_credentials": state.secret("control.nats.json"),
                    "api_key": state.secret("api.key"),
                },
            )
            # The keys of a new folder were made a moment ago, for nobody.
            made = restore(place, folder, replacing=replacing or is_new, tell=tell)
            was_restored = True
            _keep_revoked(state, plan)
        for identity in root.glob("sites/*/identity.json"):
            identity.unlink()  # of other keys, or of addresses that the restored book does not know
        return made
    finally:
        if is_new and not was_restored:
            for each in root.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        os.close(state.lock)


def _keep_revoked(state: State, plan: PostgresPlan) -> None:
    """NATS starts without files of its own, before control, and has to refuse what was revoked.
    Raises InvalidInput where there is no room to say so."""
    with closing(open_pool(plan.conninfo)) as pool:
        revoked = PostgresEstate(pool).revoked_logins(now=time.time_ns())
    folder, nats = state.path("nats"), load_secrets(state.secret("nats.json"))
    own = load_credentials(state.secret("control.nats.json"))
    try:
        keep_revoked(folder, nats, own, revoked)
    except OSError as error:
        raise InvalidInput([f"{error.filename or folder}: {error.strerror}"]) from error


@contextmanager
def _serving(state: State, tell: Tell) -> Iterator[PostgresPlan]:
    """The database of the state folder, running within this context."""
    tell("starting PostgreSQL", 0)
    plan = prepare(state.root, state.path("run"))
    path = state.path("logs", "postgres.log")
    with path.open("ab") as log:
        process = subprocess.Popen(
            child_command(plan.argv), env=dict(plan.env), stdin=subprocess.DEVNULL, stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_S
        while not ready(plan):
            if process.poll() is not None or time.monotonic() > deadline:
                said = path.read_text(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(f"PostgreSQL did not start: {' '.join(said)}")
            time.sleep(0.05)
        yield plan
    finally:
        for number in plan.stop_signals:
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    continue
        if process.poll() is None:
            process.kill()
            process.wait()
