"""Makes the bodies of requests: the seed of a first attempt, and what asks for a continuation."""

import msgspec

from isochrone.core.metering.event import Endpoint
from isochrone.core.rng import Random
from isochrone.gateway.continuation.features import Fields, fields_of

SEED_BITS = 31  # every engine takes these; the largest of 32 bits means "by chance" to llama.cpp
_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")

_encode = msgspec.json.encode


def with_seed(body: bytes, rng: Random) -> bytes:
    """The body with a seed, if the client gave none.

    It goes to the front, so that nothing has to be decoded; a request that mentions one anywhere is
    looked at closely. Engine and peer then see the same request in every attempt. What is no object
    to a strict reader stays as it is; its engine will say so.
    """
    seed = b"%d" % rng.getrandbits(SEED_BITS)
    if b'"seed"' in body:
        try:
            fields = fields_of(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return body
        if "seed" in fields:
            if bytes(fields["seed"]) != b"null":
                return body
            fields["seed"] = msgspec.Raw(seed)
            return _encode(fields)
    begin = body.index(b"{") + 1
    return b'%b"seed":%b,%b' % (body[:begin], seed, body[begin:])


def continuing_body(
    body: bytes,
    tokens: int,
    *,
    endpoint: Endpoint,
    text: str,
    ids: tuple[int, ...] | None,
    nth: int,
) -> bytes:
    """The request that goes on behind `text`, which is `tokens` long, or behind `ids`, which are
    prompt and answer. `nth` numbers the continuations of a run from 1.

    Limits count what is left, the seed moves on (the same one would repeat its first numbers). An
    answer of the client's own at the end of `messages` is continued together with ours.
    """
    fields = fields_of(body)
    for name in (*_LIMITS, "min_tokens"):
        limit = fields.get(name)
        if limit is None or bytes(limit) == b"null":
            continue
        value = int(msgspec.json.decode(limit, type=float))
        if value > 0:
            least = 0 if name == "min_tokens" else 1
            fields[name] = _raw(max(value - tokens, least))
    seed = fields.get("seed")
    if seed is not None and bytes(seed) != b"null":
        given = int(msgspec.json.decode(seed, type=int | float))
        fields["seed"] = _raw((given + nth) % 2**SEED_BITS)
    if endpoint == "chat.completions":
        fields["messages"] = _with_answer(fields, text)
        fields["continue_final_message"] = msgspec.Raw(b"true")
        fields["add_generation_prompt"] = msgspec.Raw(b"false")
    elif ids is not None:
        fields["prompt"] = _raw(ids)
    else:
        fields["prompt"] = _with_text(fields["prompt"], text)
    return _encode(fields)


def _with_answer(fields: Fields, text: str) -> msgspec.Raw:
    messages = msgspec.json.decode(fields["messages"], type=list[msgspec.Raw])
    last = fields_of(messages[-1])
    role = msgspec.json.decode(last.get("role", b'""'), type=str)
    if role == "assistant":
        content = msgspec.json.decode(last["content"], type=str)
        messages[-1] = _raw(last | {"content": _raw(content + text)})
    else:
        messages.append(_raw({"role": "assistant", "content": text}))
    return _raw(messages)


def _with_text(prompt: msgspec.Raw, text: str) -> msgspec.Raw:
    """A prompt in token ids becomes ids with a text behind them."""
    given = msgspec.json.decode(prompt, type=str | list[int])
    return _raw(given + text if isinstance(given, str) else [*given, text])


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))
