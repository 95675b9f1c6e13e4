"""Decides which world `up` runs: the packaged one, one with the user's model, or the user's file.

Everything that can be judged before a process starts is judged here: the world file, and that every
named model file exists and is a GGUF file.
"""

import re
from dataclasses import replace
from pathlib import Path

from isochrone.adapters.packaged import DATA, bundled_model, default_world
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import ModelName
from isochrone.core.world.world import World, WorldModel, WorldSite
from isochrone.wiring.home import expanded
from isochrone.wiring.world_file import BUNDLED, parse_world

GGUF_MAGIC = b"GGUF"
_ODD = re.compile(r"[^A-Za-z0-9._:@+-]+")


def choose_world(sites: Path | None, model: str | None) -> World:
    """The world of `--sites` or `--model`, or the packaged one. Raises InvalidInput."""
    if sites is not None and model is not None:
        raise InvalidInput(
            ["--model changes the default world and --sites names another; give one of them "
             "(a world file names its models itself)"]
        )
    if sites is not None:
        try:
            text = sites.read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidInput([f"--sites {sites}: cannot be read: {error.strerror}"]) from error
        except UnicodeDecodeError as error:
            raise InvalidInput([f"--sites {sites}: is not UTF-8 text"]) from error
        world = parse_world(text, source=str(sites), folder=sites.absolute().parent)
    else:
        world = parse_world(default_world(), source="the packaged world")
        if model is not None:
            world = _with_model(world, model)
    if all(site.elsewhere for site in world.sites):
        raise InvalidInput(["every site is elsewhere; `up` runs at least one site itself"])
    problems = [problem for one in world.models if (problem := _file_problem(one))]
    if problems:
        raise InvalidInput(problems)
    return world


def _with_model(world: World, wanted: str) -> World:
    """The default world serving the model `wanted` in place of its own."""
    own = world.models[0]
    if wanted == own.name:
        return world
    file = _model_file(wanted)
    stem = _ODD.sub("-", Path(wanted).name.removesuffix(".gguf")).strip("-.") or "model"
    model = replace(own, name=ModelName(stem), file=file, revision=None)
    return replace(world, models=(model,), sites=tuple(_serving(s, model) for s in world.sites))


def _model_file(wanted: str) -> str:
    """`bundled:NAME` or the absolute path that `--model` means. A file wins over a name."""
    path = expanded(Path(wanted))
    if path.exists():
        return str(path.absolute())
    names = sorted(file.name for file in (DATA / "models").glob("*.gguf"))
    for name in names:
        if wanted in (name, name.removesuffix(".gguf")):
            return f"{BUNDLED}{name}"
    raise InvalidInput(
        [f"--model {wanted}: there is no such file, and no bundled model of this name; "
         f"bundled: {', '.join(names)}"]
    )


def _serving(site: WorldSite, model: WorldModel) -> WorldSite:
    deployments = tuple(
        replace(
            one, model=model.name, engine=replace(one.engine, source=model.file or ""),
            context_tokens=model.context_tokens,
        )
        for one in site.deployments
    )
    return replace(site, deployments=deployments)


def _file_problem(model: WorldModel) -> str | None:
    """What is wrong with a model's file, None when it starts as a GGUF file does."""
    if model.file is None:
        return None
    if model.file.startswith(BUNDLED):
        path = bundled_model(model.file.removeprefix(BUNDLED))
    else:
        path = Path(model.file)
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        return f"model {model.name}: {path} cannot be read: {error.strerror}; name a GGUF file"
    if magic != GGUF_MAGIC:
        return f"model {model.name}: {path} is no GGUF file; convert it with llama.cpp's tools"
    return None
