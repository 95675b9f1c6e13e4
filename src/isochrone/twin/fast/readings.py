"""What a simulated replica says of itself, as an engine's counters would, read once in a while."""

from isochrone.core.world.engine_load import EngineLoad
from isochrone.twin.fast.replica import BLOCK_TOKENS, SimulatedReplica


class Meter:
    """Reads one replica; the rates are those since the reading before."""

    __slots__ = ("_read_s", "_read_tokens", "_stream_s", "_stream_tokens", "replica")

    def __init__(self, replica: SimulatedReplica) -> None:
        self.replica = replica
        self._read_tokens = self._read_s = self._stream_tokens = self._stream_s = 0.0

    def read(self, now_s: float) -> EngineLoad:
        """The counters now."""
        replica = self.replica
        replica.pass_to(now_s)
        read_tokens, read_s = replica.read_tokens, replica.reading_s
        stream_tokens, stream_s = replica.stream_tokens, replica.stream_s
        prefill_tok_s = decode_tok_s = None
        if read_s > self._read_s:
            prefill_tok_s = (read_tokens - self._read_tokens) / (read_s - self._read_s)
        if stream_s > self._stream_s:
            decode_tok_s = (stream_tokens - self._stream_tokens) / (stream_s - self._stream_s)
        self._read_tokens, self._read_s = read_tokens, read_s
        self._stream_tokens, self._stream_s = stream_tokens, stream_s
        return EngineLoad(
            running=replica.reading + replica.streams,
            waiting=replica.waiting,
            prompt_tokens_total=int(read_tokens),
            cached_tokens_total=replica.cached_tokens,
            output_tokens_total=int(replica.written_tokens),
            prefill_tok_s=prefill_tok_s,
            decode_tok_s=decode_tok_s,
            requests_total=replica.ended,
            running_prompt_tokens=int(replica.unread_tokens),
            kept_tokens=replica.cache.most_blocks * BLOCK_TOKENS,
            held_tokens=replica.kv_used,
        )
