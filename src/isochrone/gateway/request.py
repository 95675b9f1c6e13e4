"""Reads of a request's body only what deciding needs, and rewrites single fields for an engine.

The body is decoded once by msgspec into the fields below; everything else is skipped, not parsed.
A rewrite keeps each other field as the raw bytes that the client sent, so unknown fields go
through untouched.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from isochrone.core.ids import ModelName
from isochrone.core.metering.event import Endpoint

ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}

MOST_CHOICES = 128
MODEL_NAME_CHARS = 256
BYTES_PER_TOKEN = 4  # of English text; routing needs only the order of magnitude
USUAL_OUTPUT_TOKENS = 256  # assumed where the client sets no limit

RunningCounts = Literal["timings", "usage"] | None


class BadRequest(ValueError):
    """The body cannot be served: `message` for the client, `param` the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    service_tier: str | None = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """What the gateway knows of a request's content.

    `choices` is over all prompts: n for each. Those of prompt p have the indices p * n to
    p * n + n - 1.
    """

    endpoint: Endpoint
    model: ModelName
    stream: bool
    wants_usage: bool
    prompts: int
    choices: int
    prompt_bytes: int
    prompt_tokens: int
    output_tokens: int
    service_tier: str | None


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_TRUE = msgspec.Raw(b"true")


def parse_request(endpoint: Endpoint, body: bytes) -> InferenceRequest:
    """Decode the needed fields; raises BadRequest with a message fit for the client."""
    try:
        fields = _decode_body(body)
    except RecursionError as error:
        raise BadRequest("The body is nested too deeply.") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadRequest(f"The body is not a valid request: {error}.") from error
    if not fields.model or len(fields.model) > MODEL_NAME_CHARS:
        raise BadRequest(f"'model' must have 1 to {MODEL_NAME_CHARS} characters.", "model")
    n = 1 if fields.n is None else fields.n
    if not 1 <= n <= MOST_CHOICES:
        raise BadRequest(f"'n' must be 1 to {MOST_CHOICES}, not {n}.", "n")
    if endpoint == "chat.completions":
        content, prompts = fields.messages, 1
    elif endpoint == "completions":
        content = fields.prompt
        prompts = len(_prompts(content))
    else:
        content, prompts, n = fields.input, 1, 1
    most = fields.max_completion_tokens
    if most is None:
        most = fields.max_tokens
    if endpoint == "embeddings":
        most = 0
    elif most is None or most < 0:
        most = USUAL_OUTPUT_TOKENS
    prompt_bytes = len(memoryview(content))
    options = fields.stream_options
    return InferenceRequest(
        endpoint=endpoint,
        model=ModelName(fields.model),
        stream=bool(fields.stream) and endpoint != "embeddings",
        wants_usage=options is not None and bool(options.include_usage),
        prompts=prompts,
        choices=n * prompts,
        prompt_bytes=prompt_bytes,
        prompt_tokens=max(1, prompt_bytes // BYTES_PER_TOKEN),
        output_tokens=most * n * prompts,
        service_tier=fields.service_tier,
    )


def prompts_of(body: bytes) -> list[msgspec.Raw]:
    """The prompts of a completions request that parse_request accepted, as the client wrote them.

    One that names no prompt, like one to another endpoint, has one empty prompt.
    """
    return _prompts(_decode_body(body).prompt)


def _prompts(prompt: msgspec.Raw) -> list[msgspec.Raw]:
    """A prompt is a text, or token ids, or both mixed; several are a list of such prompts."""
    text = bytes(prompt)
    if not text.startswith(b"["):
        return [prompt]
    items = _decode_list(text)
    if items and all(bytes(memoryview(item)[:1]) in (b'"', b"[", b"{") for item in items):
        return items
    return [prompt]


def rewrite(
    body: bytes, *, model: str | None, stream: bool, running_counts: RunningCounts = None
) -> bytes:
    """The body as the engine gets it: its own model name (None keeps the client's) and, for a
    stream, the final usage and running counts asked for. A name given twice counts once, as last.
    """
    if model is None and not stream:
        return body
    fields = _decode_fields(body)
    if model is not None:
        fields["model"] = msgspec.Raw(_encode(model))
    if stream:
        options = fields.get("stream_options")
        given = {} if options is None or bytes(options) == b"null" else _decode_fields(options)
        given["include_usage"] = _TRUE
        if running_counts == "usage":
            given["continuous_usage_stats"] = _TRUE
        fields["stream_options"] = msgspec.Raw(_encode(given))
        if running_counts == "timings":
            fields["timings_per_token"] = _TRUE
    return _encode(fields)
