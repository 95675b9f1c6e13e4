"""What every gateway process does once it listens, and where its request log goes."""

import gc
import os
from pathlib import Path

import structlog

# Collections are rare and find little: what lives at the start is frozen, and requests make no
# cycles on purpose.
GC_THRESHOLDS = (20_000, 50, 50)

log = structlog.get_logger()


def freeze_start(port: int) -> None:
    """Keep the collector away from what was made for good; call it when the gateway listens."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class LineFile:
    """Whole lines appended to a file that others may append to as well. What it cannot take is
    dropped and said once: a log must not stop the gateway. Raises OSError when made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path)
        self._failed = False
        self._torn = False

    def write(self, lines: bytes) -> None:
        begun = b"\n" + lines if self._torn else lines  # half a line must not spoil the next one
        try:
            written_bytes = os.write(self._fd, begun)
        except OSError as error:
            self._failing(str(error))
            return
        self._torn = written_bytes < len(begun)
        if self._torn:
            self._failing("the disk took only a part")
        else:
            self._failed = False

    def _failing(self, why: str) -> None:
        if not self._failed:
            log.error("request_log_not_written", path=str(self._path), why=why)
        self._failed = True

    def reopen(self) -> None:
        """Go on in a new file if the old one was moved away. Raises OSError."""
        fd = _open(self._path)
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
