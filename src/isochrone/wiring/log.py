"""Sends the events of a process to its standard output, one JSON object a line."""

import contextlib
import io
import logging
import os
import sys
from typing import Literal, TextIO, cast

import structlog

Level = Literal["debug", "info", "warning", "error"]


def write_output(lines: bytes) -> None:
    """Whole lines to standard output, in one write, since workers share it. What it does not take
    is lost: a full disk, or a reader that has gone, must not stop who speaks."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), lines)


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
