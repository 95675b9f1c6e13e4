"""Decides under which user the embedded PostgreSQL runs when we are root, which it refuses."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

from isochrone.core.errors import InvalidInput

AS_USER = Path(__file__).with_name("as_user.py")
PREFERRED = ("postgres", "daemon", "nobody")
_PROBE_TIMEOUT_S = 30.0


def identity_command(state: Path, postgres: Path) -> tuple[list[str], tuple[int, int] | None]:
    """What to put before a PostgreSQL command, and who must own its folders (None: who we are).

    An ordinary user needs nothing. Root appears as another existing user in a namespace of its own
    or, where the machine forbids that, becomes that user. Raises InvalidInput when neither works.
    """
    if os.geteuid() != 0:
        return [], None
    user = _existing_user()
    mapped = _prefix("map", user)
    refusal = _failure([*mapped, str(postgres), "--version"])
    if refusal is None:
        return mapped, None
    dropped = _prefix("drop", user)
    for attempt in (
        [str(postgres), "--version"],
        ["/bin/sh", "-c", 'cd "$1"', "sh", str(state)],
    ):
        failure = _failure([*dropped, *attempt])
        if failure is not None:
            raise InvalidInput(
                [f"PostgreSQL does not run as root, this machine gives it no user namespace "
                 f"({refusal}), and user {user.pw_name} cannot do {' '.join(attempt)} ({failure}); "
                 "run as an ordinary user, allow user namespaces, or let "
                 f"{user.pw_name} enter the state folder and read the Python environment"]
            )
    return dropped, (user.pw_uid, user.pw_gid)


def _existing_user() -> pwd.struct_passwd:
    """A user other than root: initdb wants one that the machine knows by name."""
    users = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid != 0}
    for name in (*PREFERRED, *users):
        if name in users:
            return users[name]
    raise InvalidInput(
        ["PostgreSQL does not run as root and this machine knows no other user; "
         "add one (for example: useradd postgres) or run as an ordinary user"]
    )


def _prefix(how: str, user: pwd.struct_passwd) -> list[str]:
    return [
        sys.executable, "-I", "-S", str(AS_USER), how, str(user.pw_uid), str(user.pw_gid)
    ]


def _failure(argv: list[str]) -> str | None:
    """Why the command failed, or None when it worked."""
    try:
        done = subprocess.run(
            argv, cwd="/", capture_output=True, text=True, errors="replace",
            timeout=_PROBE_TIMEOUT_S, check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}"
