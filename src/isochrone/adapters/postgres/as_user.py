"""Starts a program as another user than root; run as a script, imports nothing of the project.

Usage: as_user.py map|drop UID GID PROGRAM [ARGUMENT...]

PostgreSQL refuses to run as root. `map` makes a user namespace in which root appears as UID: files
stay root's, folders of mode 0700 work and no account is made. `drop` becomes UID for good, for
machines that forbid user namespaces (as containers often do): files must be UID's, and of root's
powers the program keeps only that of passing through folders of others, such as a state folder of
mode 0700, where the machine gave us that. A change of the user id clears a parent-death signal, so
one that is set is set again.
"""

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT = 1, 2, 8, 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    """Become the program of argv[4:] under the identity of argv[1:4]."""
    how, user, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    libc = ctypes.CDLL(None, use_errno=True)
    signal = ctypes.c_int(0)
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(signal), 0, 0, 0)
    parent = os.getppid()
    if how == "map":
        _map(libc, user, group)
    else:
        _drop(libc, user, group)
    if signal.value:
        libc.prctl(PR_SET_PDEATHSIG, signal.value, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the supervisor died before its child started")
    try:
        os.execv(sys.argv[4], sys.argv[4:])
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[4]} as user {user}: {error.strerror}")


def _map(libc: ctypes.CDLL, user: int, group: int) -> None:
    """Appear as `user` in a namespace of our own."""
    outside_user, outside_group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        sys.exit(f"no user namespace: {os.strerror(ctypes.get_errno())}")
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {outside_user} 1")
        _write("/proc/self/gid_map", f"{group} {outside_group} 1")
    except OSError as error:
        sys.exit(f"no user namespace: {error}")


def _drop(libc: ctypes.CDLL, user: int, group: int) -> None:
    """Become `user`, keeping one capability over the change and over exec (an ambient one)."""
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    kept = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, for the lower and the upper 32 capabilities.
    if libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)) == 0:
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


if __name__ == "__main__":
    main()
