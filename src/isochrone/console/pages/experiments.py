"""Experiments: what the twin can play, how far it is, and what came of it.

Control plays them beside everything else, one at a time; the page starts, watches and stops them.
"""

from collections.abc import Mapping, Sequence

import msgspec
from nicegui import ui

from isochrone.console.api import part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.pages.audit import names_of
from isochrone.console.parts.confirm import Effect, ask
from isochrone.console.parts.facts import card, facts
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner, empty, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import NOTHING, count, duration, instant
from isochrone.core.errors import InvalidInput

LOOK_AGAIN_S = 1.0
MOST = 100
NS_PER_MS = 1_000_000
OWN = "own"
TRY, RUN = "/experiments?try={}", "/experiments?run={}"
TONES = {"done": "good", "failed": "bad", "interrupted": "bad", "running": "good"}
WORDS_COLUMNS = ("case", "workload", "tenant", "policy")
# A report is told its colours when it is fetched.
RECOLOUR = """document.addEventListener("isochrone-theme", () => {
  const report = document.querySelector(".iso-report");
  if (report) report.src = report.src;
});"""
ABOUT = "What the twin says of a fleet, before money is spent on it"


class Plan(msgspec.Struct, frozen=True):
    """What would be played."""

    name: str
    title: str
    question: str
    policies: tuple[str, ...]
    loads: tuple[float, ...]
    points: int
    runs: int
    requests: int
    about_s: float
    content: str


class Run(msgspec.Struct, frozen=True):
    """One playing; `done` of `runs` simulations are over."""

    id: str
    wanted: str
    title: str
    own: bool
    state: str
    problem: str | None
    command: str
    asked_by: str
    asked_at: int
    begun_at: int | None
    ended_at: int | None
    runs: int
    done: int | None
    left_s: float | None

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "running", "stopping")


class Finding(msgspec.Struct, frozen=True):
    text: str
    met: bool | None


class Results(msgspec.Struct, frozen=True):
    findings: tuple[Finding, ...]
    commit: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def far(run: Run) -> str:
    """How far it is, in words."""
    if run.state == "waiting":
        return "waits until what plays before it is over"
    if run.state == "stopping":
        return "is being stopped"
    if run.done is None:
        return "is beginning"
    said = f"{run.done} of {run.runs} simulations"
    return said if run.left_s is None else f"{said}, about {duration(run.left_s * 1000)} left"


def took(run: Run) -> str:
    if run.begun_at is None or run.ended_at is None:
        return NOTHING
    return duration((run.ended_at - run.begun_at) / NS_PER_MS)


def order_in(values: Mapping[str, str]) -> dict[str, object]:
    """The body of POST /experiments for what was filled in. Raises InvalidInput."""
    problems: list[str] = []
    body: dict[str, object] = {"wanted": values["wanted"].strip() or OWN}
    if values.get("content"):
        body["content"] = values["content"]
    policies = [each for each in values.get("policies", "").split(",") if each]
    if policies:
        body["policies"] = policies
    loads: list[float] = []
    for each in values.get("loads", "").replace(",", " ").split():
        try:
            loads.append(float(each))
        except ValueError:
            problems.append(f"loads: {each} is no number; want them as 0.5, 0.8")
    if loads:
        body["loads"] = loads
    for name in ("requests", "seed"):
        said = values.get(name, "").strip()
        if said and not (said.isascii() and said.isdigit() and len(said) < 12):
            problems.append(f"{name}: want a whole number")
        elif said:
            body[name] = int(said)
    if problems:
        raise InvalidInput(problems)
    return body


def effects_of(plan: Plan) -> list[Effect]:
    """What playing it leads to."""
    loads = ", ".join(f"{load:g}" for load in plan.loads)
    of_loads = f" at {'load' if len(plan.loads) == 1 else 'the loads'} {loads}" if loads else ""
    return [
        Effect(text=f"{count(plan.runs)} simulations with {count(plan.requests)} requests in all:"
               f" {plan.points} {'point' if plan.points == 1 else 'points'}{of_loads}."),
        Effect(text=f"Policies: {', '.join(plan.policies)}."),
        Effect(text=f"It takes about {duration(plan.about_s * 1000)} on control's machine, at the"
               " lowest priority. No request of a customer is touched: all of it is simulated."),
    ]


async def build(visit: Visit) -> None:
    title("Experiments", ABOUT)
    wanted, run_id = visit.query.get("try"), visit.query.get("run")
    if wanted or run_id:
        with ui.row():
            ui.link("All experiments", "/experiments")
    if run_id:
        await _one(visit, run_id)
    elif wanted:
        _try(visit, wanted)
    else:
        view = All(visit)
        await view.look()
        ui.timer(LOOK_AGAIN_S, view.look, immediate=False)
        ui.timer(0.05, view.ask_for_plans, once=True)


class Far:
    """How far one run is: a bar, words, and a button that stops it; kept up to date in place."""

    def __init__(self, visit: Visit, run: Run, *, named: bool) -> None:
        self._run = run
        with ui.element("div").classes("iso-far"):
            if named:
                ui.link(run.title, RUN.replace("{}", part(run.id))).classes("iso-strong")
            track = ui.element("div").classes("iso-track").props('role="progressbar"')
            self._track = track.props('aria-valuemin="0"')
            track.props["aria-label"] = f"Progress of {run.title}"
            with track:
                self._bar = ui.element("div").classes("iso-bar iso-tone-2")
            with ui.row().classes("iso-far-said"):
                self._said = ui.label().classes("iso-about")
                ui.space()
                self._stop = ui.button("Stop it", on_click=lambda: _stop(visit, run))
                self._stop.props("outline no-caps dense").classes("iso-act")
        self.show(run)

    def show(self, run: Run) -> None:
        part_done = 0.0 if run.done is None or not run.runs else run.done / run.runs
        self._bar.style(f"width: {max(100 * min(part_done, 1.0), 0.5):.1f}%")
        self._track.props["aria-valuemax"] = str(run.runs)
        self._track.props["aria-valuenow"] = str(run.done or 0)
        self._track.update()
        self._said.set_text(far(run))
        self._stop.set_enabled(run.state != "stopping")


def _stop(visit: Visit, run: Run) -> None:
    async def stop() -> None:
        await visit.api.post(f"experiments/{part(run.id)}/stop", Run)

    lost = Effect(text="What it has played so far is lost; there will be no report.", hurts=True)
    ask(f"Stop {run.title}?", [lost], "Stop it", stop)


class All:
    """What plays now, what there is to play, and the runs before."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._names: dict[str, str] | None = None
        self._said = ui.column().classes("iso-said")
        self._now = ui.column().classes("iso-said")
        self._far: dict[str, Far] = {}
        with card("What there is to play"):
            self._plans = ui.column().classes("iso-said")
            with self._plans:
                self._asking = _asking()
        self._before = ui.column().classes("iso-said")
        self._listed: tuple[Run, ...] | None = None

    async def look(self) -> None:
        """Ask for the runs again and show them."""
        self._said.clear()
        with self._said:
            found = await shown(self._visit.api.items("experiments", Run, most=MOST))
            if found is not None and self._names is None:
                self._names = await shown(names_of(self._visit.api))
        if found is None:
            return
        playing = [each for each in found if each.is_open][::-1]
        if [each.id for each in playing] != list(self._far):
            self._now.clear()
            with self._now:
                self._far = _playing(self._visit, playing)
        for each in playing:
            self._far[each.id].show(each)
        before = tuple(each for each in found if not each.is_open)
        if before != self._listed:  # who moves by keyboard keeps their place
            self._listed = before
            self._before.clear()
            with self._before, card("Runs before" if before else ""):
                _before(before, self._names or {})

    async def ask_for_plans(self) -> None:
        """It may take seconds the first time."""
        with self._plans:
            found = await shown(self._visit.api.items("experiments/packaged", Plan, most=MOST))
            self._asking.delete()
            if found is not None:
                _there_is(found)


def _playing(visit: Visit, runs: Sequence[Run]) -> dict[str, Far]:
    if not runs:
        return {}
    with card("Playing now"):
        return {each.id: Far(visit, each, named=True) for each in runs}


def _there_is(plans: Sequence[Plan]) -> None:
    for plan in plans:
        with ui.element("div").classes("iso-key iso-play"):
            with ui.element("div").classes("iso-key-who"):
                ui.link(plan.title, TRY.replace("{}", part(plan.name))).classes("iso-strong")
                ui.label(plan.question or "A scenario, under each policy.").classes("iso-about")
            with ui.element("div").classes("iso-key-what"):
                ui.label(f"{count(plan.runs)} simulations, {len(plan.policies)} policies")
                ui.label(f"{count(plan.requests)} requests").classes("iso-about")
            ui.label(f"about {duration(plan.about_s * 1000)}").classes("iso-key-what")
    with ui.row().classes("iso-ask"):
        own = ui.button("Play your own", icon="edit_note").props("outline no-caps")
        own.on_click(lambda: ui.navigate.to(TRY.replace("{}", OWN)))


def _before(runs: Sequence[Run], names: Mapping[str, str]) -> None:
    if not runs:
        empty("Nothing was played yet.", "Choose an experiment above.", icon="science")
    for run in runs:
        with ui.element("div").classes("iso-key iso-play"):
            with ui.element("div").classes("iso-key-who"):
                ui.link(run.title, RUN.replace("{}", part(run.id))).classes("iso-strong")
                ui.label(run.command).classes("iso-code")
            with ui.element("div").classes("iso-key-what"):
                ui.label(f"{instant(run.asked_at)} UTC")
                ui.label(f"by {names.get(run.asked_by, run.asked_by)}").classes("iso-about")
            with ui.element("div").classes("iso-key-what"):
                _state(run.state)
                ui.label(run.problem or f"took {took(run)}").classes("iso-about")


def _state(state: str) -> None:
    ui.label(state).classes(f"iso-state is-{TONES.get(state, 'plain')}")


def _asking() -> ui.label:
    return ui.label("Asking the twin…").classes("iso-about").props('role="status"')


def _try(visit: Visit, wanted: str) -> None:
    """One experiment, and what may be changed before it is played."""
    place = ui.column().classes("iso-said")
    with place:
        asking = _asking()

    async def fill() -> None:
        with place:
            found = await shown(visit.api.items("experiments/packaged", Plan, most=MOST))
            asking.delete()
            if found is None:
                return
            plan = next((each for each in found if each.name == wanted), None)
            if wanted == OWN:
                await _own(visit, found)
            elif plan is None:
                with banner("bad", f"There is no experiment {wanted}."):
                    pass
            else:
                _packaged(visit, plan)

    ui.timer(0.05, fill, once=True)


def _packaged(visit: Visit, plan: Plan) -> None:
    with ui.element("div").classes("iso-grid"):
        with card(plan.title):
            if plan.question:
                ui.label(plan.question)
            facts([
                ("Policies", plan.policies), ("Loads", [f"{load:g}" for load in plan.loads]),
                ("Points", plan.points), ("Simulations", count(plan.runs)),
                ("Requests", count(plan.requests)), ("Takes about", duration(plan.about_s * 1000)),
            ])
            with ui.expansion("The file", icon="description").classes("iso-expansion"):
                ui.label(plan.content).classes("iso-code iso-lines").props("tabindex=0")
        with card("Change what you like"):
            _form(visit, plan.policies, plan.name, content=None)


async def _own(visit: Visit, plans: Sequence[Plan]) -> None:
    """A scenario of one's own: begins as the packaged one, or as one that was played before."""
    policies = tuple(dict.fromkeys(name for each in plans for name in each.policies))
    usual = next((each.content for each in plans if each.name == "eight-sites"), "")
    earlier = visit.query.get("of")
    content: str | None = usual
    if earlier:
        content = await shown(visit.api.text(f"experiments/{part(earlier)}/scenario"))
    with card("Your own"), ui.element("div").classes("iso-wide"):
        ui.label(
            "A scenario or an experiment as TOML. It may name packaged files only; every key is in"
            " docs/twin-world.md."
        ).classes("iso-about")
        _form(visit, policies, visit.query.get("name", "my-scenario"), content=content or usual)


def _form(
    visit: Visit, policies: Sequence[str], wanted: str, *, content: str | None
) -> None:
    asked_for = [0]

    async def asked(values: Mapping[str, str]) -> None:
        body = order_in({"wanted": wanted, **values})
        plan = await visit.api.post("experiments/plans", Plan, body)
        asked_for[0] += 1
        once = f"console-{ui.context.client.id}-{asked_for[0]}"  # the button twice is one run

        async def begin() -> None:
            run = await visit.api.post("experiments", Run, body, once=once)
            ui.navigate.to(RUN.replace("{}", part(run.id)))

        ask(f"Play {plan.title}?", effects_of(plan), "Play it", begin)

    own = () if content is None else (
        Field(name="wanted", label="Name", value=wanted, hint="a-z, 0-9 and hyphens"),
        Field(name="content", label="Scenario", value=content, lines=18),
    )
    form(
        (
            *own,
            Field(name="policies", label="Policies", several=True,
                  options={name: name for name in policies}, hint="empty: all of the experiment"),
            Field(name="loads", label="Loads", hint="as 0.5, 0.8; empty: those of the experiment"),
            Field(name="requests", label="Requests at each point",
                  hint="empty: as the experiment has it"),
            Field(name="seed", label="Seed", hint="empty: the experiment's"),
        ),
        "See what it will do", asked,
    )


async def _one(visit: Visit, run_id: str) -> None:
    path = f"experiments/{part(run_id)}"
    run = await shown(visit.api.get(path, Run))
    if run is None:
        return
    names = await shown(names_of(visit.api)) or {}
    with card(run.title):
        if run.is_open:
            progress = Far(visit, run, named=False)
            said = ui.column().classes("iso-said")

            async def look() -> None:
                said.clear()
                with said:
                    present = await shown(visit.api.get(path, Run))
                if present is None:
                    return
                if present.is_open:
                    progress.show(present)
                else:
                    timer.deactivate()
                    ui.navigate.to(RUN.replace("{}", part(run_id)))

            timer = ui.timer(LOOK_AGAIN_S, look, immediate=False)
        else:
            _state(run.state)
            if run.problem:
                with banner("bad", run.problem):
                    pass
        facts([
            ("Asked by", names.get(run.asked_by, run.asked_by)),
            ("Asked at (UTC)", instant(run.asked_at)), ("Took", took(run)),
            ("Simulations", count(run.runs)), ("Command", run.command),
        ])
        if not run.is_open:
            _after(visit, run)
    if run.state == "done":
        await _came_of_it(visit, run)


def _after(visit: Visit, run: Run) -> None:
    """What may be done with a run that is over."""
    async def remove() -> None:
        await visit.api.delete(f"experiments/{part(run.id)}", Run)
        ui.navigate.to("/experiments")

    again = TRY.replace("{}", part(run.wanted))
    if run.own:
        again = f"{TRY.replace('{}', OWN)}&of={part(run.id)}&name={part(run.wanted)}"
    gone = Effect(text="Its report and its figures are gone for good; the audit log keeps that it"
                  " was played.", hurts=True)
    with ui.row().classes("iso-ask"):
        ui.button("Play it again", on_click=lambda: ui.navigate.to(again)).props("outline no-caps")
        ui.button(
            "Remove it", on_click=lambda: ask(f"Remove {run.title}?", [gone], "Remove it", remove)
        ).props("outline no-caps").classes("iso-act")


async def _came_of_it(visit: Visit, run: Run) -> None:
    results = await shown(visit.api.get(f"experiments/{part(run.id)}/results", Results))
    if results is None:
        return
    if results.findings:
        with card("What follows"), ui.element("ul").classes("iso-findings"):
            for each in results.findings:
                tone = "" if each.met is None else "is-met" if each.met else "is-missed"
                word = "" if each.met is None else "Met: " if each.met else "Missed: "
                with ui.element("li").classes(tone):
                    ui.label(word + each.text)
    with card():
        table(
            [Column(title=name, kind="text" if name in WORDS_COLUMNS else "number")
             for name in results.columns],
            results.rows, title="Figures", empty="Nothing came of it.",
            hint="Times are simulated milliseconds to the first token.",
        )
    address = f"/experiments/{part(run.id)}/report"
    with card("Report"):
        with ui.row().classes("iso-ask"):
            ui.link("Open it by itself", address, new_tab=True)
            ui.label(f"made at commit {results.commit}").classes("iso-about")
        frame = ui.element("iframe").classes("iso-report").props('sandbox="" title="Report"')
        frame.props["src"] = address
        ui.run_javascript(RECOLOUR)
