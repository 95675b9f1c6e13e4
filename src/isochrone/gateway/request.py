"""Reads of a request's body only what deciding needs, and rewrites single fields for an engine.

The body is decoded once by msgspec into the fields below; everything else is skipped, not parsed.
What an engine has to be told is put in front of the client's fields where none of them says
anything about it; otherwise single fields are replaced and each other one keeps the raw bytes that
the client sent. Unknown fields go through untouched either way.
"""

import re
from itertools import islice
from typing import Final, Literal

import msgspec
from msgspec.structs import astuple

from isochrone.core.ids import ModelName
from isochrone.core.metering.event import Endpoint
from isochrone.gateway.request_fields import (
    ABSENT,
    ClassicBody,
    MessagesBody,
    ResponsesBody,
    decode_classic,
    decode_messages,
    decode_responses,
    state_named,
)

ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}

MOST_CHOICES: Final = 128  # of one prompt
MOST_ANSWERS: Final = 2048  # of all prompts together
MODEL_NAME_CHARS: Final = 256
BYTES_PER_TOKEN: Final = 4  # of English text; routing needs only the order of magnitude
USUAL_OUTPUT_TOKENS: Final = 256  # assumed where the client sets no limit
# Of one answer. No engine writes more, whatever its client allows: a larger number is a way to say
# "no limit", and what is counted with it has to stay a number that can be added up and sent.
MOST_OUTPUT_TOKENS: Final = 1 << 24

RunningCounts = Literal["timings", "usage"] | None

_SEVERAL_PROMPTS: Final = re.compile(rb'\[\s*(["\[{])')  # a list whose first item is no number
_BETWEEN_TEXTS: Final = re.compile(rb'"\s*,\s*"')  # within a text there is a backslash between
_BETWEEN_LISTS: Final = re.compile(rb"\]\s*,\s*\[")

_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")


class BadRequest(ValueError):
    """The body cannot be served: `message` for the client, `param` the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InferenceRequest:
    """What the gateway knows of a request's content. Never changed once it is made.

    `choices` is over all prompts: n for each. Those of prompt p have the indices p * n to
    p * n + n - 1. `prompt` is the JSON of what the model reads first, for prefix hashes, but for
    `tools`, which it reads before. `tells`: the names of the fields in the body by which the client
    itself says what `engine_body` would. `cache_key` is its `prompt_cache_key`, empty without one;
    `own_salt` its `cache_salt`, None without one; both as JSON. `is_limited`: `output_tokens` is
    the client's limit, and not what is assumed without one.
    """

    __slots__ = (
        "cache_key", "choices", "endpoint", "is_limited", "model", "output_tokens", "own_salt",
        "prompt", "prompt_bytes", "prompt_tokens", "prompts", "service_tier", "stream", "tells",
        "tools", "wants_usage",
    )

    def __init__(
        self, endpoint: Endpoint, model: ModelName, stream: bool, wants_usage: bool, prompts: int,
        choices: int, prompt_bytes: int, output_tokens: int, service_tier: str | None,
        prompt: msgspec.Raw, tells: tuple[str, ...], is_limited: bool, cache_key: bytes = b"",
        own_salt: bytes | None = None, tools: msgspec.Raw = ABSENT,
    ) -> None:
        self.endpoint = endpoint
        self.is_limited = is_limited
        self.model = model
        self.stream = stream
        self.wants_usage = wants_usage
        self.prompts = prompts
        self.choices = choices
        self.prompt_bytes = prompt_bytes
        self.prompt_tokens = prompt_bytes // BYTES_PER_TOKEN or 1
        self.output_tokens = output_tokens
        self.service_tier = service_tier
        self.prompt = prompt
        self.tells = tells
        self.cache_key = cache_key
        self.own_salt = own_salt
        self.tools = tools


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def parse_request(endpoint: Endpoint, body: bytes) -> InferenceRequest:
    """Decode the needed fields; raises BadRequest with a message fit for the client."""
    try:
        if not body.isascii():
            body.decode()  # what the decoders below skip they do not check
        if endpoint == "responses":
            return _responses(decode_responses(body))
        if endpoint == "messages":
            return _messages(decode_messages(body))
        return _classic(endpoint, decode_classic(body))
    except RecursionError as error:
        raise BadRequest("The body is nested too deeply.") from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadRequest(f"The body is not a valid request: {error}.") from error


def _classic(endpoint: Endpoint, fields: ClassicBody) -> InferenceRequest:
    """Of OpenAI's older endpoints."""
    # All fields at once: this is done for every request.
    (model, streamed, _, told_n, most_older, most, tier, messages, prompt, texts, _, store, tools,
     cache_key, salt) = astuple(fields)
    if not model or len(model) > MODEL_NAME_CHARS:
        raise _bad_model()
    if store:
        raise _stateful("store")
    n: int = 1 if told_n is None else told_n
    if not 1 <= n <= MOST_CHOICES:
        raise BadRequest(f"'n' must be 1 to {MOST_CHOICES}, not {n}.", "n")
    prompts = 1
    if most is None:
        most = most_older
    is_limited = most is not None and most >= 0
    most = _bounded(most)
    if endpoint == "chat.completions":
        content = messages
    elif endpoint == "completions":
        content = prompt
        prompts = _count_of_prompts(content, n)
    else:
        content, n, most, is_limited = texts, 1, 0, True
    stream = bool(streamed) and endpoint != "embeddings"
    wants_usage, tells = _told(fields) if stream else (False, ())
    choices = n * prompts
    size = len(memoryview(content))
    return InferenceRequest(
        endpoint, ModelName(model), stream, wants_usage, prompts, choices, size, most * choices,
        tier, content, tells, is_limited, _cache_key(cache_key), _own_salt(salt), tools,
    )


def _count_of_prompts(content: msgspec.Raw, n: int) -> int:
    """How many there are; raises BadRequest for more than may be answered at once, before so many
    are taken apart."""
    text = bytes(content)
    several = _SEVERAL_PROMPTS.match(text)
    if several is None:
        return 1
    between = _BETWEEN_TEXTS if several.group(1) == b'"' else _BETWEEN_LISTS
    # At most twice what there are: a text may end in `",`.
    prompts = len(list(islice(between.finditer(text), 2 * MOST_ANSWERS)))
    if prompts < 2 * MOST_ANSWERS:
        prompts = len(_prompts(content))
    if prompts * n > MOST_ANSWERS:
        raise BadRequest(f"All prompts together have more than {MOST_ANSWERS} answers.", "prompt")
    return prompts


def _cache_key(given: msgspec.Raw) -> bytes:
    if given is ABSENT:
        return b""
    key = bytes(given)
    return b"" if key in (b"null", b'""') else key


def _own_salt(given: msgspec.Raw) -> bytes | None:
    return None if given is ABSENT else bytes(given)


def _told(fields: ClassicBody) -> tuple[bool, tuple[str, ...]]:
    """(the client wants usage, what it says itself of what `engine_body` would say)."""
    options, wants_usage = fields.stream_options, False
    tells: tuple[str, ...] = ()
    if options is not msgspec.UNSET:
        wants_usage = options is not None and bool(options.include_usage)
        tells = ("stream_options",)
    if fields.timings_per_token is not ABSENT:
        tells = (*tells, "timings_per_token")
    return wants_usage, tells


def _responses(fields: ResponsesBody) -> InferenceRequest:
    """Of OpenAI's Responses API, without the state that it may keep on its server."""
    if fields.store is True:
        raise _stateful("store")
    if fields.background:
        raise _stateful("background")
    for name in ("previous_response_id", "conversation", "prompt"):
        if bytes(getattr(fields, name)) not in (b"", b"null"):
            raise _stateful(name)
    for param, content in (("input", fields.input), ("tools", fields.tools)):
        kept = state_named(content)
        if kept is not None:
            raise _stateful(param, kept)
    tells = () if fields.store is msgspec.UNSET else ("store",)
    if fields.timings_per_token is not ABSENT:
        tells = (*tells, "timings_per_token")
    return _one_answer(
        "responses", fields.model, bool(fields.stream), fields.max_output_tokens,
        fields.service_tier, fields.instructions, fields.input, tells,
        _cache_key(fields.prompt_cache_key), _own_salt(fields.cache_salt), fields.tools,
    )


def _messages(fields: MessagesBody) -> InferenceRequest:
    """Of Anthropic's Messages API."""
    if bytes(fields.container) not in (b"", b"null"):
        raise _stateful("container")
    kept = state_named(fields.messages)
    if kept is not None:
        raise _stateful("messages", kept)
    return _one_answer(
        "messages", fields.model, bool(fields.stream), fields.max_tokens, fields.service_tier,
        fields.system, fields.messages, (), b"", None, fields.tools,
    )


def _one_answer(
    endpoint: Endpoint, model: str, stream: bool, most: int | None, service_tier: str | None,
    first: msgspec.Raw, then: msgspec.Raw, tells: tuple[str, ...], cache_key: bytes,
    own_salt: bytes | None, tools: msgspec.Raw,
) -> InferenceRequest:
    """A request with one prompt in two parts and one choice, whose stream always has usage."""
    if not model or len(model) > MODEL_NAME_CHARS:
        raise _bad_model()
    is_limited = most is not None and most >= 0
    most = _bounded(most)
    content = msgspec.Raw(bytes(first) + bytes(then)) if first is not ABSENT else then
    size = len(memoryview(content))
    return InferenceRequest(
        endpoint, ModelName(model), stream, True, 1, 1, size, most, service_tier, content, tells,
        is_limited, cache_key, own_salt, tools,
    )


def _bounded(most: int | None) -> int:
    """What an answer is expected to have, at most."""
    if most is None or most < 0:
        return USUAL_OUTPUT_TOKENS
    return min(most, MOST_OUTPUT_TOKENS)


def _bad_model() -> BadRequest:
    return BadRequest(f"'model' must have 1 to {MODEL_NAME_CHARS} characters.", "model")


def _stateful(param: str, kept: str | None = None) -> BadRequest:
    named = f"'{param}'" if kept is None else f"'{kept}' in '{param}'"
    return BadRequest(
        f"{named} asks for what is kept or done on a server, and none is kept here: send the whole "
        "conversation with each request.",
        param,
    )


def prompts_of(body: bytes) -> list[msgspec.Raw]:
    """The prompts of a completions request that parse_request accepted, as the client wrote them.

    One that names no prompt, like one to another endpoint, has one empty prompt.
    """
    return _prompts(decode_classic(body).prompt)


def _prompts(prompt: msgspec.Raw) -> list[msgspec.Raw]:
    """A prompt is a text, or token ids, or both mixed; several are a list of such prompts."""
    text = bytes(prompt)
    if _SEVERAL_PROMPTS.match(text) is None:
        return [prompt]
    items = _decode_list(text)
    if items and all(bytes(memoryview(item)[:1]) in (b'"', b"[", b"{") for item in items):
        return items
    return [prompt]


# What is put in front of the fields of a stream, by the counts that the engine can send on its way.
_IN_FRONT: dict[RunningCounts, bytes] = {
    None: b'"stream_options":{"include_usage":true},',
    "timings": b'"stream_options":{"include_usage":true},"timings_per_token":true,',
    "usage": b'"stream_options":{"include_usage":true,"continuous_usage_stats":true},',
}
_TIMINGS = b'"timings_per_token":true,'
_NO_STORE = b'"store":false,'


def engine_body(
    request: InferenceRequest, body: bytes, *, model: str | None, running_counts: RunningCounts,
    salt: str = "",
) -> bytes:
    """The body as the engine gets it: its own model name (None keeps the client's), for a stream
    the final usage and running counts asked for, and nothing to be stored. With `salt` the engine
    keeps what it computes apart from what it has of other tenants, whatever the client says.

    `request` is what parse_request made of `body`, a JSON object with at least one field, so that
    more fields and a comma may follow its first brace. A name given twice goes on as it came where
    fields are only added: all engines take the last, as this gateway does.
    """
    if model is None:
        more = _in_front(request, running_counts)
        if salt and more is not None:
            more = None if request.own_salt is not None else (
                b'"cache_salt":"' + salt.encode() + b'",' + more
            )
        if more == b"":
            return body
        if more is not None:
            at = body.find(b"{") + 1
            return b"".join((body[:at], more, memoryview(body)[at:]))
    if request.endpoint in ("responses", "messages"):
        return _rewrite_stateless(request, body, model, running_counts, salt)
    return rewrite(
        body, model=model, stream=request.stream, running_counts=running_counts, salt=salt
    )


def _in_front(request: InferenceRequest, running_counts: RunningCounts) -> bytes | None:
    """Fields to add to the client's; None when one of its own would have to be changed."""
    endpoint, tells = request.endpoint, request.tells
    if endpoint == "messages":
        return b""
    timings = request.stream and running_counts == "timings"
    if endpoint == "responses":
        return None if tells else _NO_STORE + _TIMINGS if timings else _NO_STORE
    if not request.stream:
        return b""
    if not tells:
        return _IN_FRONT[running_counts]
    if not request.wants_usage or running_counts == "usage":
        return None
    if not timings:
        return b""
    return None if "timings_per_token" in tells else _TIMINGS


def _rewrite_stateless(
    request: InferenceRequest, body: bytes, model: str | None, running_counts: RunningCounts,
    salt: str,
) -> bytes:
    fields = _decode_fields(body)
    if salt:
        fields["cache_salt"] = msgspec.Raw(_encode(salt))
    if model is not None:
        fields["model"] = msgspec.Raw(_encode(model))
    if request.endpoint == "responses":
        fields["store"] = _FALSE
        if request.stream and running_counts == "timings":
            fields["timings_per_token"] = _TRUE
    return _encode(fields)


def rewrite(
    body: bytes, *, model: str | None, stream: bool, running_counts: RunningCounts = None,
    salt: str = "",
) -> bytes:
    """The body of one of OpenAI's older endpoints with single fields replaced, as `engine_body`
    needs it. A name given twice counts once, as last."""
    if model is None and not stream and not salt:
        return body
    fields = _decode_fields(body)
    if salt:
        fields["cache_salt"] = msgspec.Raw(_encode(salt))
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
