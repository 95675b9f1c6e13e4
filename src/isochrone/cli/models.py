"""`isochrone models`: what may be asked for, and where it is served."""

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: `isochrone models` · `isochrone models --json`")(models)


def models(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models of the cloud."""
    from isochrone.cli.show import print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("models"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("model", "kind", "context", "revision", "sites"),
        [
            (
                row["name"], row["kind"], row["context_tokens"],
                (row.get("revision") or "")[:12], row.get("sites"),
            )
            for row in rows
        ],
    )
