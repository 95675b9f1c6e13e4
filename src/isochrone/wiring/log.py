"""Sends the events of a process to its standard output, one JSON object a line."""

import atexit
import contextlib
import io
import logging
import os
import select
import stat
import sys
import threading
from collections import deque
from typing import Literal, TextIO, cast

import structlog

MOST_WAITING_BYTES = 8 * 1024 * 1024
LAST_WORDS_S = 1.0  # at the end of a process, for a reader that is behind

Level = Literal["debug", "info", "warning", "error"]


class PatientWriter:
    """Writes to what may make its writer wait, such as a pipe whose reader has stopped to read:
    what is not taken at once is written by a thread, and whoever speaks goes on. Beyond
    `most_bytes` that wait, lines are lost; how often that was is said before the next that are
    taken.

    At most `select.PIPE_BUF` bytes of whole lines go out at once, which no other writer to the same
    pipe can come between.
    """

    def __init__(self, fd: int, *, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._fd = fd
        self._most_bytes = most_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._at_once_fd = _opened_again(fd)

    def write(self, lines: bytes) -> None:
        """Write them now or some time, in order."""
        with self._changed:
            if not self._waiting_bytes and self._at_once_fd >= 0 and not self._lost:
                lines = self._write_at_once(lines)
                if not lines:
                    return
            if self._waiting_bytes + len(lines) > self._most_bytes:
                self._lost += 1
                return
            if self._lost:
                lines = b'{"event":"log_lost","writes":%d}\n' % self._lost + lines
                self._lost = 0
            self._waiting.append(lines)
            self._waiting_bytes += len(lines)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
                atexit.register(self.finish)
            self._changed.notify_all()

    def _write_at_once(self, lines: bytes) -> bytes:
        """Write what does not have to wait; returns the rest."""
        at = 0
        try:
            while at < len(lines):
                at += os.write(self._at_once_fd, _piece(lines, at))
        except BlockingIOError:
            return lines[at:]
        except OSError:  # nobody reads any more
            return b""
        return b""

    def finish(self, timeout_s: float = LAST_WORDS_S) -> None:
        """Wait, not for ever, until everything is written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting_bytes, timeout_s)

    def close(self) -> None:
        """Nothing more will be said."""
        self.finish()
        if self._at_once_fd >= 0:
            os.close(self._at_once_fd)
            self._at_once_fd = -1

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                taken = self._waiting.popleft()
            at = 0
            with contextlib.suppress(OSError):  # nobody reads any more
                while at < len(taken):
                    at += os.write(self._fd, _piece(taken, at))
            with self._changed:
                self._waiting_bytes -= len(taken)
                self._changed.notify_all()


def _opened_again(fd: int) -> int:
    """A way of our own to the same place that never makes us wait; -1 where there is none, as to a
    socket. The other one is shared with whoever started us, and has to stay as it is."""
    try:
        how = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{fd}", how)
    except OSError:
        return -1


def _piece(lines: bytes, at: int) -> bytes:
    """Whole lines from there on, as many as go out at once."""
    if len(lines) - at <= select.PIPE_BUF:
        return lines[at:]
    end = lines.rfind(b"\n", at, at + select.PIPE_BUF) + 1
    return lines[at : end or at + select.PIPE_BUF]


_patient: dict[int, PatientWriter] = {}


def write_output(lines: bytes) -> None:
    """Whole lines to standard output, which workers share. What it does not take is lost: a full
    disk, or a reader that has gone or does not read, must not stop who speaks."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        fd = sys.stdout.fileno()
        patient = _patient.get(fd)
        if patient is not None:
            patient.write(lines)
        elif stat.S_ISREG(os.fstat(fd).st_mode):
            os.write(fd, lines)
        else:
            patient = _patient[fd] = PatientWriter(fd)
            patient.write(lines)


class _Output(io.TextIOBase):
    """Standard output as loggers want it."""

    def write(self, text: str) -> int:
        write_output(text.encode(errors="replace"))
        return len(text)


def configure_log(process: str, level: Level = "info") -> None:
    """Every event carries the name of the process; libraries speak from `warning` up."""
    structlog.contextvars.bind_contextvars(process=process)
    output = _Output()
    stamped: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*stamped, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, output)),
        cache_logger_on_first_use=True,
    )
    # Libraries log by the standard library; their lines take the same form.
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*stamped, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
