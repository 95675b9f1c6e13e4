"""Runs all tests: those of single parts side by side on two cores, then the rig on its own.

Run by `make test`. Two lines of work go on at once, each pytest after pytest; their output comes as
whole blocks, so that it can be read. The rig measures real processes against deadlines and has the
machine for itself. What is compiled is tested in its compiled form once more. Ends with 1 when
anything failed, after everything has run.
"""

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "src" / "isochrone" / "_compiled" / "manifest.json"
# What of the tests has the compiled modules under it.
COMPILED = (
    "gateway or http or stream or fuzz or heads or journal or meter or choosing or board or limits "
    "or answers or client or pressure or narrowing or secured or tls or leaks or hops or retained"
)


@dataclass(slots=True)
class Line:
    """Calls of pytest that follow each other: (what it is, arguments, in the compiled form)."""

    calls: list[tuple[str, list[str], bool]]
    failed: list[str] = field(default_factory=list)
    running: "subprocess.Popen[bytes] | None" = None

    def run(self, *, show: bool) -> None:
        """One after the other. With `show` the output comes as it is made."""
        for name, arguments, compiled in self.calls:
            began_s = time.monotonic()
            environment = dict(os.environ)
            if compiled:
                environment["ISOCHRONE_TEST_FORM"] = "compiled"
            self.running = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments], cwd=ROOT,
                env=environment, stdout=None if show else subprocess.PIPE,
                stderr=None if show else subprocess.STDOUT,
            )
            said, _ = self.running.communicate()
            if said is not None:
                sys.stdout.write(said.decode(errors="replace"))
            if self.running.returncode:
                self.failed.append(name)
            print(f"-- {name}: {time.monotonic() - began_s:.0f} s", flush=True)

    def stop(self) -> None:
        if self.running is not None and self.running.poll() is None:
            self.running.terminate()
            self.running.wait()


def main() -> int:
    one = Line([("parts", ["tests/arch", "tests/unit", "tests/property", "tests/sim"], False)])
    other = Line([("contracts", ["tests/contract"], False)])
    if MANIFEST.is_file():
        selection = ["-k", COMPILED]
        # Contracts take longest, and the line beside them is done sooner.
        one.calls.append(("parts, compiled", ["tests/property", *selection], True))
        one.calls.append(("contracts, compiled", ["tests/contract", *selection], True))
    rig = Line([("rig", ["-m", "rig", "tests/rig"], False)])
    beside = threading.Thread(target=other.run, kwargs={"show": False})
    beside.start()
    try:
        one.run(show=False)
        beside.join()
        rig.run(show=True)
    except KeyboardInterrupt:
        for line in (one, other, rig):
            line.stop()
        return 130
    failed = [*one.failed, *other.failed, *rig.failed]
    print(f"failed: {', '.join(failed)}" if failed else "all tests passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
