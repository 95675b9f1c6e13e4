"""Writes a file that is there whole or not at all, wherever its name leads.

In: a path and what writes to another. Out: the file, or the one that was there before. A link stays
a link; a device or a pipe (`/dev/stdout`) is written to and never replaced by a file.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to. What is there at the end becomes the file; after an exception, nothing
    does. Raises OSError."""
    if path.exists() and not path.is_file():  # by its own name: that of a process's pipe is no path
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            yield part
            with part.open("rb") as made, path.open("wb") as opened:
                shutil.copyfileobj(made, opened)
        return
    end = Path(os.path.realpath(path))
    part = end.with_name(f".{end.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(end)
    finally:
        part.unlink(missing_ok=True)
