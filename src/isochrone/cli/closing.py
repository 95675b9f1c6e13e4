"""The commands `close` and `reopen`, of what can be closed: projects and organisations."""

from typing import Annotated

import typer

from isochrone.cli.asking import YesOption, make_sure
from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Its id (see `list`).")]


def add_closing(
    app: typer.Typer, group: str, path: str, *, stops: str, closes: str, reopens: str
) -> None:
    """`isochrone GROUP close | reopen ID`, on `path` of the API. `stops` is said before it is done;
    `closes` and `reopens` are the help."""

    @app.command(help=closes, epilog=f"Example: `isochrone {group} close ID --yes`")
    def close(
        id_: IdArgument,
        yes: YesOption = False,
        state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
        as_json: JsonOption = False,
    ) -> None:
        make_sure(f"Close {id_}? {stops}", is_sure=yes)
        turn(id_, "close", state, url, key, as_json)

    @app.command(help=reopens, epilog=f"Example: `isochrone {group} reopen ID`")
    def reopen(
        id_: IdArgument,
        state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
        as_json: JsonOption = False,
    ) -> None:
        turn(id_, "reopen", state, url, key, as_json)

    def turn(
        id_: str, how: str, state: StateOption, url: UrlOption, key: KeyOption, as_json: bool
    ) -> None:
        from isochrone.cli.show import print_json

        done = find_cloud(state, url, key).api.post(f"{path}/{part(id_)}/{how}", None)
        if as_json:
            print_json(done)
        else:
            print(f"{done['id']}  {done['name']}  {'closed' if done['closed_at'] else 'open'}")
