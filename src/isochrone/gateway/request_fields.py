"""The fields that the gateway reads of a request's body, and nothing else of it.

Apart from `request`, because msgspec reads the types of a class that it decodes, and classes that
are compiled do not keep theirs.
"""

import msgspec

ABSENT = msgspec.Raw(b"")


class StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class ClassicBody(msgspec.Struct, gc=False):
    """Of chat completions, completions and embeddings."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    service_tier: str | None = None
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    timings_per_token: msgspec.Raw = ABSENT
    store: bool | None = None
    tools: msgspec.Raw = ABSENT
    prompt_cache_key: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT


class ResponsesBody(msgspec.Struct, gc=False):
    model: str
    stream: bool | None = None
    max_output_tokens: int | None = None
    service_tier: str | None = None
    instructions: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    timings_per_token: msgspec.Raw = ABSENT
    store: bool | msgspec.UnsetType | None = msgspec.UNSET
    background: bool | None = None
    previous_response_id: msgspec.Raw = ABSENT
    conversation: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    prompt_cache_key: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT


class MessagesBody(msgspec.Struct, gc=False):
    model: str
    stream: bool | None = None
    max_tokens: int | None = None
    service_tier: str | None = None
    system: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    container: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT


decode_classic = msgspec.json.Decoder(ClassicBody).decode
decode_responses = msgspec.json.Decoder(ResponsesBody).decode
decode_messages = msgspec.json.Decoder(MessagesBody).decode
_decode_any = msgspec.json.Decoder().decode


def state_named(content: msgspec.Raw) -> str | None:
    """What of some content, or of tools, lies on a server and not in the request: the name of the
    first such thing. None for what is absent or no JSON."""
    try:
        waiting = [] if content is ABSENT else [_decode_any(content)]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += reversed(found)
        elif isinstance(found, dict):
            kind = found.get("type")
            if isinstance(kind, str) and kind in _KEPT_KINDS:
                return kind
            for name in _KEPT_NAMES:
                if found.get(name) is not None:
                    return name
            waiting += reversed(found.values())
    return None


# Items and tools of hosted services, and fields that name what is kept.
_KEPT_KINDS = frozenset((
    "item_reference", "file_search", "code_interpreter", "image_generation", "computer_use_preview",
    "web_search", "web_search_preview", "mcp", "container_upload",
))
_KEPT_NAMES = ("file_id", "vector_store_ids", "container_id")
