"""Reads an engine's Prometheus text into an EngineLoad, whatever the engine calls its series.

Names differ between engines and versions: each need lists its names in order of preference, and a
series that is missing, or has a value that nothing counted can have, is unknown, not zero. Rates
are what one stream saw since the last reading.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from isochrone.core.world.engine_load import EngineLoad
from isochrone.core.world.model import ALL_ENDPOINTS
from isochrone.ports.engine import EngineTraits

Family = Literal["llamacpp", "vllm", "sglang"]
Series = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Series of one engine family, best first; `decode` is (tokens, seconds spent on them),
    `kept` the tokens that its cache has room for, `held` those that running requests take of it,
    or, as `held_share`, what part of it they take."""

    traits: EngineTraits
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    prompt: tuple[str, ...]
    cached: tuple[str, ...]
    prompt_includes_cached: bool
    output: tuple[str, ...]
    requests: tuple[str, ...] = ()
    prefill_seconds: str
    decode: tuple[str, str]
    kept: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    held_share: tuple[str, ...] = ()


LARGEST = 2.0**53  # of what is counted; beyond it floats are no whole numbers
SLOWEST_TOK_S = 1e-3  # below it a rate cannot have been measured; gateways believe none
# vLLM states the size of its cache in labels; what they make is added as a series of this name.
CACHE_CONFIG = "vllm:cache_config_info"
CACHE_TOKENS = "vllm:cache_tokens"
CACHES = "vllm:caches"  # how many said their size; each says its own share
_SIZES = re.compile(r'\b(block_size|num_gpu_blocks)="(\d+)"')


FAMILIES: Mapping[Family, Names] = {
    "llamacpp": Names(
        traits=EngineTraits(
            running_counts="timings", usage_counts_one_choice=True, endpoints=ALL_ENDPOINTS
        ),
        running=("llamacpp:requests_processing",),
        waiting=("llamacpp:requests_deferred",),
        prompt=("llamacpp:prompt_tokens_total",),
        cached=("llamacpp:prompt_tokens_cached_total",),
        prompt_includes_cached=False,
        output=("llamacpp:tokens_predicted_total",),
        prefill_seconds="llamacpp:prompt_seconds_total",
        decode=("llamacpp:tokens_predicted_total", "llamacpp:tokens_predicted_seconds_total"),
    ),
    "vllm": Names(
        traits=EngineTraits(running_counts="usage", endpoints=ALL_ENDPOINTS, cache_salt=True),
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        prompt=("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        cached=(
            "vllm:prompt_tokens_cached_total",
            "vllm:prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits_total",
        ),
        prompt_includes_cached=True,
        output=("vllm:generation_tokens_total", "vllm:generation_tokens"),
        requests=("vllm:request_success_total", "vllm:e2e_request_latency_seconds_count"),
        prefill_seconds="vllm:request_prefill_time_seconds_sum",
        decode=(
            "vllm:inter_token_latency_seconds_count",
            "vllm:inter_token_latency_seconds_sum",
        ),
        kept=(CACHE_TOKENS,),
        held_share=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    "sglang": Names(
        traits=EngineTraits(running_counts="usage", endpoints=ALL_ENDPOINTS, cache_salt=True),
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        prompt=("sglang:prompt_tokens_total",),
        cached=("sglang:cached_tokens_total",),
        prompt_includes_cached=True,
        output=("sglang:generation_tokens_total",),
        requests=("sglang:num_requests_total", "sglang:e2e_request_latency_seconds_count"),
        # Its time to the first token includes the queue: an upper bound of the prefill time.
        prefill_seconds="sglang:time_to_first_token_seconds_sum",
        decode=(
            "sglang:inter_token_latency_seconds_count",
            "sglang:inter_token_latency_seconds_sum",
        ),
        kept=("sglang:max_total_num_tokens",),
        held=("sglang:num_used_tokens",),
    ),
}


def read_series(text: str) -> dict[str, float]:
    """Sum of each series over its labels, as far as one can be; lines that cannot be read are
    skipped. Any server may answer here, with any page."""
    series: dict[str, float] = {}
    for line in text.splitlines():
        if not line.strip() or line[0] == "#":
            continue
        name, brace, rest = line.partition("{")
        if brace:
            value = rest.rpartition("}")[2].split()
        else:
            name, *value = line.split()
        try:
            number = float(value[0])
        except (IndexError, ValueError):
            continue
        if number == number and abs(number) != float("inf"):
            series[name] = series.get(name, 0.0) + number
            if name == CACHE_CONFIG:
                series[CACHE_TOKENS] = series.get(CACHE_TOKENS, 0.0) + _cache_tokens(rest)
                series[CACHES] = series.get(CACHES, 0.0) + 1.0
    return {name: number for name, number in series.items() if 0.0 <= number <= LARGEST}


def _cache_tokens(labels: str) -> float:
    """Tokens that one engine's cache holds, 0 where its labels do not say."""
    sizes = {name: float(digits) for name, digits in _SIZES.findall(labels)}
    return sizes.get("block_size", 0.0) * sizes.get("num_gpu_blocks", 0.0)


def family_of(series: Series) -> Family | None:
    """Which engine these series come from, by their prefix."""
    for family in FAMILIES:
        if any(name.startswith(f"{family}:") for name in series):
            return family
    return None


def _count(series: Series, names: tuple[str, ...]) -> int | None:
    return next((round(series[name]) for name in names if name in series), None)


def _held(series: Series, names: Names) -> int | None:
    """Tokens that running requests take of the cache; None where the engine does not say."""
    said = _count(series, names.held)
    if said is not None or not names.held_share:
        return said
    room = _count(series, names.kept)
    share = next((series[name] for name in names.held_share if name in series), None)
    if not room or share is None:
        return None
    return round(room * min(share / max(series.get(CACHES, 1.0), 1.0), 1.0))


@dataclass(slots=True)
class LoadReader:
    """Turns successive readings of one engine into loads; remembers the last one for the rates.

    The first reading compares with a fresh engine (all zero).
    """

    family: Family
    _before: dict[str, float] = field(default_factory=dict)

    def read(self, series: Series) -> EngineLoad:
        names = FAMILIES[self.family]
        prompt, cached = _count(series, names.prompt), _count(series, names.cached)
        if names.prompt_includes_cached and prompt is not None and cached is not None:
            prompt = max(0, prompt - cached)
        return EngineLoad(
            running=_count(series, names.running),
            waiting=_count(series, names.waiting),
            prompt_tokens_total=prompt,
            cached_tokens_total=cached,
            output_tokens_total=_count(series, names.output),
            prefill_tok_s=self._rate("prefill", prompt, series.get(names.prefill_seconds)),
            decode_tok_s=self._rate(
                "decode", series.get(names.decode[0]), series.get(names.decode[1])
            ),
            requests_total=_count(series, names.requests),
            kept_tokens=_count(series, names.kept) or None,
            held_tokens=_held(series, names),
        )

    def _rate(self, what: str, tokens: float | None, seconds: float | None) -> float | None:
        """Tokens a second since the last reading; None without work or when unknown."""
        if tokens is None or seconds is None:
            return None
        new_tokens = tokens - self._before.get(f"{what} tokens", 0.0)
        new_seconds = seconds - self._before.get(f"{what} seconds", 0.0)
        self._before[f"{what} tokens"], self._before[f"{what} seconds"] = tokens, seconds
        if new_tokens <= 0 or new_seconds <= 0:
            return None
        rate = new_tokens / new_seconds
        return rate if SLOWEST_TOK_S <= rate <= LARGEST else None
