"""What is served, what is refused because it cannot be metered, and errors in each API's form."""

from collections.abc import Collection, Iterable

import msgspec

from isochrone.core.ids import ModelName
from isochrone.core.metering.event import Endpoint
from isochrone.core.world.model import ALL_ENDPOINTS, COMMON_ENDPOINTS
from isochrone.gateway.engine_errors import engine_error_body, foreign_message
from isochrone.gateway.replies import (
    Refusal,
    error_body,
    error_event,
)

PATHS: dict[Endpoint, str] = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
ROUTES: dict[str, Endpoint] = {path: endpoint for endpoint, path in PATHS.items()}

# Routes of OpenAI, Anthropic and the usual engines (llama.cpp, vLLM, SGLang, TGI, Ollama) that use
# an engine, or tell of one, without usage that could be metered; with whatever is below them.
UNMETERED = (
    "/v1/assistants", "/v1/audio", "/v1/batches", "/v1/chat/completions/batch", "/v1/classify",
    "/v1/containers", "/v1/conversations", "/v1/detokenize", "/v1/evals", "/v1/files",
    "/v1/fine_tuning", "/v1/images", "/v1/infill", "/v1/load_lora_adapter", "/v1/loads",
    "/v1/messages/batches", "/v1/messages/count_tokens", "/v1/moderations", "/v1/pooling",
    "/v1/realtime", "/v1/rerank", "/v1/reranking", "/v1/responses/", "/v1/score",
    "/v1/threads", "/v1/tokenize", "/v1/unload_lora_adapter", "/v1/uploads", "/v1/vector_stores",
    "/v1/videos", "/v1beta", "/v2/rerank", "/api", "/apply-template", "/chat", "/chat_tokenize",
    "/classify", "/completion", "/completions", "/cors-proxy", "/detokenize", "/embedding",
    "/embeddings", "/encode", "/flush_cache", "/generate", "/generate_stream", "/get_model_info",
    "/get_server_info", "/health_generate", "/inference", "/infill", "/info", "/invocations",
    "/is_sleeping", "/load", "/lora-adapters", "/metrics", "/models", "/ping", "/pooling", "/props",
    "/rerank", "/reranking", "/reset_prefix_cache", "/responses", "/score", "/server_info",
    "/sleep", "/slots", "/start_profile", "/stop_profile", "/tokenize", "/tokenizer_info",
    "/update_weights_from_disk", "/version", "/wake_up",
)


def unknown_path(method: str, path: str) -> Refusal:
    """For every path that is not served; says why where an engine would have it."""
    served = ", ".join(PATHS.values())
    text = f"Nothing is served at {method} {path}."
    if any(path == route or path.startswith(route.rstrip("/") + "/") for route in UNMETERED):
        text = f"{method} {path} is not metered, so it is not served here; served are {served}."
    return Refusal(status=404, reason="unknown_path", message=text)


def endpoint_refusal(
    endpoint: Endpoint, model: ModelName, had: Iterable[Collection[Endpoint]]
) -> Refusal | None:
    """Why no engine of the model can answer at this endpoint; None when one can.

    `had` are the endpoints of each of its replicas, or of each site's; where none is known, another
    rule has to say so.
    """
    if endpoint in COMMON_ENDPOINTS:
        return None
    known = [set(each) for each in had]
    if not known or any(endpoint in each for each in known):
        return None
    others = set().union(*known)
    paths = ", ".join(PATHS[each] for each in ALL_ENDPOINTS if each in others) or "nothing"
    return Refusal(
        status=404, reason="endpoint_not_served", param="model",
        message=f"No engine of the model '{model}' has {PATHS[endpoint]}; they have {paths}.",
    )


# -- errors in the form that each API's clients understand -----------------------------------------

_encode = msgspec.json.encode
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def anthropic_type(status: int) -> str:
    """Anthropic's error type for a status."""
    known = _ANTHROPIC_TYPES.get(status)
    if known is not None:
        return known
    return "api_error" if status >= 500 else "invalid_request_error"


def _anthropic_error(status: int, message: str) -> bytes:
    error = {"type": anthropic_type(status), "message": message}
    return _encode({"type": "error", "error": error})


def api_of(path: str) -> Endpoint | None:
    """The endpoint in whose form a refusal at this path is told: what lies below an endpoint of an
    API is part of that API. None for OpenAI's form."""
    return "messages" if path.startswith("/v1/messages/") else ROUTES.get(path)


def error_body_for(endpoint: Endpoint | None, refusal: Refusal) -> bytes:
    """The body of a refusal; `endpoint` None where none was asked for."""
    if endpoint == "messages":
        return _anthropic_error(refusal.status, refusal.message)
    return error_body(refusal)


def engine_error_body_for(endpoint: Endpoint, body: bytes, status: int) -> bytes:
    """An engine's error in the form of the endpoint; as it came where it has it already, or is no
    JSON error."""
    if endpoint != "messages":
        return engine_error_body(body, status)
    message = foreign_message(body)
    return body if message is None else _anthropic_error(status, message)


def error_event_for(endpoint: Endpoint, code: str, message: str) -> bytes:
    """The last event of a stream that cannot go on: an error, and no proper end after it."""
    if endpoint == "messages":
        error = {"type": "api_error", "message": message}
        return b"event: error\ndata: " + _encode({"type": "error", "error": error}) + b"\n\n"
    if endpoint == "responses":
        said = {"type": "error", "code": code, "message": message, "param": None}
        return b"event: error\ndata: " + _encode(said) + b"\n\n"
    return error_event(code, message)
