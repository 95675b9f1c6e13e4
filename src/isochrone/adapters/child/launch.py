"""Starts a program that dies with its supervisor; run as a script, imports nothing of the project.

Usage: launch.py SUPERVISOR_PID PROGRAM [ARGUMENT...]. Asks the kernel for SIGKILL at the parent's
death, checks that the parent did not die before that request, then becomes the program. Standard
library only, so that starting a child costs a few milliseconds (`python -I -S`).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(supervisor: int) -> None:
    """From now on the kernel kills this process when `supervisor`, its parent, dies. Exits where
    that cannot be had, or where it is dead already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"cannot ask for a parent-death signal: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != supervisor:
        sys.exit(f"the supervisor {supervisor} died before its child started")


def main() -> None:
    """Become the program of argv[2:], bound to the life of the process argv[1]."""
    die_with(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[2]}: {error.strerror}")


if __name__ == "__main__":
    main()
