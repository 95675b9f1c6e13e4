"""The embedded PostgreSQL: made whole, kept over restarts and kills, refused when unusable."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from isochrone.adapters.postgres.migrate import migrate
from isochrone.adapters.postgres.pool import Pool, open_pool
from isochrone.adapters.postgres.server import PostgresPlan, prepare, ready, socket_folder
from isochrone.core.errors import InvalidInput, StoreUnavailable
from tests.fixtures.postgres import spawn, stop, wait_until


@dataclass
class Server:
    """A server of this test alone, which it may kill."""

    state: Path
    plan: PostgresPlan
    process: "subprocess.Popen[bytes]"

    def again(self) -> None:
        self.plan = prepare(self.state, self.state / "run")
        self.process = spawn(self.plan, self.state / "log")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    plan = prepare(tmp_path, tmp_path / "run")
    own = Server(state=tmp_path, plan=plan, process=spawn(plan, tmp_path / "log"))
    yield own
    stop(own.plan, own.process)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def _serial(pool: Pool) -> int:
    with pool.transaction() as connection:
        row = connection.execute("SELECT serial FROM view_serial").fetchone()
    assert row is not None
    return int(row[0])


def _raise_serial(pool: Pool) -> None:
    with pool.transaction() as connection:
        connection.execute("UPDATE view_serial SET serial = serial + 1")


def test_a_fresh_server_is_private_and_keeps_its_data_over_stop_and_kill(server: Server) -> None:
    assert _mode(server.plan.data) == 0o700
    assert _mode(server.plan.socket_folder) == 0o700
    migrate(server.plan.conninfo)
    pool = open_pool(server.plan.conninfo)
    _raise_serial(pool)

    stop(server.plan, server.process)
    assert server.process.returncode == 0
    with pytest.raises(StoreUnavailable):
        _serial(pool)
    server.again()
    migrate(server.plan.conninfo)
    assert _serial(pool) == 1  # the same pool, by itself

    _raise_serial(pool)
    server.process.kill()
    server.process.wait()
    server.again()
    assert _serial(pool) == 2
    pool.close()


def test_the_application_is_neither_superuser_nor_owner(pool: Pool) -> None:
    with pool.transaction() as connection:
        who = connection.execute(
            "SELECT current_user, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert who == ("isochrone_app", False, False)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), pool.transaction() as connection:
        connection.execute("DELETE FROM usage")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), pool.transaction() as connection:
        connection.execute("CREATE TABLE mine ()")


def test_a_row_whose_day_was_made_meanwhile_is_tried_again_and_a_wrong_one_is_not(
    pool: Pool,
) -> None:
    """What a booker meets that was on its way to the rows of no day of their own."""
    def insert(number: int) -> None:
        with pool.transaction() as connection:
            connection.execute(
                "CREATE TEMP TABLE parted (day int CHECK (day < 9)) PARTITION BY RANGE (day)"
            )
            connection.execute(
                "CREATE TEMP TABLE one PARTITION OF parted FOR VALUES FROM (1) TO (2)"
            )
            connection.execute("CREATE TEMP TABLE other PARTITION OF parted DEFAULT")
            connection.execute("INSERT INTO other VALUES (%s)", (number,))

    with pytest.raises(StoreUnavailable, match="parted off"):
        insert(1)
    with pytest.raises(InvalidInput, match="check constraint"):
        insert(9)


def test_a_wait_for_a_lock_ends(database: str) -> None:
    pool = open_pool(database + " options='-c lock_timeout=60000'")
    with pool.transaction() as holder:
        holder.execute("UPDATE view_serial SET serial = 1")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            _raise_serial(pool)
        assert time.monotonic() - began < 20
    pool.close()


def test_a_lock_file_with_the_number_of_another_program_does_not_stop_the_start(
    server: Server,
) -> None:
    pid_file = server.plan.data / "postmaster.pid"
    text = pid_file.read_text().splitlines()
    server.process.kill()
    server.process.wait()
    # As after a restart of a container: the number now belongs to a program that is alive.
    pid_file.write_text("\n".join([str(os.getpid()), *text[1:]]) + "\n")
    (server.plan.socket_folder / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    server.again()
    assert ready(server.plan)


def test_a_folder_in_use_is_refused(server: Server) -> None:
    with pytest.raises(InvalidInput, match=f"in use by process {server.process.pid}"):
        prepare(server.state, server.state / "run")
    assert ready(server.plan)


def test_the_server_dies_with_its_supervisor(tmp_path: Path) -> None:
    plan = prepare(tmp_path, tmp_path / "run")
    program = (
        "import subprocess, sys; from isochrone.adapters.child import child_command;"
        "subprocess.run(child_command(sys.argv[1:]))"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", program, *plan.argv], env=dict(plan.env), stderr=subprocess.DEVNULL
    )
    wait_until(lambda: ready(plan), "PostgreSQL answers")
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not ready(plan), "the server is gone")
    prepare(tmp_path, tmp_path / "run")  # waits for the last of its processes


# Makes a user namespace that forbids further ones, as containers often do, and starts there.
WITHOUT_NAMESPACES = """
import ctypes, os, sys
from pathlib import Path
from isochrone.adapters.postgres.server import prepare
from tests.fixtures.postgres import spawn, stop

inside, outside = os.pipe(), os.pipe()
pid = os.fork()
if pid:
    os.read(inside[0], 1)
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{kind}").write_text("0 0 65536")
    os.write(outside[1], b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
if ctypes.CDLL(None).unshare(0x10000000) != 0:
    sys.exit(99)
os.write(inside[1], b"x")
os.read(outside[0], 1)
Path("/proc/sys/user/max_user_namespaces").write_text("0")
state = Path(sys.argv[1])
for _ in range(2):
    plan = prepare(state, state / "run")
    assert "drop" in plan.argv, plan.argv
    process = spawn(plan, state / "log")
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Uid:\\t0" not in status, status
    stop(plan, process)
sys.exit(process.returncode)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another identity")
def test_root_without_user_namespaces_drops_to_an_existing_user_and_comes_back(
    made: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NAMESPACES, str(made)],
        capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode == 99:
        pytest.skip("this machine forbids user namespaces altogether; every test here drops")
    assert done.returncode == 0, done.stderr
    assert made.stat().st_mode & 0o777 == 0o700
    plan = prepare(made, made / "run")
    stop(plan, spawn(plan, made / "log"))
    assert plan.data.stat().st_uid == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("version", "of PostgreSQL 16 .*pg_upgrade"),
        ("empty", "damaged .*PG_VERSION.* move it away"),
        ("control", "damaged .* move it away"),
        ("base", "without base"),
    ],
)
def test_an_unusable_data_folder_is_refused_with_what_to_do(
    made: Path, damage: str, said: str
) -> None:
    data = made / "postgres"
    hidden = made / "hidden"
    match damage:
        case "version":
            (data / "PG_VERSION").write_text("16\n")
        case "empty":
            data.rename(hidden)
            data.mkdir()
        case "control":
            control = data / "global" / "pg_control"
            sound = control.read_bytes()
            control.write_bytes(bytes(64) + sound[64:])
        case _:
            (data / "base").rename(hidden)
    try:
        with pytest.raises(InvalidInput, match=said):
            prepare(made, made / "run")
    finally:
        match damage:
            case "version":
                (data / "PG_VERSION").write_text("18\n")
            case "empty":
                data.rmdir()
                hidden.rename(data)
            case "control":
                control.write_bytes(sound)
            case _:
                hidden.rename(data / "base")
    prepare(made, made / "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a sound data folder, not running."""
    state = tmp_path_factory.mktemp("made")
    state.chmod(0o700)
    prepare(state, state / "run")
    return state


def test_an_interrupted_first_start_is_begun_anew(tmp_path: Path) -> None:
    half = tmp_path / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    prepare(tmp_path, tmp_path / "run")
    assert not half.exists()
    assert (tmp_path / "postgres" / "PG_VERSION").exists()


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(InvalidInput, match=r"cannot use .*state.*choose"):
        prepare(tmp_path / "state", tmp_path / "run")


def test_a_long_path_gets_a_private_socket_folder_of_the_same_name_each_time(
    tmp_path: Path,
) -> None:
    long = tmp_path / ("x" * 90)
    folder = socket_folder(long, user=os.geteuid())
    try:
        assert _mode(folder) == 0o700
        assert len(str(folder)) < 80
        assert socket_folder(long, user=os.geteuid()) == folder
        folder.chmod(0o777)  # as a stranger could have made it
        other = socket_folder(long, user=os.geteuid())
        assert other != folder
        assert _mode(other) == 0o700
        other.rmdir()
    finally:
        folder.rmdir()
