"""Parses a scenario file (TOML), or lists every problem of the file at once.

Only the text is judged here; whether the files that it names can be read is found out by
`twin_world.py`, which opens them.
"""

import tomllib
from collections.abc import Mapping, Sequence

from isochrone.adapters.packaged import load_blocs, load_engine_rates
from isochrone.core.admission.classes import CLASSES, RANK
from isochrone.core.errors import InvalidInput
from isochrone.core.estimate.engine_rates_table import PRECISIONS, EngineRates, row_of
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.terms import check_axis, parse_term
from isochrone.twin.scenario import (
    FleetOrder,
    Losing,
    OutagePlan,
    Scenario,
    Workload,
    WorkloadKind,
)
from isochrone.twin.world.fleet_plan import TenantPlan
from isochrone.wiring.toml_table import Problems, TomlTable

KINDS: tuple[WorkloadKind, ...] = (
    "recorded", "coding", "servegen", "azure-2024", "lengths", "exponential"
)
FILES_OF_KIND: Mapping[WorkloadKind, int] = {
    "recorded": 1, "coding": 1, "servegen": 2, "azure-2024": 2, "lengths": 1, "exponential": 0,
}
LOSSES: tuple[Losing, ...] = ("site", "country", "cable")
LONGEST_S = 14 * 86_400.0
MOST_LOAD = 4.0


def parse_scenario(text: str, *, source: str) -> Scenario:
    """`source` names the file in messages. Raises InvalidInput with all problems."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput([f"{source}: not a TOML file: {error}"]) from error
    return read_scenario(content, source=source)


def read_scenario(content: Mapping[str, object], *, source: str) -> Scenario:
    """The same of what a TOML file says."""
    problems = Problems(source)
    top = TomlTable("", content, problems)
    blocs = load_blocs()
    length_s = top.number("length_s", 1.0, LONGEST_S, default=600.0)
    scenario = Scenario(
        seed=top.integer("seed", 0, 2**31 - 1, default=1),
        length_s=length_s,
        warm_s=top.number("warm_s", 0.0, LONGEST_S, default=min(60.0, length_s / 10)),
        start_hour=top.number("start_hour", 0.0, 168.0, default=33.0),
        hours=top.boolean("hours", default=True),
        sites=top.text("sites"),
        rtt=top.text("rtt"),
        entries=top.text("entries"),
        fleet=_fleet(_needed(top, "fleet", problems), problems),
        workload=_workload(_needed(top, "workload", problems)),
        tenants=_tenants(top.tables("tenant", name_key="name"), blocs),
        outages=_outages(top.tables("outage"), blocs),
    )
    top.finish()
    if scenario.warm_s >= scenario.length_s:
        top.problem(
            f"warm_s is {scenario.warm_s:g} and length_s is {scenario.length_s:g}; what is counted "
            "begins after the warm-up, so the length must be greater"
        )
    problems.raise_if_any()
    return scenario


def _needed(top: TomlTable, key: str, problems: Problems) -> TomlTable:
    table = top.table(key)
    if table is None:
        if not top.has(key):
            top.problem(f"there is no [{key}]; a scenario needs a [fleet] and a [workload]")
        # Read as if it were there, so that other problems are found; its own are not told.
        return TomlTable(key, {}, Problems(problems.source))
    return table


def _fleet(table: TomlTable, problems: Problems) -> FleetOrder:
    engines = load_engine_rates()
    order = FleetOrder(
        hardware=table.text("hardware") or "H100-SXM5-80GB",
        model=table.text("model") or "llama3-8b",
        gpus=table.integer("gpus", 1, 64, default=1),
        precision=table.choice("precision", PRECISIONS) if table.has("precision") else None,
        engine_sites=table.integer("engine_sites", 1, 10_000, default=60),
        replicas=table.integer("replicas", 1, 1_000_000, default=240),
        sharing="even" if table.choice(
            "sharing", ("demand", "even"), default="demand"
        ) == "even" else "demand",
        apart_km=table.number("apart_km", 0.0, 20_000.0, default=150.0),
        slots=table.integer("slots", 1, 4096, default=256),
        chunk_tokens=table.integer("chunk_tokens", 64, 65_536, default=2048),
    )
    table.finish()
    if order.replicas < order.engine_sites:
        table.problem(
            f"replicas is {order.replicas} for {order.engine_sites} engine_sites; expected at "
            "least one a site"
        )
    if row_of(engines, order.hardware, order.model, order.gpus, order.precision) is None:
        table.problem(_nothing_known(order, engines))
    return order


def _nothing_known(order: FleetOrder, engines: Sequence[EngineRates]) -> str:
    """With what is known of the same hardware or the same model, else all hardware."""
    same: dict[str, set[str]] = {}
    for each in engines:
        if each.hardware == order.hardware or each.model == order.model:
            what = f"{each.model} on {each.gpus} x {each.hardware}"
            same.setdefault(what, set()).add(each.precision)
    told = [
        f"{what} in {' or '.join(sorted(same[what], key=PRECISIONS.index))}"
        for what in sorted(same)
    ] or sorted({each.hardware for each in engines})
    precision = f" in {order.precision}" if order.precision else ""
    return (
        f"nothing is known of {order.model} on {order.gpus} x {order.hardware}{precision}; "
        f"known are: {', '.join(told)}"
    )


def _workload(table: TomlTable) -> Workload:
    chosen = table.choice("kind", KINDS, default="recorded") or "recorded"
    kind = next(each for each in KINDS if each == chosen)
    files = table.names("files", default=())
    has_rate, has_load = table.has("rate_rps"), table.has("load")
    load = table.number("load", 0.001, MOST_LOAD, default=0.8)
    rate_rps = table.number("rate_rps", 0.001, 1e6, default=1.0)
    workload = Workload(
        name=table.text("name") or kind,
        kind=kind,
        files=files,
        load=None if has_rate else load,
        rate_rps=rate_rps if has_rate else None,
        slo_ms=table.number("slo_ms", 1.0, 1e7, default=1_000.0),
        slo_token_ms=table.number("slo_token_ms", 0.0, 1_000.0, default=0.25),
        reserved=table.number("reserved", 0.0, 1.0, default=0.0),
        batch=table.number("batch", 0.0, 1.0, default=0.0),
        part=(
            table.number("part_from", 0.0, 1.0, default=0.0),
            table.number("part_until", 0.0, 1.0, default=1.0),
        ),
        prompt_tokens=table.number("prompt_tokens", 1.0, 1e6, default=100.0),
        output_tokens=table.number("output_tokens", 1.0, 1e6, default=500.0),
    )
    table.finish()
    if workload.part[0] >= workload.part[1]:
        table.problem("part_from must be below part_until; nothing would be played")
    if kind == "lengths" and not files:
        table.problem("files is missing; a workload lengths is read from a file of lengths")
    if has_rate and has_load:
        table.problem("rate_rps and load are both there; state the rate, or the load and not it")
    if workload.reserved + workload.batch > 1.0:
        table.problem(
            f"reserved {workload.reserved:g} and batch {workload.batch:g} are more than all "
            "requests; expected at most 1 together"
        )
    if files and len(files) != FILES_OF_KIND[kind]:
        what = {
            "servegen": "the rates and the lengths", "azure-2024": "the rate curve and the tokens",
        }.get(kind, "the trace")
        table.problem(f"files has {len(files)}; a workload {kind} is read from {what}")
    return workload


def _tenants(tables: Sequence[TomlTable], blocs: Blocs) -> tuple[TenantPlan, ...]:
    found: list[TenantPlan] = []
    for table in tables:
        terms = table.names("residency", default=("any",))
        for problem in check_axis(tuple(parse_term(term) for term in terms), blocs):
            table.problem(f"residency: {problem}")
        tenant = TenantPlan(
            name=table.need_text("name"), share=table.number("share", 0.0, 1e9, default=1.0),
            residency=tuple(parse_term(term) for term in terms),
            clients=_countries(table, "clients", blocs),
            class_=RANK.get(table.choice("class", CLASSES) or "") if table.has("class") else None,
            sold=table.number("sold", 0.0, 1.0, default=0.0),
        )
        table.finish()
        if any(each.name == tenant.name for each in found):
            table.problem("there are two tenants with this name")
        found.append(tenant)
    if tables and not sum(each.share for each in found):
        tables[0].problem("no tenant has a share above 0; at least one must ask for something")
    if tables and sum(each.sold for each in found) > 1.0:
        tables[0].problem("sold is more than 1 for all tenants together; 1 is the whole fleet")
    return tuple(found) or (TenantPlan(name="all", share=1.0, residency=("any",)),)


def _countries(table: TomlTable, key: str, blocs: Blocs) -> frozenset[str]:
    """Countries by their codes, and blocs for their members; empty where the key is not there."""
    found: set[str] = set()
    for name in table.names(key, default=()):
        members = blocs.members.get(name, frozenset({name}))
        if not members <= blocs.countries:
            table.problem(f"{key} has {name}; expected country codes or {', '.join(blocs.members)}")
        found |= members
    return frozenset(found)


def _outages(tables: Sequence[TomlTable], blocs: Blocs) -> tuple[OutagePlan, ...]:
    found: list[OutagePlan] = []
    for table in tables:
        what = table.choice("what", LOSSES, default="site")
        outage = OutagePlan(
            what=next(each for each in LOSSES if each == (what or "site")),
            begin=table.number("begin", 0.0, 1.0, default=0.4),
            end=table.number("end", 0.0, 1.0, default=0.7),
            rank=table.integer("rank", 1, 10_000, default=1),
            here=tuple(sorted(_countries(table, "countries", blocs))),
        )
        table.finish()
        if outage.begin >= outage.end:
            table.problem(f"begin is {outage.begin:g} and end is {outage.end:g}; it must end later")
        if (outage.what == "site") == bool(outage.here):
            table.problem("a country or cable needs countries, a site has none")
        found.append(outage)
    return tuple(found)
