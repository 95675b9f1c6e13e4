"""A page that lists the operations of the API; made from its OpenAPI document, loads nothing."""

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;"
    "color:#1a1a1a;background:#fff}code{font:13px/1.5 ui-monospace,monospace}"
    "td{padding:.2rem 1rem .2rem 0;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}a{color:#8ab4f8}}"
)


def install(app: FastAPI, path: str) -> None:
    """Serve the page at `path`."""

    async def page() -> HTMLResponse:
        return HTMLResponse(render(app.openapi(), app.openapi_url or ""))

    app.add_api_route(path, page, include_in_schema=False)


def render(document: dict[str, Any], url: str) -> str:
    """HTML with one row an operation."""
    rows = "".join(
        f"<tr><td><code>{escape(method.upper())}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('description', ''))}</td></tr>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    title = escape(document["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{escape(document['info'].get('description', ''))}</p>"
        f"<p>The full description for programs: <a href='{escape(url)}'>{escape(url)}</a></p>"
        f"<table>{rows}</table></html>"
    )
