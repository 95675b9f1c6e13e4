"""Keeps what an engine prints: a log file a replica, bounded, with one older file beside it."""

import asyncio
from collections import deque
from pathlib import Path

MOST_BYTES = 1024 * 1024
LAST_LINES = 6
MOST_LINE_BYTES = 4096


class ChildLog:
    """Copies a stream of lines into `path`; at MOST_BYTES the file becomes `path`.1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    def last_lines(self) -> str:
        """The latest non-empty lines of this run, joined, for an error message."""
        return " | ".join(self._last)

    def note(self, line: str) -> None:
        """Write a line of the supervisor's own into the log."""
        self._write(f"-- {line}\n".encode())

    async def follow(self, stream: asyncio.StreamReader) -> None:
        """Copy until the stream ends; a disk that is full or gone loses lines, not the engine."""
        while piece := await stream.read(MOST_LINE_BYTES):
            for line in piece.decode("utf-8", "replace").splitlines():
                if line.strip():
                    self._last.append(line.strip())
            self._write(piece)

    def _write(self, piece: bytes) -> None:
        try:
            if self._path.exists() and self._path.stat().st_size + len(piece) > MOST_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            with self._path.open("ab") as file:
                file.write(piece)
        except OSError as error:
            self._last.append(f"cannot write {self._path}: {error.strerror}")
