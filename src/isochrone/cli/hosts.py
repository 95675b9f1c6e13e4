"""`isochrone hosts`: the machines of the cloud, and how much of what should run there runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud

GIB = 1024**3


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone hosts` · `isochrone hosts sydney` · `isochrone hosts --json`"
    )(hosts)


def hosts(
    site: Annotated[str | None, typer.Argument(help="Only those of this site.")] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List hosts with their hardware and replicas, as their agents said last. For operators.

    Rows with the same machine are one machine, as all are under `isochrone up`.
    """
    from isochrone.cli.show import print_json, print_table

    api = find_cloud(state, url, key).api
    found = list(api.items("hosts", {"site": site} if site else None))
    if as_json:
        print_json(found)
        return
    stopped = {each["name"] for each in api.items("sites") if each["stopped"]}
    print_table(
        ("site", "host", "health", "ready", "wanted", "running", "waiting", "cores", "memory GiB",
         "GPUs", "machine", "heard s ago"),
        [
            (
                row["site"], row["name"], "stopped" if row["site"] in stopped else row["health"],
                row["ready"], row["replicas_wanted"],
                row["running"], row["waiting"], row["cores"], _gib(row["memory_bytes"]),
                _gpus(row["gpus"]), row["machine"], row["digest_age_ms"] / 1000,
            )
            for row in found
        ],
        empty="no agent has told its host yet; agents do within a second of their start",
    )


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / GIB


def _gpus(gpus: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many of each kind."""
    kinds = Counter(str(each["kind"]) for each in gpus)
    return [f"{count} x {kind}" for kind, count in kinds.items()]
