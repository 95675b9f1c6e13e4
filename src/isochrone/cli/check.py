"""`isochrone check`: reads a world or settings file as its process would, and starts nothing."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isochrone.cli.cloud import JsonOption
from isochrone.core.errors import InvalidInput

if TYPE_CHECKING:
    from isochrone.wiring.alone_file import AloneFile

Kind = Literal["standalone", "dns", "world", "control", "gateway", "agent"]


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone check world.toml` · `isochrone check gateway.toml` · "
        "`isochrone check x.toml --as agent`"
    )(check)


def check(
    file: Annotated[Path, typer.Argument(help="A file of any of the kinds of --as.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="standalone, dns, world, control, gateway or agent. [default: by its keys]",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List every problem of a file, or print the effective settings with secrets masked."""
    from isochrone.cli.show import print_json

    try:
        text = file.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise InvalidInput([f"{file}: cannot be read: {error.strerror}"]) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput([f"{file}: not valid TOML: {error}"]) from error
    found = _kind(file, kind, set(document))
    if found == "standalone":
        shown = _standalone(file)
    elif found == "dns":
        shown = _dns(file)
    else:
        shown = _world(file, text) if found == "world" else _process(file, found)
    if as_json:
        print_json({"file": str(file), "kind": found, "problems": []})
        return
    print(shown, end="")
    print(f"# {file}: a good {found} file")


def _kind(file: Path, wanted: str | None, keys: set[str]) -> Kind:
    kinds: tuple[Kind, ...] = ("standalone", "dns", "world", "control", "gateway", "agent")
    if wanted is not None:
        for kind in kinds:
            if kind == wanted:
                return kind
        raise InvalidInput([f"--as {wanted}: expected one of {', '.join(kinds)}"])
    marks: dict[Kind, set[str]] = {
        "standalone": {"gateway", "key", "policy"},
        "dns": {"dns", "name_server", "subnet", "unknown"},
        "world": {"site", "model", "link", "emulate_distance"},
        "control": {"database", "nats_secrets", "signing_key"},
        "gateway": {"journal", "max_body_bytes", "max_head_bytes"},
        "agent": {"logs", "digest_interval_s", "probe_interval_s"},
    }
    for kind in kinds:
        if marks[kind] & keys:
            return kind
    raise InvalidInput(
        [f"{file}: its keys fit no known file; say what it is with --as {'|'.join(kinds)}"]
    )


def _world(file: Path, text: str) -> str:
    from isochrone.wiring.world_file import parse_world

    world = parse_world(text, source=str(file))
    lines = [
        f"# {len(world.models)} models, {len(world.sites)} sites, {len(world.links)} stated links, "
        f"distance {'emulated' if world.emulate_distance else 'real'}\n"
    ]
    for site in world.sites:
        runs = ", ".join(f"{one.replicas} x {one.model}" for one in site.deployments) or "nothing"
        lines.append(f"# {site.name} ({site.country or 'no country'}) runs {runs}\n")
    return "".join(lines)


def _standalone(file: Path) -> str:
    from isochrone.wiring.alone_file import load_alone
    from isochrone.wiring.settings import render_masked

    found = load_alone(file)
    notes = _notes_on(found)
    lines = [
        f"# gateway of site {found.site}, alone: {len(found.models)} models, "
        f"{len(found.sites)} sites, {len(found.policies)} policies, {len(found.keys)} keys\n"
    ]
    for each in found.sites:
        asked = "by its gateway" if each.is_peer else f"by {len(each.upstreams)} upstreams"
        serves = f"{', '.join(each.models)} {asked}" if each.models else "nothing"
        lines.append(f"# {each.site.name} ({each.site.country or 'no country'}) serves {serves}\n")
    lines += [f"# not here yet: {note}\n" for note in notes]
    return "".join(lines) + render_masked(found.settings)


def _dns(file: Path) -> str:
    from isochrone.wiring.dns_file import load_dns
    from isochrone.wiring.settings import render_masked

    found = load_dns(file, serial=1)
    told = found.told
    sites = "of the view" if told.estate is None else f"{len(told.estate.sites)} of the file"
    return (
        f"# name server of {found.settings.zone}: sites {sites}, {len(told.zone.names)} names "
        f"beside countries and blocs, {told.zone.places.count} subnets, "
        f"{found.skipped} lines of geofeeds skipped\n"
    ) + render_masked(found.settings)


def _notes_on(found: "AloneFile") -> list[str]:
    """What must be in the environment when the gateway starts. Raises InvalidInput for files that
    are not there."""
    from isochrone.adapters.credentials import read_credential
    from isochrone.adapters.network.tls import certificate_of
    from isochrone.core.errors import Unavailable

    problems: list[str] = []
    notes: list[str] = []
    for site in found.sites:
        for upstream in site.upstreams:
            try:
                read_credential(upstream.credential)
            except Unavailable as error:
                unset = (upstream.credential or "").startswith("env:")
                (notes if unset else problems).append(f"upstream {upstream.url}: {error.message}")
    settings = found.settings
    certificate_of(settings.tls_certificate, settings.tls_key)
    problems += [
        f"{name}: {path} is not there"
        for name in ("tls_certificate", "tls_key", "tls_ca")
        if (path := getattr(settings, name)) is not None and not path.is_file()
    ]
    if problems:
        raise InvalidInput(problems)
    return notes


def _process(file: Path, kind: Kind) -> str:
    from isochrone.agent.settings import AgentSettings
    from isochrone.control.settings import ControlSettings
    from isochrone.wiring.gateway_settings import load_gateway
    from isochrone.wiring.settings import load, render_masked

    if kind == "control":
        return render_masked(load(file, ControlSettings))
    if kind == "gateway":
        return render_masked(load_gateway(file))
    return render_masked(load(file, AgentSettings))
