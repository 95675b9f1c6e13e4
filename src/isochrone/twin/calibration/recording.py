"""A recorded run of a real cloud: what it was, and of each request its length and its instants.

JSON lines in gzip: the facts of the run, then a list a request. No text of anybody is in it.
"""

import gzip
from collections.abc import Mapping

import msgspec


class Seen(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One request as its client saw it. `at_s`: when it was sent, since the start of the run,
    `late_ms` of that after its moment in the trace; `ttft_ms` and `total_ms` count from `at_s`.
    `wanted_tokens`: of the answer, as it was asked for; `output_tokens` as it was. `cached_tokens`:
    of the prompt, that the engine had. `error` None: answered whole."""

    at_s: float
    late_ms: float
    ingress: str
    site: str
    prompt_tokens: int
    cached_tokens: int
    wanted_tokens: int
    output_tokens: int
    ttft_ms: float | None
    total_ms: float
    error: str | None


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    mix: str
    take: int
    trace: str
    options: tuple[str, ...]
    at: str
    source: dict[str, object]
    machine: dict[str, object]
    foreign_share: float | None
    site: str
    replicas: int
    slots: int
    threads: int
    context_tokens: int
    chunk_tokens: int
    rtt_ms: dict[str, float]


class Recording(_Head, frozen=True, kw_only=True):
    """One run of `mix`. The cloud: `replicas` engines at `site`, each with `slots` streams of
    `context_tokens` and `threads`, which reads prompts by `chunk_tokens`; `rtt_ms` from each
    ingress to there, 0 where it is at home.
    `source` is the commit of the code that ran, `foreign_share` how much of the machine went to
    anything else meanwhile, None where that was not measured."""

    seen: tuple[Seen, ...]

    @property
    def answered(self) -> tuple[Seen, ...]:
        """The requests that were answered whole, in the order in which they were sent."""
        return tuple(sorted(
            (one for one in self.seen if one.error is None and one.ttft_ms is not None),
            key=lambda one: one.at_s,
        ))


def write_recording(recording: Recording) -> bytes:
    """The file of it; the same recording gives the same bytes."""
    head = {
        name: getattr(recording, name) for name in _Head.__struct_fields__
    }
    lines = [msgspec.json.encode(head), *map(msgspec.json.encode, map(_short, recording.seen))]
    return gzip.compress(b"\n".join(lines) + b"\n", mtime=0)


def read_recording(data: bytes) -> Recording:
    """What `write_recording` made. Raises msgspec.MsgspecError, OSError."""
    head_line, *lines = gzip.decompress(data).splitlines()
    head = msgspec.json.decode(head_line, type=_Head)
    decode = msgspec.json.Decoder(Seen).decode
    facts: Mapping[str, object] = {name: getattr(head, name) for name in _Head.__struct_fields__}
    return msgspec.convert({**facts, "seen": [decode(line) for line in lines]}, Recording)


def _short(seen: Seen) -> Seen:
    """To the microsecond."""
    return msgspec.structs.replace(
        seen, at_s=round(seen.at_s, 6), late_ms=round(seen.late_ms, 3),
        ttft_ms=None if seen.ttft_ms is None else round(seen.ttft_ms, 3),
        total_ms=round(seen.total_ms, 3),
    )
