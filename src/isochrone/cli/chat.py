"""`isochrone chat`: one message to the cloud, the answer as it comes, and where it ran."""

import http.client
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import (
    Cloud,
    JsonOption,
    KeyOption,
    StateOption,
    UrlOption,
    find_cloud,
)
from isochrone.cli.line import MOST
from isochrone.core.errors import Forbidden, InvalidInput, NotFound, Unavailable

TIMEOUT_S = 120.0


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone chat 'Tell me a story about a dragon.'` · "
        "`isochrone chat 'Hello!' --site sydney --key iso_...`"
    )(chat)


def chat(
    message: Annotated[str, typer.Argument(help="What to say.")],
    model: Annotated[str | None, typer.Option(help="Model. [default: the first]")] = None,
    site: Annotated[str | None, typer.Option(help="Site to enter at. [default: the first]")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="A gateway's URL ending in /v1, instead of --site.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Most tokens to answer.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, for the same answer again.")] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one message, stream the answer, and say where it ran."""
    from isochrone.cli.show import print_json

    if endpoint is not None and state is None and url is None and key is not None:
        cloud = Cloud(control="", key=key, api_key=key, up=None)
    else:
        cloud = find_cloud(state, url, key)
    base = endpoint.rstrip("/") if endpoint is not None else cloud.endpoint(site)
    body: dict[str, object] = {
        "model": model or _first_model(base, cloud.api_key),
        "messages": [{"role": "user", "content": message}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= {"max_tokens": max_tokens} if max_tokens is not None else {}
    body |= {"seed": seed} if seed is not None else {}
    answer = _ask(base, cloud.api_key, "POST", "/chat/completions", body)
    text, usage = "", None
    for event in _events(answer):
        usage = event.get("usage") or usage
        for choice in event.get("choices", []):
            piece = choice.get("delta", {}).get("content") or ""
            text += piece
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    where = {
        "request": answer.headers.get("x-isochrone-request"),
        "site": answer.headers.get("x-isochrone-site"),
        "country": answer.headers.get("x-isochrone-country"),
    }
    if as_json:
        print_json({**where, "model": body["model"], "content": text, "usage": usage})
        return
    tokens = f", {usage['completion_tokens']} tokens" if usage else ""
    print(f"\n\nserved at {where['site']} ({where['country']}){tokens}; why:", file=sys.stderr)
    print(f"isochrone explain {where['request']}", file=sys.stderr)


def _first_model(base: str, key: str) -> str:
    answer = _ask(base, key, "GET", "/models", None)
    try:
        models = json.loads(answer.read())["data"]
        return str(models[0]["id"])
    except IndexError as error:
        raise NotFound(
            f"this key may use no model at {base}: its policy allows no site that serves one, or "
            "nothing is ready yet; see `isochrone status`"
        ) from error
    except (ValueError, KeyError, OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{base} did not list its models; is it a gateway?") from error


def _ask(
    base: str, key: str, method: str, path: str, body: object
) -> http.client.HTTPResponse:
    """The answer's head has come and is a success; raises a typed error otherwise."""
    from isochrone.wiring.control_api import connection, reason_of

    link, prefix = connection(base, timeout_s=TIMEOUT_S)
    headers = {
        "authorization": f"Bearer {key}", "content-type": "application/json",
        "x-isochrone-explain": "full",
    }
    payload = None if body is None else json.dumps(body).encode()
    try:
        link.request(method, prefix + path, payload, headers)
        answer = link.getresponse()
        if answer.status < 400:
            return answer
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"gateway at {base} does not answer ({reason_of(error)}); is it up?"
        ) from error
    raise _refusal(answer.status, answer.headers.get("x-isochrone-reason"), content)


def _refusal(status: int, reason: str | None, content: bytes) -> Exception:
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered {status}"
    text = f"{message} [{status}{f', {reason}' if reason else ''}]"
    if status in (400, 413):
        return InvalidInput([text])
    if status in (401, 403):
        return Forbidden(text)
    return NotFound(text) if status == 404 else Unavailable(text)


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Decoded events of a server-sent stream; raises Unavailable when it ends in an error."""
    try:
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                answer.read()  # to the very end: closing earlier looks like leaving
                return
            event = json.loads(data)
            if "error" in event:
                raise Unavailable(f"the stream ended early: {event['error'].get('message')}")
            yield event
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"the stream broke: {error}") from error
    raise Unavailable("the stream ended early, without [DONE]")
