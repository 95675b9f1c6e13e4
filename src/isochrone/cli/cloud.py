"""Finds the cloud that a command talks to: `--url` and `--key`, their variables, or up.json.

The only file of the command line that reads the environment. Without `--url` the local cloud of
`--state` is used: its up.json names the addresses and both keys.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from isochrone.core.errors import InvalidInput, Unavailable
from isochrone.wiring.control_api import ControlApi
from isochrone.wiring.home import expanded
from isochrone.wiring.local.place import default_folder

URL, KEY, ENDPOINT = "ISOCHRONE_URL", "ISOCHRONE_KEY", "ISOCHRONE_ENDPOINT"

StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="State folder of the local cloud (as of `up`)."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help=f"Control API instead of a local cloud; or ${URL}."),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", metavar="KEY", help=f"Key to use; or ${KEY}.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """Where a cloud is and with which keys: `key` for control, `api_key` for gateways.
    `up` is the content of up.json, None for a cloud named by URL."""

    control: str
    key: str
    api_key: str
    up: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        for key in (self.key, self.api_key):
            if not (key.isascii() and key.isprintable()):  # else a complaint of it would show it
                raise InvalidInput(["the key holds what no key does; is there a line end in it?"])

    @property
    def api(self) -> ControlApi:
        return ControlApi(self.control, self.key)

    def endpoints(self) -> list[tuple[str, str]]:
        """Name and /v1 URL of every site's gateway."""
        if self.up is not None:
            return [(one["name"], one["endpoint"]) for one in self.up["sites"]]
        sites = self.api.items("sites")
        return [(one["name"], one["public_url"]) for one in sites if one["public_url"]]

    def endpoint(self, site: str | None) -> str:
        """The /v1 URL of the gateway at `site`, or of the first site."""
        places = self.endpoints()
        for name, endpoint in places:
            if site in (None, name):
                return endpoint
        known = ", ".join(name for name, _ in places) or "none"
        raise InvalidInput([f"there is no site {site!r}; known sites: {known}"])


def state_folder(state: Path | None) -> Path:
    """`--state`, or the folder that `up` uses by default."""
    return expanded(state) if state is not None else default_folder(os.environ)


def find_cloud(state: Path | None, url: str | None, key: str | None) -> Cloud:
    """The cloud that the options name. Raises InvalidInput or Unavailable with what to do."""
    if state is None:
        url = url or os.environ.get(URL)
    key = key or os.environ.get(KEY)
    if url is not None:
        if state is not None:
            raise InvalidInput(["--state and --url name two clouds; give one of them"])
        if key is None:
            raise InvalidInput([f"--url needs a key: give --key, or set {KEY}"])
        return Cloud(control=url, key=key, api_key=key, up=None)
    up = _read_up(state_folder(state))
    return Cloud(
        control=up["control"], key=key or up["admin_key"], api_key=key or up["api_key"], up=up
    )


def part(name: str) -> str:
    """`name` as one part of a URL's path, whatever it holds. Raises InvalidInput when empty."""
    if not name:
        raise InvalidInput(["the name is empty; expected an id or a name"])
    return quote(name, safe="", errors="surrogateescape")


def _read_up(folder: Path) -> Mapping[str, Any]:
    path = folder / "up.json"
    try:
        up = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Unavailable(
            f"no cloud is up in {folder}; start one with `isochrone up`, or name one with "
            "--state, or --url and --key"
        ) from error
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise InvalidInput([f"{path} is no JSON; start `isochrone up` again"]) from error
    if not isinstance(up, dict) or not up.keys() >= {"control", "admin_key", "api_key", "sites"}:
        raise InvalidInput([f"{path} was not written by `isochrone up`; start it again"])
    return up
