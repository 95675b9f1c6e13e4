"""Reads experiments (TOML), or makes one of a scenario, and plays them."""

import copy
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from isochrone.adapters.packaged import DATA
from isochrone.core.errors import InvalidInput
from isochrone.twin.experiments.experiment import (
    Cell,
    Client,
    Outcome,
    Place,
    Point,
    Results,
    View,
    outcomes_of,
    told,
)
from isochrone.twin.scenario import Scenario
from isochrone.wiring.toml_table import Problems, TomlTable
from isochrone.wiring.twin_comparison import POLICIES, Game, Played, games, ground_of
from isochrone.wiring.twin_files import MOST_PLAN_BYTES, at_home, bytes_of
from isochrone.wiring.twin_pool import play_all
from isochrone.wiring.twin_scenario import read_scenario

EXPERIMENTS = DATA / "experiments"
SCENARIOS = DATA / "scenarios"
VIEWS: tuple[View, ...] = ("loads", "campus", "cases", "pairs", "tenants", "pooling")
MOST_POINTS = 10_000
# Of these a scenario states one.
INSTEAD_OF = {"workload.load": "rate_rps", "workload.rate_rps": "load"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A scenario at a point, and the policies that are played there."""

    point: Point
    scenario: Scenario
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """`requests` at each point, None for all of the scenario's; `full_requests` where evidence is
    wanted; `gpus_for`: also look for the smallest fleet on which this part is in time."""

    name: str
    title: str
    question: str
    view: View
    requests: int | None
    full_requests: int | None
    gpus_for: float | None
    notes: tuple[str, ...]
    settings: tuple[Setting, ...]


def packaged_experiments() -> tuple[str, ...]:
    """Their names."""
    return tuple(sorted(each.stem for each in EXPERIMENTS.glob("*.toml")))


def file_of(wanted: str) -> Path:
    """A file, or that of the packaged experiment or scenario of this name. Raises InvalidInput."""
    path = at_home(wanted)
    if not path.exists():
        known = [folder / f"{wanted}.toml" for folder in (EXPERIMENTS, SCENARIOS)]
        found = [each for each in known if each.is_file()]
        if not found:
            names = [*packaged_experiments(), *sorted(each.stem for each in SCENARIOS.iterdir())]
            raise InvalidInput([
                f"there is no file {wanted}, and no packaged experiment or scenario of this name; "
                f"packaged: {', '.join(names)}"
            ])
        path = found[0]
    return path


def content_of(wanted: str) -> dict[str, object]:
    """What it says. Raises InvalidInput."""
    path = file_of(wanted)
    try:
        return tomllib.loads(bytes_of(path, most=MOST_PLAN_BYTES).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput([f"{wanted}: not a TOML file: {error}"]) from error


def read_experiment(
    content: Mapping[str, object], *, source: str, change: Callable[[Scenario], Scenario],
    vary: Mapping[str, Sequence[Cell]] | None = None,
) -> Experiment:
    """An experiment, or a scenario as one without cases. `change` replaces parts of every scenario;
    `vary` has further keys with their values. Raises InvalidInput with all problems."""
    if "experiment" not in content:
        content = {"experiment": {"title": Path(source).stem}, "scenario": dict(content)}
    problems = Problems(source)
    top = TomlTable("", content, problems)
    head = top.table("experiment") or TomlTable("experiment", {}, problems)
    base = content.get("scenario")
    top.table("scenario")
    cases = top.tables("case", name_key="name")
    varied = {**_varied(top.tables("vary")), **(vary or {})}
    _check_varied(varied, problems)
    view = head.choice("view", VIEWS, default="loads")
    title = head.text("title") or source
    policies = head.names("policies", default=POLICIES)
    read = Experiment(
        name=Path(source).stem, title=title, question=head.text("question") or "",
        view=next(each for each in VIEWS if each == (view or "loads")),
        requests=head.integer("requests", 1, 10**9, default=0) or None,
        full_requests=head.integer("full_requests", 1, 10**9, default=0) or None,
        gpus_for=head.number("gpus_for_slo", 0.01, 1.0, default=0.0) or None,
        notes=head.names("notes", default=()), settings=(),
    )
    head.finish()
    settings: list[Setting] = []
    known: list[tuple[str, Mapping[str, object], tuple[str, ...]]] = []
    for case in cases:
        name = case.need_text("name")
        if any(name == other for other, _, _ in known):
            case.problem("there are two cases with this name")
        known.append((name, case.plain("set"), case.names("policies", default=policies)))
        case.finish()
    top.finish()
    problems.raise_if_any()
    wrong: list[str] = []
    for name, values, chosen in known or [("", {}, policies)]:
        for combined in product(*varied.values()):
            at = dict(zip(varied, combined, strict=True))
            made = with_values(base if isinstance(base, dict) else {}, {**values, **at})
            where = " ".join([source, *([f"[{name}]"] if name else [])])
            try:
                scenario = change(read_scenario(made, source=where))
            except InvalidInput as error:
                wrong += [each for each in error.problems if each not in wrong]
                continue
            settings.append(Setting(
                point=Point(case=name, varied=at), scenario=scenario, policies=chosen
            ))
    if len(settings) > MOST_POINTS:
        wrong.append(f"{source}: {len(settings)} points; expected at most {MOST_POINTS}")
    if wrong:
        raise InvalidInput(wrong)
    return replace(read, settings=tuple(settings))


def varied_by(texts: Sequence[str]) -> dict[str, Sequence[Cell]]:
    """From `fleet.replicas=8,16`: numbers, `true`, `false`, and text. Raises InvalidInput."""
    found: dict[str, Sequence[Cell]] = {}
    problems = []
    for text in texts:
        key, _, values = text.partition("=")
        if not key.strip() or not values.strip():
            problems.append(f'--vary "{text}": expected a key and values, as fleet.replicas=8,16')
        elif key.strip() in found:
            problems.append(f"--vary {key.strip()} is there twice")
        else:
            found[key.strip()] = tuple(_value(each.strip()) for each in values.split(","))
    if problems:
        raise InvalidInput(problems)
    return found


def _value(text: str) -> Cell:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def with_values(
    content: Mapping[str, object], values: Mapping[str, object]
) -> dict[str, object]:
    """The content of a scenario with other values, by keys as `fleet.replicas`; whole arrays of
    tables, as `tenant`, by their name."""
    made: dict[str, object] = copy.deepcopy(dict(content))
    for key, value in values.items():
        *tables, last = key.split(".")
        at = made
        for each in tables:
            inner = at.setdefault(each, {})
            if not isinstance(inner, dict):
                raise InvalidInput([f"{key}: {each} is no table of a scenario"])
            at = inner
        at[last] = copy.deepcopy(value)
        if key in INSTEAD_OF:
            at.pop(INSTEAD_OF[key], None)
    return made


def _varied(tables: Sequence[TomlTable]) -> dict[str, Sequence[Cell]]:
    found: dict[str, Sequence[Cell]] = {}
    for table in tables:
        key = table.need_text("key")
        values = table.scalars("values")
        table.finish()
        found[key] = values
    return found


def _check_varied(varied: Mapping[str, Sequence[Cell]], problems: Problems) -> None:
    if varied.keys() >= INSTEAD_OF.keys():
        problems.add("", f"of {' and '.join(INSTEAD_OF)} only one can be varied")
    for key, values in varied.items():
        twice = [each for place, each in enumerate(values) if each in values[:place]]
        if twice:
            problems.add("", f"vary {key}: {told(twice[0])} is there twice")


def work_of(experiment: Experiment, requests: int | None) -> list[tuple[Setting, Game]]:
    """What is played, in order. Raises InvalidInput with all problems, before anything is."""
    wrong: list[str] = []
    found: list[tuple[Setting, Game]] = []
    seen: set[object] = set()
    for setting in experiment.settings:
        looked_at = _looked_at(setting)
        if looked_at not in seen:  # what can be wrong is the same at other loads
            seen.add(looked_at)
            try:
                games(setting.scenario, setting.policies, (), requests)
            except InvalidInput as error:
                wrong += [each for each in error.problems if each not in wrong]
        found += [
            (setting, Game(
                scenario=setting.scenario, policy=policy, requests=requests,
                gpus_for=experiment.gpus_for,
            ))
            for policy in setting.policies
        ]
    if wrong:
        raise InvalidInput(wrong)
    return found


def _looked_at(setting: Setting) -> object:
    """All that can turn out to be wrong with a scenario that was read: what it names."""
    scenario, workload = setting.scenario, setting.scenario.workload
    return (
        scenario.sites, scenario.rtt, scenario.entries, scenario.tenants, scenario.outages,
        scenario.fleet.engine_sites, scenario.fleet.apart_km, workload.kind, workload.files,
        workload.part, workload.prompt_tokens, workload.output_tokens, setting.policies,
    )


def play_experiment(
    experiment: Experiment, *, requests: int | None, jobs: int, cluster: str | None, command: str,
    commit: str, on_played: Callable[[Played], None],
) -> Results:
    """Everything of it. Raises InvalidInput, or Unavailable as `play_all`."""
    work = work_of(experiment, requests)
    # First: a file that is gone by the end must not cost what was played.
    widest = max(experiment.settings, key=lambda each: each.scenario.fleet.engine_sites)
    places, clients = _map(widest.scenario, requests)
    played = play_all([game for _, game in work], jobs, on_played, cluster)
    outcomes: list[Outcome] = []
    for (setting, _), each in zip(work, played, strict=True):
        names = [tenant.name for tenant in setting.scenario.tenants]
        outcomes += outcomes_of(setting.point, each.row, each.summary, names, each.light)
    return Results(
        name=experiment.name, title=experiment.title, question=experiment.question,
        view=experiment.view, command=command, commit=commit, requests=requests,
        outcomes=tuple(outcomes), places=places, clients=clients, slo_share=experiment.gpus_for,
        notes=experiment.notes,
    )


def _map(
    scenario: Scenario, requests: int | None
) -> tuple[tuple[Place, ...], tuple[Client, ...]]:
    world = ground_of(scenario, requests).world
    fleet = world.fleet
    places = tuple(
        Place(
            name=site.name, country=site.country or "", latitude_deg=site.latitude_deg or 0.0,
            longitude_deg=site.longitude_deg or 0.0, replicas=sum(len(each) for each in models),
        )
        for site, models in zip(fleet.sites, fleet.at, strict=True)
    )
    clients = tuple(
        Client(
            latitude_deg=site.latitude_deg or 0.0, longitude_deg=site.longitude_deg or 0.0,
            share=share,
        )
        for site, share in zip(fleet.ingresses, world.share, strict=True)
    )
    return places, clients
