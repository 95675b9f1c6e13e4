"""What an engine does when it is never short of requests: its greatest throughput."""

from isochrone.core.estimate.batching import Physics


def saturated_rps(physics: Physics, prompt_tokens: float, output_tokens: float) -> float:
    """Requests/s of this mean length with nothing cached. A replica reads prompts at its rate, and
    writes with as many streams as its slots and memory let in, prompt and answer set aside whole;
    both take turns."""
    fit = physics.kv_tokens / max(prompt_tokens + output_tokens, 1.0)
    streams = max(min(float(physics.slots), fit), 1.0)
    context = streams * (prompt_tokens + output_tokens / 2)
    step_s = physics.step_s + physics.stream_s * streams + physics.context_token_s * context
    read_s = prompt_tokens / physics.prefill_tok_s
    read_s += physics.prefill_context_s * prompt_tokens * prompt_tokens / 2
    spent_s = read_s + output_tokens * step_s / streams
    return 1.0 / spent_s
