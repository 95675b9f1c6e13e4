"""Physics of an engine that batches: how long a step takes, and what that makes of two rates.

In each step every stream gets one token, and up to `chunk_tokens` of the prompts that wait are read
along. A step takes a fixed time (the weights are read), a little for each stream, a little for each
token of context (the KV cache is read), and the time of the prompt tokens in it. All times are
seconds, all sizes tokens.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Physics:
    """One replica. `prefill_tok_s` is the rate of reading where a prompt begins; each token takes
    `prefill_context_s` more for each token of the prompt before it. `kv_tokens` is what its KV
    memory holds of prompts and answers together; `slots` how many streams it runs at most."""

    step_s: float
    stream_s: float = 0.0
    context_token_s: float = 0.0
    prefill_tok_s: float
    prefill_context_s: float = 0.0
    chunk_tokens: int = 512
    slots: int
    kv_tokens: int

    def decode_step_s(self, streams: int, context_tokens: float) -> float:
        """A step without prompts, which gives each stream a token."""
        return self.step_s + self.stream_s * streams + self.context_token_s * context_tokens

    def mixed_step_s(self, streams: int, context_tokens: float) -> float:
        """A step that reads a whole chunk of prompts along. Without streams, the weights are read
        in the time of the chunk itself."""
        chunk_s = self.chunk_tokens / self.prefill_tok_s
        return chunk_s + (self.decode_step_s(streams, context_tokens) if streams else 0.0)

    def read_tokens(self, prompt_tokens: int, cached_tokens: int) -> float:
        """What is left to read of a prompt, in tokens of the rate at which one begins."""
        left = prompt_tokens - cached_tokens
        if self.prefill_context_s <= 0.0:
            return float(left)
        before = (prompt_tokens + cached_tokens) / 2.0
        return left * (1.0 + self.prefill_context_s * self.prefill_tok_s * before)

    def alone_ms(self, prompt_tokens: int, output_tokens: int) -> float:
        """Time of one request on an idle replica, nothing cached."""
        context = prompt_tokens + output_tokens / 2
        decode_s = max(output_tokens - 1, 0) * self.decode_step_s(1, context)
        read_s = self.read_tokens(prompt_tokens, 0) / self.prefill_tok_s
        return 1000.0 * (read_s + decode_s)
