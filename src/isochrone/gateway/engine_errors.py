"""Reads the errors of engines, which have forms of their own, and gives them OpenAI's."""

import msgspec

from isochrone.gateway.replies import error_type

_encode = msgspec.json.encode


class _EngineError(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


# What OpenAI's clients look for, by the type that llama.cpp gives.
_CODES = {"exceed_context_size_error": "context_length_exceeded"}
_engine_error = msgspec.json.Decoder(_EngineErrorBody)


def engine_error_body(body: bytes, status: int) -> bytes:
    """An engine's error in OpenAI's form; as it came where it has that form or is no JSON error."""
    try:
        error = _engine_error.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    if not isinstance(error.code, int):
        return body
    named = error.type or "engine_error"
    return _encode(
        {
            "error": {
                "message": error.message,
                "type": error_type(status),
                "param": error.param,
                "code": _CODES.get(named, named),
            }
        }
    )


class _Said(msgspec.Struct):
    message: str = ""


class _AnyError(msgspec.Struct):
    error: _Said
    type: str | None = None


_decode_any = msgspec.json.Decoder(_AnyError).decode


def foreign_message(body: bytes) -> str | None:
    """What an error says that is not in Anthropic's form; None for one that is, or is no JSON
    error."""
    try:
        said = _decode_any(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if said.type == "error" else said.error.message
