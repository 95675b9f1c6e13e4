"""Parses a world file (TOML) into a `World`, or lists every problem of the file at once.

Only the text is judged here: whether a model file exists, or an upstream answers, is found out by
those who open it. Each problem says where it is and what was expected.
"""

import tomllib
from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from isochrone.adapters.packaged import bundled_model, load_blocs, load_hardware
from isochrone.core.errors import InvalidInput, NotFound
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.model import Deployment, EngineSpec, ModelKind
from isochrone.core.world.site import Hardware
from isochrone.core.world.world import World, WorldLink, WorldModel, WorldSite
from isochrone.gateway.target import place_of
from isochrone.wiring.admission_table import read_admission
from isochrone.wiring.toml_table import Problems, TomlTable

BUNDLED = "bundled:"

SITE_NAME = r"[a-z0-9-]{1,32}"
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
UPSTREAM_URL = r"https?://[^\s/?#]+(/[^\s?#]*)?/v1"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"

MOST_REPLICAS = 64
MOST_SLOTS = 1024
MOST_THREADS = 1024
MOST_MACHINES = 1_000_000
LEAST_CONTEXT_TOKENS = 16
MOST_CONTEXT_TOKENS = 10_000_000
LONGEST_RTT_MS = 10_000.0

# Keys of a deployment that mean something to one kind of engine only.
KEYS_OF_ENGINE = {
    "llamacpp": ("threads", "shares_cache"),
    "openai": ("url", "upstream_model", "key_file", "key_env"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the tables of sites may refer to."""

    countries: frozenset[str]
    hardware: tuple[str, ...]
    models: Mapping[ModelName, WorldModel]
    folder: Path | None


def parse_world(text: str, *, source: str, folder: Path | None = None) -> World:
    """Parse a world file; `source` names it in messages. Raises InvalidInput with all problems.

    Relative paths in the file are relative to `folder`; without one they stay as written.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number may be too long for Python
        raise InvalidInput([f"{source}: not a TOML file: {error}"]) from error
    problems = Problems(source)
    top = TomlTable("", content, problems)
    emulate_distance = top.boolean("emulate_distance", default=False)
    models = [_model(each, folder) for each in top.tables("model", name_key="name")]
    known = _Known(
        countries=load_blocs().countries,
        hardware=tuple(load_hardware()),
        models={model.name: model for model in models},
        folder=folder,
    )
    sites = [_site(each, known) for each in top.tables("site", name_key="name")]
    names = {site.name for site in sites}
    links = [_link(each, names, known.countries) for each in top.tables("link")]
    top.finish()
    if not content.get("site"):
        problems.add("", "there is no [[site]]; a world has at least one site")
    _once("model", [model.name for model in models], problems)
    _once("site", [site.name for site in sites], problems)
    _once("link between", [" and ".join(sorted(link.between)) for link in links if link], problems)
    problems.raise_if_any()
    return World(
        emulate_distance=emulate_distance,
        models=tuple(models),
        sites=tuple(sites),
        links=tuple(link for link in links if link is not None),
    )


def _once(what: str, names: Sequence[str], problems: Problems) -> None:
    for name, count in Counter(names).items():
        if count > 1 and name:
            problems.add("", f'{what} "{name}" is described {count} times; expected once')


def _model(table: TomlTable, folder: Path | None) -> WorldModel:
    name = table.need_text(
        "name",
        pattern=MODEL_NAME,
        expected="1 to 128 letters, digits or any of . _ : / @ + -, a letter or digit first",
    )
    named_kind = table.choice("kind", ("chat", "embedding"), default="chat")
    kind: ModelKind = "embedding" if named_kind == "embedding" else "chat"
    file = table.text("file", expected=f"a path to a GGUF file or {BUNDLED}NAME")
    if file is not None and file.startswith(BUNDLED):
        try:
            bundled_model(file.removeprefix(BUNDLED))
        except NotFound as error:
            table.problem(f'file is "{file}": {error.message}')
    elif file is not None:
        file = _from_folder(file, folder)
    context = table.integer("context", LEAST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS)
    revision = table.text("revision")
    table.finish()
    return WorldModel(
        name=ModelName(name), kind=kind, file=file, revision=revision, context_tokens=context
    )


def _site(table: TomlTable, known: _Known) -> WorldSite:
    name = SiteName(
        table.need_text(
            "name", pattern=SITE_NAME, expected="1 to 32 lower-case letters, digits or hyphens"
        )
    )
    country = country_of(table, known.countries)
    operator = table.text("operator")
    parent = table.text("parent")
    latitude_deg = table.number("latitude", -90, 90)
    longitude_deg = table.number("longitude", -180, 180)
    hardware = tuple(_hardware(each, known) for each in table.tables("hardware"))
    deployments = [
        _deployment(each, name, known) for each in table.tables("deployment", name_key="model")
    ]
    for model, count in Counter(each.model for each in deployments).items():
        if count > 1 and model:
            table.problem(f'model "{model}" is deployed {count} times; expected once')
    elsewhere = table.boolean("elsewhere", default=False)
    table.finish()
    return WorldSite(
        name=name,
        country=country,
        operator=operator,
        parent=parent,
        latitude_deg=latitude_deg,
        longitude_deg=longitude_deg,
        hardware=hardware,
        deployments=tuple(deployments),
        elsewhere=elsewhere,
    )


def country_of(table: TomlTable, countries: Container[str]) -> str | None:
    """The country that a site states; an unknown one is a problem."""
    expected = 'an ISO 3166-1 alpha-2 code such as "DE"'
    country = table.text("country", expected=expected)
    if country is None or country in countries:
        return country
    hint = f'; did you mean "{country.upper()}"?' if country.upper() in countries else ""
    table.problem(f'country is "{country}", which is no country; expected {expected}{hint}')
    return None


def _hardware(table: TomlTable, known: _Known) -> Hardware:
    kind = table.need_text("kind", expected="cpu or a name of the packaged hardware table")
    check_hardware(table, "kind", kind, known.hardware)
    count = table.integer("count", 1, MOST_MACHINES, default=1)
    table.finish()
    return Hardware(kind=kind, count=count)


def check_hardware(table: TomlTable, key: str, kind: str, known: Collection[str]) -> None:
    """Note a kind of hardware that the packaged table does not have."""
    if kind and kind not in known:
        family = [each for each in known if each.lower().startswith(kind.lower())]
        listed = ", ".join(family or known)
        table.problem(f'{key} is "{kind}", which is not in the hardware table; known: {listed}')


def _deployment(table: TomlTable, site: SiteName, known: _Known) -> Deployment:
    name = ModelName(table.need_text("model", expected="the name of a [[model]]"))
    model = known.models.get(name)
    if name and model is None:
        close = get_close_matches(name, known.models, n=1)
        hint = f'did you mean "{close[0]}"?' if close else "add a [[model]] with this name"
        table.problem(f'model "{name}" is not described; {hint}')
    replicas = table.integer("replicas", 0, MOST_REPLICAS, default=1)
    engine = _engine(table, model, known.folder)
    admission = read_admission(table)
    table.finish()
    return Deployment(
        site=site,
        model=name,
        replicas=replicas,
        engine=engine,
        context_tokens=model.context_tokens if model is not None else LEAST_CONTEXT_TOKENS,
        admission=admission,
    )


def upstream_url(table: TomlTable) -> str | None:
    """The `url` of an upstream, None when it is absent or nobody could ask there."""
    url = table.text(
        "url", pattern=UPSTREAM_URL, expected='a URL that ends in /v1, as "https://host/v1"'
    )
    if url is None:
        return None
    try:
        place_of(url)
    except ValueError as error:
        table.problem(f'url is "{url}", where nothing can be asked: {error}')
        return None
    if "@" in urlsplit(url).netloc:
        table.problem("url names a user, which is not sent; state key_env or key_file")
        return None
    return url


def _engine(table: TomlTable, model: WorldModel | None, folder: Path | None) -> EngineSpec:
    kind = table.choice("engine", tuple(KEYS_OF_ENGINE))
    for other, keys in KEYS_OF_ENGINE.items():
        for key in keys:
            if kind not in (None, other) and table.has(key):
                table.problem(f"{key} belongs to engine {other}, not to {kind}; remove it")
    slots = table.integer("slots", 1, MOST_SLOTS, default=4)
    threads = table.integer("threads", 1, MOST_THREADS, default=1)
    shares_cache = table.boolean("shares_cache", default=False)
    url = upstream_url(table)
    upstream_model = table.text("upstream_model")
    credential = credential_of(table, folder)
    embeddings = model is not None and model.kind == "embedding"
    if kind == "openai":
        if not table.has("url"):
            table.problem("url is missing; engine openai needs the upstream's URL, ending in /v1")
        return EngineSpec(
            kind="openai",
            source=url or "",
            upstream_model=upstream_model or (model.name if model is not None else None),
            credential=credential,
            slots=slots,
            embeddings=embeddings,
            slots_stated=table.has("slots"),
        )
    if kind == "llamacpp" and model is not None and model.file is None:
        table.problem(f'engine llamacpp needs a file, and model "{model.name}" names none')
    return EngineSpec(
        kind="llamacpp",
        source=(model.file if model is not None else None) or "",
        slots=slots,
        threads=threads,
        embeddings=embeddings,
        shares_cache=shares_cache,
    )


def credential_of(table: TomlTable, folder: Path | None) -> str | None:
    """Where the key of an upstream is: `file:PATH`, `env:NAME` or None."""
    file = table.text("key_file", expected="a path to a file that holds the key")
    variable = table.text(
        "key_env", pattern=VARIABLE, expected="the name of an environment variable"
    )
    if file is not None and variable is not None:
        table.problem("key_file and key_env are both given; keep one")
    if file is not None:
        return f"file:{_from_folder(file, folder)}"
    return None if variable is None else f"env:{variable}"


def _link(
    table: TomlTable, sites: set[SiteName], countries: Container[str]
) -> WorldLink | None:
    between = table.texts("between", 2)
    rtt_ms = table.number("rtt_ms", 0, LONGEST_RTT_MS)
    via = countries_passed(table, countries)
    table.finish()
    if not between:
        return None
    for name in dict.fromkeys(between):
        if name not in sites:
            close = get_close_matches(name, sites, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            table.problem(f'between names site "{name}", which is not described{hint}')
    if between[0] == between[1]:
        table.problem(f'between names "{between[0]}" twice; a link joins two sites')
    return WorldLink(between=(SiteName(between[0]), SiteName(between[1])), rtt_ms=rtt_ms, via=via)


def countries_passed(table: TomlTable, countries: Container[str]) -> tuple[str, ...] | None:
    """The countries that a link passes, as its table states them; None where it states none."""
    via = table.names("via", default=())
    for country in via:
        if country not in countries:
            table.problem(
                f'via names "{country}", which is no country; expected ISO 3166-1 alpha-2 codes'
            )
    return tuple(sorted(set(via))) or None


def _from_folder(path: str, folder: Path | None) -> str:
    return path if folder is None else str(folder / path)
