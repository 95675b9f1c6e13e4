"""Telemetry in memory: spans that can be looked at, and a process that uses nothing."""

from isochrone.ports.telemetry import ProcessUse, Span, SpanCounts


class MemorySpans:
    """Keeps the first `most` spans and drops the rest."""

    def __init__(self, most: int = 4096) -> None:
        self.spans: list[Span] = []
        self._most = most
        self._dropped = 0

    def take(self, span: Span) -> None:
        if len(self.spans) < self._most:
            self.spans.append(span)
        else:
            self._dropped += 1

    def counts(self) -> SpanCounts:
        return SpanCounts(exported=len(self.spans), dropped=self._dropped, failed=0)

    def close(self) -> None:
        return


def no_process_use() -> ProcessUse:
    """Of a process that is simulated."""
    return ProcessUse(cpu_s=0.0, resident_bytes=0, open_fds=0, most_fds=0, started_at=0.0)
