"""Policies: those there are, and a new rule with what it allows shown while it is written.

What the rule allows is decided by control with the functions of the gateways; nothing is kept
until it is saved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from nicegui import ui

from isochrone.console.api import Api, part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.facts import card, figures
from isochrone.console.parts.notices import banner, shown, trouble
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import instant
from isochrone.core.errors import InvalidInput, IsochroneError

MOST = 2_000
MOST_NAMED = 200  # sites listed with the reason
AXES: Mapping[str, tuple[str, str]] = {
    "residency": ("Processed in", "any, or DE, EEA, -FR, operator:NAME, parent:NAME, site:NAME"),
    "transit": ("Enters in", "any, or terms as above; via:EEA asks of the way between sites"),
    "caches": ("Remembered in", "empty: as where it is processed"),
    "logs": ("References logged in", "any, or terms as above"),
}
OUTCOMES: Mapping[str, str] = {
    "served": "It would be served.",
    "no_entry": "403: it may not enter here.",
    "not_deployed": "404: no site has the model.",
    "nowhere_allowed": "403: no site that has the model is allowed.",
    "nowhere_open": "503: allowed sites have the model, and none of them takes requests now.",
}
START = """
const root = document.getElementById("rule-map");
import("/console/rule_map.js").then(module => module.start(root));
"""


class Policy(msgspec.Struct, frozen=True):
    id: str
    org_id: str
    name: str
    created_at: int
    residency: tuple[str, ...]
    transit: tuple[str, ...]
    caches: tuple[str, ...] | None
    logs: tuple[str, ...]

    def terms(self, axis: str) -> str:
        return ", ".join({
            "residency": self.residency, "transit": self.transit, "caches": self.caches or (),
            "logs": self.logs,
        }[axis])


class Named(msgspec.Struct, frozen=True):
    name: str


class Organisation(msgspec.Struct, frozen=True):
    id: str
    name: str


class SiteTrial(msgspec.Struct, frozen=True):
    site: str
    country: str | None
    enters: bool
    enters_not: str | None
    processes: bool
    processes_not: str | None
    caches: bool


class Refused(msgspec.Struct, frozen=True):
    site: str
    rule: str
    detail: str


class RequestTrial(msgspec.Struct, frozen=True):
    outcome: str
    entry_not: str | None
    open_sites: tuple[str, ...]
    refused: tuple[Refused, ...]


class Trial(msgspec.Struct, frozen=True):
    """What POST /policies/trials says."""

    sites: tuple[SiteTrial, ...]
    request: RequestTrial | None


class Known(msgspec.Struct, frozen=True):
    """All that the page begins with."""

    policies: tuple[Policy, ...]
    sites: tuple[Named, ...]
    models: tuple[Named, ...]
    organisations: tuple[Organisation, ...]

    def organisation(self, org_id: str) -> str:
        """Its name, as far as it is known."""
        return next((each.name for each in self.organisations if each.id == org_id), org_id)


async def load(api: Api) -> Known:
    """Raises IsochroneError."""
    return Known(
        policies=await api.items("policies", Policy, most=MOST),
        sites=await api.items("sites", Named, most=100_000),
        models=await api.items("models", Named, most=MOST),
        organisations=await api.items("organisations", Organisation, most=MOST),
    )


def terms_of(text: str) -> list[str]:
    """The terms of an axis as it is written: parted by commas."""
    return [term for each in text.split(",") if (term := each.strip())]


def axes_in(written: Mapping[str, str]) -> dict[str, list[str] | None]:
    """The axes as the API takes them; an empty one is any, of caches as where it is processed."""
    found: dict[str, list[str] | None] = {}
    for axis in AXES:
        terms = terms_of(written.get(axis, ""))
        found[axis] = terms or (None if axis == "caches" else ["any"])
    return found


@dataclass(slots=True, kw_only=True)
class Rule:
    """What is written in the fields, and the latest of the trials that were asked for."""

    axes: dict[str, str]
    name: str = ""
    org_id: str = ""
    ingress: str = ""
    model: str = ""
    narrowed: dict[str, str] = field(default_factory=dict)
    asked: int = 0

    def body(self) -> dict[str, object]:
        """What to try."""
        body: dict[str, object] = {**axes_in(self.axes)}
        if self.ingress and self.model:
            body["request"] = {
                "ingress": self.ingress, "model": self.model,
                **{name: text for name, text in self.narrowed.items() if text.strip()},
            }
        return body


async def build(visit: Visit) -> None:
    title("Policies", "Where requests may be processed, enter, and be remembered")
    known = await shown(load(visit.api))
    if known is None:
        return
    begun = next((each for each in known.policies if each.id == visit.query.get("from")), None)
    rule = Rule(
        axes={axis: "" if begun is None else begun.terms(axis) for axis in AXES},
        ingress=known.sites[0].name if known.sites else "",
        model=known.models[0].name if known.models else "",
    )
    _list(visit, known)
    with ui.element("div").classes("iso-grid"):
        written = card("Try a rule" if not visit.me.may("policies.write") else "A new rule")
        allowed = card("What it allows")
        with written:
            fields = _fields(visit, known, rule)
        with allowed:
            ui.element("div").classes("rule-map").props('id="rule-map"')
            _key()
            said = ui.column().classes("iso-said")
    with card("A request under this rule"):
        with ui.row().classes("iso-ask"):
            fields |= _request_fields(known, rule)
        request = ui.column().classes("iso-said iso-below")
    facts = ui.column().classes("iso-said")

    async def again() -> None:
        rule.asked += 1
        mine = rule.asked
        try:
            trial: Trial | IsochroneError = await visit.api.post(
                "policies/trials", Trial, rule.body()
            )
        except IsochroneError as error:
            trial = error
        if mine == rule.asked:  # else something else was written meanwhile
            _show(trial, rule, fields, said, request, facts)

    for each in fields.values():
        each.on_value_change(again)
    ui.run_javascript(START)
    await again()


def _list(visit: Visit, known: Known) -> None:
    with card():
        table(
            (
                Column(title="Name"), Column(title="Organisation"),
                *(Column(title=label) for label, _ in AXES.values()),
                Column(title="Made (UTC)"),
                Column(title="Begin from", kind="link", link="/policies?from={}"),
            ),
            [
                (
                    each.name, known.organisation(each.org_id),
                    each.residency, each.transit, each.caches or "as processed", each.logs,
                    instant(each.created_at), each.id,
                )
                for each in sorted(known.policies, key=lambda each: -each.created_at)
            ],
            title="Policies", empty="There are no policies yet.",
        )
        ui.label(
            "A policy never changes, so what bound a request can always be told: a changed rule is"
            " a new policy, and a key is made for it."
        ).classes("iso-about")


Fields = dict[str, "ui.input | ui.select"]


def _fields(visit: Visit, known: Known, rule: Rule) -> Fields:
    """The fields of the axes, and saving."""
    fields: Fields = {}
    with ui.column().classes("iso-form"):
        for axis, (label, hint) in AXES.items():
            one = ui.input(label, value=rule.axes[axis]).bind_value(rule.axes, axis)
            one.props(f'outlined dense debounce="250" hint="{hint}" autocomplete="off"')
            fields[axis] = one.classes("iso-field")
        if visit.me.may("policies.write"):
            _saving(visit, known, rule)
    return fields


def _saving(visit: Visit, known: Known, rule: Rule) -> None:
    name = ui.input("Name").bind_value(rule, "name").props(
        'outlined dense autocomplete="off"'
    ).classes("iso-field")
    if visit.me.org_id is None:
        names = {each.id: each.name for each in known.organisations}
        rule.org_id = next(iter(names), "")
        ui.select(names, label="Organisation", value=rule.org_id).bind_value(
            rule, "org_id"
        ).props("outlined dense").classes("iso-field")
    said = ui.column().classes("iso-said")

    async def save() -> None:
        said.clear()
        name.error = None
        body: dict[str, object] = {"name": rule.name.strip(), **axes_in(rule.axes)}
        if rule.org_id:
            body["org_id"] = rule.org_id
        with said:
            if not rule.name.strip():
                name.error = "missing"
                return
            made = await shown(visit.api.post("policies", Policy, body))
            if made is not None:
                with banner("good", f"Saved as {made.name}: make a key for it, or use its id."):
                    ui.link(made.id, f"/policies?from={part(made.id)}").classes("iso-code")

    ui.button("Save it", on_click=save).props("unelevated no-caps")


def _request_fields(known: Known, rule: Rule) -> Fields:
    fields: Fields = {}
    for name, label, options in (
        ("ingress", "Enters at", known.sites), ("model", "Model", known.models),
    ):
        fields[name] = ui.select(
            [each.name for each in options], label=label, with_input=len(options) > 20,
        ).bind_value(rule, name).props("outlined dense").classes("iso-choice")
    for name in ("residency", "transit"):
        rule.narrowed[name] = ""
        fields[f"request {name}"] = ui.input(f"x-isochrone-{name}").bind_value(
            rule.narrowed, name
        ).props('outlined dense debounce="250" autocomplete="off"').classes("iso-choice")
    return fields


def _key() -> None:
    with ui.row().classes("iso-legend"):
        for tone, text in (
            ("load-0", "processes, and takes requests in"), ("load-1", "processes only"),
            ("load-2", "takes requests in only"), ("load-none", "neither"),
        ):
            with ui.element("span"):
                ui.element("i").style(f"background: var(--{tone})")
                ui.label(text)


def _show(
    trial: Trial | IsochroneError, rule: Rule, fields: Fields, said: ui.column,
    request: ui.column, facts: ui.column,
) -> None:
    """The outcome of a trial; faults of what is written at the fields that they are about."""
    for one in fields.values():
        one.error = None
    if isinstance(trial, InvalidInput):
        rest = _place(trial, fields)
        said.clear()
        if rest:
            with said:
                trouble(InvalidInput(rest))
        return
    for each in (said, request, facts):
        each.clear()
    if isinstance(trial, IsochroneError):
        with said:
            trouble(trial)
        return
    with said:
        _sums(trial)
    if trial.request is not None:
        with request:
            _request(trial.request)
    with facts:
        _facts(trial)
    ui.run_javascript(
        "const map = document.getElementById('rule-map');"
        f"map.trial = {msgspec.json.encode(drawn(trial, rule.ingress)).decode()};"
        "if (map.draw) map.draw();"
    )


def _place(error: InvalidInput, fields: Fields) -> list[str]:
    """Show each problem at its field; those without one are given back."""
    rest: list[str] = []
    for problem in error.problems:
        name, parted, what = problem.partition(": ")
        if parted and name in fields:
            fields[name].error = what
        else:
            rest.append(problem)
    return rest


def drawn(trial: Trial, ingress: str) -> dict[str, object]:
    """What the map shows: 1 for a site that may process, 2 for one that takes requests in."""
    asked = trial.request
    return {
        "sites": {each.site: each.processes + 2 * each.enters for each in trial.sites},
        "ingress": "" if asked is None else ingress,
        "open": () if asked is None else asked.open_sites,
        "refused": () if asked is None else [each.site for each in asked.refused],
        "text": f"{sum(each.processes for each in trial.sites)} of {len(trial.sites)} sites may"
        " process under this rule",
    }


def _sums(trial: Trial) -> None:
    whole = len(trial.sites)
    figures([
        ("May process", f"{sum(each.processes for each in trial.sites)} of {whole}", "sites"),
        ("May take in", f"{sum(each.enters for each in trial.sites)} of {whole}", "sites"),
        ("May remember", f"{sum(each.caches for each in trial.sites)} of {whole}", "sites"),
    ])


def _request(found: RequestTrial) -> None:
    good = found.outcome == "served"
    with banner("good" if good else "warn", OUTCOMES.get(found.outcome, found.outcome)):
        if good:
            ui.label(f"Nearest first: {_named(found.open_sites)}.")
        elif found.entry_not is not None:
            ui.label(found.entry_not)
    if found.refused:
        table(
            (Column(title="Site"), Column(title="Rule", kind="code"), Column(title="Fact")),
            [(each.site, each.rule, each.detail) for each in found.refused[:MOST_NAMED]],
            title="Sites with the model that would refuse it", empty="",
        )


def _facts(trial: Trial) -> None:
    denied = [each for each in trial.sites if not (each.processes and each.enters)]
    with card():
        table(
            (
                Column(title="Site"), Column(title="Country"),
                Column(title="Processes", kind="state"), Column(title="Takes in", kind="state"),
                Column(title="Fact that decides"),
            ),
            [
                (each.site, each.country, each.processes, each.enters,
                 each.processes_not or each.enters_not)
                for each in denied[:MOST_NAMED]
            ],
            title="What it does not allow",
            empty="It allows every site everything.",
        )
        if len(denied) > MOST_NAMED:
            ui.label(f"And {len(denied) - MOST_NAMED} more.").classes("iso-about")


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
