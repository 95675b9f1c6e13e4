"""Large pages: which memory is asked for, and that nothing that passes is changed."""

import os
import subprocess
import sys
from pathlib import Path

from isochrone.adapters.large_pages import from_the_start, own_ranges

MAPS = """\
55d0c0a00000-55d0c0a21000 r--p 00000000 fd:00 1234                       /usr/bin/python3
55d0c1000000-55d0c1700000 rw-p 00000000 00:00 0                          [heap]
7f0000100000-7f0000f00000 rw-p 00000000 00:00 0
7f0001000000-7f0001100000 rw-p 00000000 00:00 0
7f0002000000-7f0002800000 rw-s 00000000 00:01 99                         /memfd:shared
7f0003000000-7f0003800000 r-xp 00000000 fd:00 77                         /usr/lib/libc.so.6
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_whole_large_pages_of_its_own_are_asked_for() -> None:
    """Not what is shared, not files, not the stack, and nothing smaller than a page."""
    assert list(own_ranges(MAPS)) == [
        (0x55D0C1000000, 0x55D0C1600000), (0x7F0000200000, 0x7F0000E00000),
    ]


GROWS = """
from isochrone.adapters.large_pages import PAGE_BYTES, LargePages
pages, kept = LargePages(), []
for item in pages.between(range(5)):
    kept.append(bytearray(b"x") * (8 * PAGE_BYTES))
    assert item == len(kept) - 1
assert [each[-1] for each in kept] == [ord("x")] * 5
for _ in range(2):
    pages.look()
    print(pages.looks)
"""


def test_items_pass_unchanged_and_memory_that_grew_is_asked_for() -> None:
    # In a small process of its own, whose memory grows by more than that of this one would.
    found = subprocess.run(
        [sys.executable, "-c", GROWS], check=True, capture_output=True, text=True, timeout=60
    )
    looks, again = map(int, found.stdout.split())
    if sys.platform.startswith("linux") and Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert looks >= 2
    assert again == looks, "memory has not grown"


def test_a_process_that_starts_keeps_what_its_environment_says() -> None:
    assert from_the_start({"PYTHONMALLOC": "debug"}) == {}
    asked = from_the_start({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    if asked:
        assert asked["GLIBC_TUNABLES"].endswith(":glibc.malloc.check=1")
        found = subprocess.run(
            [sys.executable, "-c", "import os; print(os.environ['PYTHONMALLOC'])"],
            env={**os.environ, **asked}, check=True, capture_output=True, text=True,
        )
        assert found.stdout.strip() == "malloc"
