"""Reads the `[[site]]` tables of a gateway that runs alone: places, upstreams, peer gateways."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from isochrone.adapters.engines.counters import FAMILIES, Family
from isochrone.core.estimate.hardware import HardwareTable
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.model import ALL_ENDPOINTS, COMMON_ENDPOINTS, Endpoint, Model
from isochrone.core.world.site import Hardware, Site
from isochrone.core.world.site_policy import SitePolicy
from isochrone.ports.engine import EngineTraits
from isochrone.wiring.admission_table import read_admission
from isochrone.wiring.toml_table import TomlTable
from isochrone.wiring.world_file import (
    LONGEST_RTT_MS,
    MOST_SLOTS,
    SITE_NAME,
    check_hardware,
    countries_passed,
    country_of,
    credential_of,
    upstream_url,
)

OPENAI = "openai"
ENGINES = (OPENAI, *FAMILIES)
HOST_PORT = r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}"
PUBLIC_KEY = r"[0-9a-f]{64}"
DEFAULT_SLOTS = 16
MOST_PEER_SLOTS = 1_000_000
FASTEST_TOK_S = 1e9

RunningCounts = Literal["timings", "usage"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """An engine, or an API, that serves one model. Rates are 0 where the file states none, and
    `slots` is a guess where `slots_stated` is False."""

    model: ModelName
    engine: str
    url: str
    upstream_model: str
    credential: str | None
    slots: int
    slots_stated: bool
    running_counts: RunningCounts
    usage_counts_one_choice: bool
    endpoints: tuple[Endpoint, ...]
    cache_salt: bool
    prefill_tok_s: float
    decode_tok_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AloneSite:
    """One site. `rtt_ms` None: to be estimated from the positions. `peer_models` are served by the
    site's own gateway, `upstreams` are asked directly; a site has the one or the other.
    `peer_slots`: requests at once that the peer's engines take of each model; `peer_endpoints`: the
    APIs that they have. `via`: countries that the way there passes, None where not stated.
    `admission`: how classes share the slots of its upstreams, None for as usual."""

    site: Site
    rtt_ms: float | None
    is_placed: bool
    upstreams: tuple[Upstream, ...]
    peer_models: tuple[ModelName, ...]
    peer_slots: int
    peer_endpoints: tuple[Endpoint, ...]
    via: tuple[str, ...] | None = None
    admission: SitePolicy | None = None

    @property
    def is_peer(self) -> bool:
        return self.site.peer_key is not None

    @property
    def models(self) -> tuple[ModelName, ...]:
        """What the site serves, each once."""
        return tuple(dict.fromkeys((*(each.model for each in self.upstreams), *self.peer_models)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the tables of sites may refer to; `own` is the site of this gateway."""

    own: SiteName
    folder: Path
    countries: frozenset[str]
    hardware: HardwareTable
    models: Mapping[ModelName, Model]


def read_site(table: TomlTable, known: Known) -> AloneSite:
    """Read one [[site]]; problems are noted."""
    name = SiteName(table.need_text(
        "name", pattern=SITE_NAME, expected="1 to 32 lower-case letters, digits or hyphens"
    ))
    country = country_of(table, known.countries)
    operator, parent = table.text("operator"), table.text("parent")
    is_placed = table.has("latitude") and table.has("longitude")
    latitude_deg = table.number("latitude", -90, 90, default=0.0)
    longitude_deg = table.number("longitude", -180, 180, default=0.0)
    rtt_ms = table.number("rtt_ms", 0, LONGEST_RTT_MS, default=0.0)
    if name != known.own and not table.has("rtt_ms") and not is_placed:
        table.problem("rtt_ms is missing; state the round trip from here, or a position")
    hardware = _hardware(table, known)
    host, port, peer_key, serving = _peer(table, known)
    peer_slots = table.integer("slots", 1, MOST_PEER_SLOTS, default=DEFAULT_SLOTS)
    peer_endpoints = _endpoints(table, "endpoints", COMMON_ENDPOINTS)
    upstreams = tuple(
        _upstream(each, known) for each in table.tables("upstream", name_key="model")
    )
    _judge_site(table, name, known, upstreams, peer_key)
    draining = table.boolean("draining", default=False)
    via = countries_passed(table, known.countries)
    admission = read_admission(table)
    table.finish()
    return AloneSite(
        site=Site(
            name=name, country=country, operator=operator, parent=parent,
            latitude_deg=latitude_deg, longitude_deg=longitude_deg, host=host, port=port,
            public_url=f"http://{host}:{port}/v1" if host else "", peer_key=peer_key,
            hardware=hardware, draining=draining,
        ),
        rtt_ms=rtt_ms if table.has("rtt_ms") or name == known.own else None,
        is_placed=is_placed, upstreams=upstreams, peer_models=serving,
        peer_slots=peer_slots, peer_endpoints=peer_endpoints,
        via=via, admission=admission,
    )


def _judge_site(
    table: TomlTable, name: SiteName, known: Known, upstreams: tuple[Upstream, ...],
    peer_key: str | None,
) -> None:
    if peer_key is not None and upstreams:
        table.problem("gateway and [[site.upstream]] are both given; keep one")
    if peer_key is not None and name == known.own:
        table.problem("gateway is given, but this is the site of this gateway; remove it")
    if peer_key is not None and table.has("admission"):
        table.problem("admission is given with gateway; that gateway has its own file for it")
    for (url, model), count in Counter((each.url, each.model) for each in upstreams).items():
        if count > 1 and url:
            table.problem(f'upstream {url} serves "{model}" {count} times; expected once')


def _hardware(table: TomlTable, known: Known) -> tuple[Hardware, ...]:
    kind = table.text("hardware", expected="a name of the packaged hardware table")
    if kind is None:
        return ()
    check_hardware(table, "hardware", kind, known.hardware)
    return (Hardware(kind=kind),)


def _peer(
    table: TomlTable, known: Known
) -> tuple[str, int, str | None, tuple[ModelName, ...]]:
    """(host, port, public key, models) of another gateway; empty ones for a site without."""
    place = table.text("gateway", pattern=HOST_PORT, expected='a place such as "10.0.0.7:4000"')
    key = table.text("peer_key", pattern=PUBLIC_KEY, expected="64 hexadecimal digits")
    serving = tuple(ModelName(each) for each in table.names("serving", default=()))
    for name in serving:
        _known_model(table, "serving", name, known)
    if place is None:
        for wrong in ("peer_key", "serving", "slots", "endpoints"):
            if table.has(wrong):
                table.problem(f"{wrong} is given without gateway; say where the gateway listens")
        return "", 0, None, ()
    if key is None and not table.has("peer_key"):
        table.problem(
            "peer_key is missing; it is printed by `isochrone gateway --new-peer-secret FILE` there"
        )
    host, _, port = place.rpartition(":")
    if not 0 < int(port) < 65_536:
        table.problem(f"gateway names port {port}; expected 1 to 65535")
    return host.strip("[]"), int(port), key or "", serving


def _upstream(table: TomlTable, known: Known) -> Upstream:
    if table.has("model") or len(known.models) != 1:
        model = ModelName(table.need_text("model", expected="the name of a [[model]]"))
        _known_model(table, "model", model, known)
    else:
        table.text("model")
        model = next(iter(known.models))
    url = upstream_url(table) or ""
    if not table.has("url"):
        table.problem('url is missing; expected a URL that ends in /v1, as "https://host/v1"')
    engine = table.choice("engine", ENGINES, default=OPENAI) or OPENAI
    traits = _traits(engine)
    counts = table.choice(
        "running_counts", ("timings", "usage", "none"), default=traits.running_counts or "none"
    )
    upstream = Upstream(
        model=model,
        engine=engine,
        url=url,
        upstream_model=table.text("upstream_model") or model,
        credential=credential_of(table, known.folder),
        slots=table.integer("slots", 1, MOST_SLOTS, default=DEFAULT_SLOTS),
        slots_stated=table.has("slots"),
        running_counts="timings" if counts == "timings" else "usage" if counts == "usage" else None,
        usage_counts_one_choice=traits.usage_counts_one_choice,
        endpoints=_endpoints(table, "endpoints", traits.endpoints),
        cache_salt=traits.cache_salt,
        prefill_tok_s=table.number("prefill_tok_s", 0, FASTEST_TOK_S, default=0.0),
        decode_tok_s=table.number("decode_tok_s", 0, FASTEST_TOK_S, default=0.0),
    )
    table.finish()
    return upstream


def _endpoints(
    table: TomlTable, key: str, default: tuple[Endpoint, ...]
) -> tuple[Endpoint, ...]:
    names = table.names(key, default=default)
    for name in names:
        if name not in ALL_ENDPOINTS:
            table.problem(f'{key} names "{name}"; expected some of {", ".join(ALL_ENDPOINTS)}')
    return tuple(each for each in ALL_ENDPOINTS if each in names)


def _traits(engine: str) -> EngineTraits:
    families: tuple[Family, ...] = tuple(FAMILIES)
    for family in families:
        if family == engine:
            return FAMILIES[family].traits
    return EngineTraits()


def _known_model(table: TomlTable, key: str, name: str, known: Known) -> None:
    if name and name not in known.models:
        close = get_close_matches(name, known.models, n=1)
        hint = f'did you mean "{close[0]}"?' if close else "add a [[model]] with this name"
        table.problem(f'{key} names "{name}", which is not described; {hint}')
