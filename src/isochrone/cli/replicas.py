"""`isochrone replica`: restart one replica."""

from typing import Annotated

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud

app = typer.Typer(help="Replicas: restart one.", no_args_is_help=True)


@app.callback()
def replicas() -> None:
    """Restart replicas; `isochrone status` lists them."""


@app.command(epilog="Example: `isochrone replica restart sydney/tiny-fable/0`")
def restart(
    replica: Annotated[str, typer.Argument(help="Its id, as `isochrone status` shows it.")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restart REPLICA: it takes no new work, finishes what it has, and is started again."""
    from isochrone.cli.show import print_json

    found = find_cloud(state, url, key).api.post("replicas/restart", {"replica": replica})
    if as_json:
        print_json(found)
    else:
        print(f"{replica} restarts (generation {found['generation']} ends)")
