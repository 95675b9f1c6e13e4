"""Reads of a request what decides how its answer can be continued; only when a stream is lost.

A field that is not listed here may do anything, so it counts as one with state outside of the text:
its answers are replayed, never continued.
"""

import msgspec

from isochrone.core.continuation.plan import Features
from isochrone.core.metering.event import Endpoint

Fields = dict[str, msgspec.Raw]

# Fields that a continuation may carry as they are: they name, account for, or shape each token from
# the text before it alone.
PLAIN = frozenset((
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens",
    "max_completion_tokens", "n_predict", "min_tokens", "n", "seed", "stop", "temperature",
    "top_p", "top_k", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold",
    "dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta", "samplers",
    "repeat_penalty", "repeat_last_n", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
    "dry_sequence_breakers", "logit_bias", "logprobs", "top_logprobs", "ignore_eos",
    "stop_token_ids", "skip_special_tokens", "user", "metadata", "store", "service_tier",
    "safety_identifier", "prompt_cache_key", "cache_prompt", "priority", "request_id",
    "timings_per_token", "return_token_ids", "continue_final_message", "add_generation_prompt",
    "chat_template_kwargs", "parallel_tool_calls", "response_format", "modalities",
))
_OUTPUT_PENALTIES = ("presence_penalty", "frequency_penalty")
_LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")  # the last is llama.cpp's own
_NUMBERS = ("seed", "min_tokens", *_LIMITS)  # that a continuation changes
# Values that switch a field off, whatever it does.
_OFF = (b"null", b"false", b"[]", b"{}", b'""', b'"none"')

HEADROOM = 20  # frames of the stack

_decode = msgspec.json.Decoder(Fields).decode


class _Message(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b"null")
    tool_calls: msgspec.Raw = msgspec.Raw(b"null")


class _Kind(msgspec.Struct):
    type: str = ""


def fields_of(body: bytes) -> Fields:
    """The fields of a request that was accepted, each as the client wrote it."""
    return _decode(body)


def features_of(endpoint: Endpoint, body: bytes) -> Features:
    """Features of a request that was accepted. A field of the wrong type counts as stateful: the
    engine took it, so it means something that is not known here; so does one nested too deeply."""
    try:
        return _from_below(HEADROOM, endpoint, body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Features(several=True, sampled=True, stateful="a field of an unknown form")


def _from_below(frames: int, endpoint: Endpoint, body: bytes) -> Features:
    """Read so much deeper in the stack than its caller: whoever reads the body once more, to make
    another of it, then has no less room for what is nested in it."""
    if frames:
        return _from_below(frames - 1, endpoint, body)
    fields = {name: raw for name, raw in _decode(body).items() if bytes(raw) != b"null"}
    for name in _NUMBERS:
        _number(fields, name, 0)
    return Features(
        several=_number(fields, "n", 1) != 1,
        schema=_is_schema(fields),
        sampled=_number(fields, "temperature", 1) != 0,
        output_penalties=any(_number(fields, name, 0) != 0 for name in _OUTPUT_PENALTIES),
        stateful=_stateful(endpoint, fields),
        max_tokens=max_tokens_of(fields),
        stops=stops_of(fields),
        own_answer=_own_answer(endpoint, fields),
        prompt_ids=bytes(fields.get("prompt", b"")).startswith(b"["),
        private=not any(name in fields for name in _LIMITS[:-1]),
    )


def stops_of(fields: Fields) -> tuple[str, ...]:
    """The stop strings; raises msgspec.ValidationError for anything else."""
    raw = fields.get("stop")
    if raw is None or bytes(raw) == b"null":
        return ()
    stops = msgspec.json.decode(raw, type=str | list[str])
    return tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop)


def max_tokens_of(fields: Fields) -> int | None:
    """The client's limit; None without one, also where it is written as a negative number."""
    for name in _LIMITS:
        if name in fields:
            limit = int(_number(fields, name, -1))
            return limit if limit >= 0 else None
    return None


def _number(fields: Fields, name: str, default: float) -> float:
    raw = fields.get(name)
    return default if raw is None else msgspec.json.decode(raw, type=float)


def _is_schema(fields: Fields) -> bool:
    raw = fields.get("response_format")
    return raw is not None and msgspec.json.decode(raw, type=_Kind).type != "text"


def _stateful(endpoint: Endpoint, fields: Fields) -> str | None:
    for name, raw in fields.items():
        if name not in PLAIN and bytes(raw) not in _OFF:
            return name
    if endpoint == "completions":
        # Offsets of its logprobs count from the beginning of the answer.
        return "logprobs" if "logprobs" in fields else _unusual_prompt(fields)
    return _unusual_messages(fields)


def _own_answer(endpoint: Endpoint, fields: Fields) -> bool:
    if endpoint != "chat.completions" or _is_true(fields, "continue_final_message"):
        return False
    return [message.role for message in _messages(fields)][-1:] == ["assistant"]


def _messages(fields: Fields) -> list[_Message]:
    return msgspec.json.decode(fields.get("messages", b"[]"), type=list[_Message])


def _is_true(fields: Fields, name: str) -> bool:
    return name in fields and bytes(fields[name]) == b"true"


def _unusual_prompt(fields: Fields) -> str | None:
    prompt = bytes(fields.get("prompt", b"null"))
    if prompt.startswith(b'"'):
        return None
    ids = msgspec.json.decode(prompt)
    plain = isinstance(ids, list) and bool(ids) and all(type(each) is int for each in ids)
    return None if plain else "prompt"


def _unusual_messages(fields: Fields) -> str | None:
    """Content in parts may be an image, and is joined in a way of each engine's own. A trailing
    answer of the client's is continued only where its text is plain."""
    messages = _messages(fields)
    if not messages or any(bytes(each.content).startswith(b"[") for each in messages):
        return "messages"
    if bytes(fields.get("continue_final_message", b"true")) not in (b"true", b"false"):
        return "continue_final_message"
    last = messages[-1]
    if last.role == "assistant" and (
        not bytes(last.content).startswith(b'"') or bytes(last.tool_calls) not in _OFF
    ):
        return "messages"
    return None
