"""Imports a library without a package that it would use if it is there, and that we do not need.

Such a package may take longer to import than all of the library, in every process that starts.
"""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """What is imported meanwhile finds that this package is not installed, unless it has been
    imported before; whatever is imported afterwards finds it as it is."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python marks what cannot be had
    try:
        yield
    finally:
        del sys.modules[package]
