"""Explain: why one request ran where it ran, what it used and cost; and which ones came in lately.

The page that is opened first when a customer calls: all that `isochrone explain` tells.
"""

import msgspec
from nicegui import ui

from isochrone.console.api import Api, part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.bars import Step, stacked, timeline
from isochrone.console.parts.facts import card, facts, figures
from isochrone.console.parts.notices import banner, empty, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, duration, instant, whole
from isochrone.core.errors import NotFound
from isochrone.core.metering.event import Outcome, Reporter, TokenSource
from isochrone.core.metering.words import OUTCOMES, REPORTERS, SOURCES
from isochrone.core.routing.bond import HomeVerdict
from isochrone.core.routing.choice import Because, Stopped
from isochrone.core.routing.words import (
    BECAUSE,
    HOMES,
    RULES,
    UNPAID,
    words_of_bounds,
    words_of_stop,
)

RECENT = 50
TERMS = ("round trip", "transfer", "queue", "prefill", "decode")


class Place(msgspec.Struct, frozen=True):
    """An ingress or a serving site."""

    site: str | None
    country: str | None
    plaintext: str = ""
    replica: str | None = None


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds since the request was received."""

    chosen_ms: float | None
    sent_ms: float | None
    first_byte_ms: float | None
    total_ms: float


class Tokens(msgspec.Struct, frozen=True):
    input_uncached: int
    input_cached: int
    output: int
    source: TokenSource


class Candidate(msgspec.Struct, frozen=True):
    site: str
    cost_ms: float
    rtt_ms: float
    rtt_source: str
    transfer_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float | None


class Refused(msgspec.Struct, frozen=True):
    """`rule` is text: a gateway of a later release may have more rules."""

    site: str
    rule: str
    detail: str


class RunnerUp(msgspec.Struct, frozen=True):
    site: str
    cost_ms: float


class Bond(msgspec.Struct, frozen=True):
    cached_tokens: int
    prompt_tokens: int
    verdict: HomeVerdict
    home: str | None
    limit_ms: float


class Foretold(msgspec.Struct, frozen=True):
    """A first token as expected and as it came, from when its site was chosen."""

    site: str
    since_ms: float
    predicted_ttft_ms: float
    actual_ttft_ms: float


class Decision(msgspec.Struct, frozen=True):
    policy_id: str
    ground: str
    residency: tuple[str, ...]
    transit: tuple[str, ...]
    caches: tuple[str, ...] | None
    logs: tuple[str, ...]
    narrowed: tuple[str, ...]
    narrowed_transit: tuple[str, ...]
    is_full: bool
    eligible: int
    runner_up: RunnerUp | None
    candidates: tuple[Candidate, ...]
    refused: tuple[Refused, ...]
    tried: tuple[Refused, ...]
    allowed_exists: bool
    elsewhere: int
    predicted_ttft_ms: float | None
    actual_ttft_ms: float | None
    since_ms: float
    foretold: tuple[Foretold, ...]
    bond: Bond | None
    queued_ms: float
    because: Because | None


class Classes(msgspec.Struct, frozen=True):
    """`because` is text: a gateway of a later release may have more reasons."""

    wanted: str
    allowed: str
    served: str
    because: str | None


class PriceLine(msgspec.Struct, frozen=True):
    name: str
    quantity: int
    adjustments: tuple[str, ...]
    amount: str


class Price(msgspec.Struct, frozen=True):
    currency: str
    amount: str
    lines: tuple[PriceLine, ...]
    unpriced: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    """What GET /requests/{id} says, as far as it is shown."""

    id: str
    org_id: str
    project_id: str
    key_id: str
    client_request_id: str | None
    endpoint: str
    stream: bool
    class_: str = msgspec.field(name="class")
    classes: Classes | None
    model: str
    revision: str | None
    received_at: int
    ingress: Place
    serving: Place
    timings: Timings
    tokens: Tokens
    outcome: Outcome
    status: int
    reason: str | None
    reporter: Reporter
    attempts: int
    stops: tuple[Stopped, ...]
    decision: Decision | None
    price: Price | None


class Row(msgspec.Struct, frozen=True):
    """A request in the list of recent ones."""

    id: str
    received_at: int
    model: str
    class_: str = msgspec.field(name="class")
    ingress: str
    site: str | None
    country: str | None
    first_byte_ms: float | None
    total_ms: float
    output: int
    outcome: str
    reason: str | None


async def build(visit: Visit) -> None:
    wanted = visit.query.get("id", "").strip()
    title("Explain", "Why a request ran where it ran, what it used, and what it cost")
    _ask(wanted)
    if wanted:
        found = await shown(_load(visit.api, wanted))
        if found is not None:
            _explain(found)
    else:
        await _recent(visit)


async def _load(api: Api, wanted: str) -> Explanation:
    """Raises NotFound, also for what is part of a path and can be no id."""
    if "/" in wanted:
        raise NotFound(f"no request {wanted!r} is booked: ids have no '/'")
    return await api.get(f"requests/{part(wanted)}", Explanation)


def _ask(wanted: str) -> None:
    with ui.row().classes("iso-ask"):
        field = ui.input(
            "Request id", value=wanted, placeholder="from the header x-isochrone-request"
        ).props("outlined dense clearable").classes("iso-grow iso-code")

        def go() -> None:
            ui.navigate.to(f"/explain?id={part(str(field.value or '').strip())}")

        field.on("keydown.enter", go)
        ui.button("Explain", on_click=go).props("unelevated no-caps")
        if wanted:
            ui.link("Recent requests", "/explain")


async def _recent(visit: Visit) -> None:
    rows = await shown(visit.api.items("usage", Row, most=RECENT, order="newest"))
    if rows is None:
        return
    with card():
        table(
            (
                Column(title="Request", kind="link", link="/explain?id={}"),
                Column(title="Received (UTC)"), Column(title="Model"), Column(title="Class"),
                Column(title="Entered"), Column(title="Served"),
                Column(title="First byte", kind="number"), Column(title="Total", kind="number"),
                Column(title="Tokens out", kind="number"), Column(title="Outcome", kind="state"),
            ),
            [
                (
                    row.id, instant(row.received_at), row.model, row.class_, row.ingress,
                    row.site, duration(row.first_byte_ms), duration(row.total_ms), row.output,
                    row.outcome,
                )
                for row in rows
            ],
            title="Recent requests", empty="Nothing was asked yet.",
            hint="Send something: `isochrone chat 'Hello!'`. A request shows here when it is over.",
        )


def _explain(found: Explanation) -> None:
    served = found.serving
    decision = found.decision
    first_ms = found.timings.first_byte_ms
    figures([
        ("Outcome", found.outcome.replace("_", " "), f"status {found.status}: "
         f"{found.reason or OUTCOMES[found.outcome]}"),
        ("Served at", served.site or "nowhere", f"{served.country or 'no country'}, entered at "
         f"{found.ingress.site} ({found.ingress.country or 'no country'})"),
        ("First token" if found.stream else "First byte", duration(first_ms),
         _predicted(decision, found.stream)),
        ("Whole answer", duration(found.timings.total_ms), _tries(found)),
        ("Tokens", f"{count(found.tokens.input_uncached + found.tokens.input_cached)} + "
         f"{count(found.tokens.output)}", f"in and out, of the input "
         f"{count(found.tokens.input_cached)} cached"),
        *_cost(found.price),
    ])
    with card("Time"):
        timeline(_steps(found))
        for line in () if decision is None else _went_on(decision):
            ui.label(line).classes("iso-about")
        if decision is not None and decision.queued_ms:
            ui.label(
                f"Of this {duration(decision.queued_ms)} waiting for its turn at an engine."
            ).classes("iso-about")
    if decision is None:
        with banner("info", "No decision was recorded: no site was considered, or what it was "
                    "chosen from has not been reported."):
            pass
    else:
        _choice(decision)
        _refusals(decision)
    with ui.element("div").classes("iso-grid"):
        _record(found)
        if found.price is not None:
            _price(found.price)


def _predicted(decision: Decision | None, stream: bool) -> str:
    """How right the prediction was that the first token was held to."""
    if decision is not None and decision.foretold:
        first = decision.foretold[0]
        return f"at {first.site} {_held_to(first.predicted_ttft_ms, first.actual_ttft_ms)}"
    if decision is None or decision.predicted_ttft_ms is None:
        return "nothing was predicted"
    if not stream:
        return f"first token predicted {duration(decision.predicted_ttft_ms)}, not seen"
    said = _held_to(decision.predicted_ttft_ms, decision.actual_ttft_ms)
    if not decision.since_ms:
        return said
    return f"chosen after {duration(decision.since_ms)}, then {said}"


def _held_to(predicted_ms: float, actual_ms: float | None) -> str:
    said = f"predicted {duration(predicted_ms)}"
    if actual_ms is None or predicted_ms <= 0:
        return said
    off = (actual_ms - predicted_ms) / predicted_ms
    return f"{said}; {abs(off):.0%} {'later' if off > 0 else 'sooner'}"


def _went_on(decision: Decision) -> list[str]:
    """Of a stream that was lost, how right the predictions were of the sites that went on."""
    last = decision.foretold[1:]
    said = [
        (each.site, each.since_ms, each.predicted_ttft_ms, each.actual_ttft_ms) for each in last
    ]
    ends = decision.candidates[:1] if decision.foretold else ()
    if ends and decision.predicted_ttft_ms is not None and decision.actual_ttft_ms is not None:
        said.append(
            (ends[0].site, decision.since_ms, decision.predicted_ttft_ms, decision.actual_ttft_ms)
        )
    return [
        f"It went on at {site}, chosen after {duration(since_ms)}: its first token came after "
        f"{duration(actual_ms)} more, {_held_to(predicted_ms, actual_ms)}."
        for site, since_ms, predicted_ms, actual_ms in said
    ]


def _tries(found: Explanation) -> str:
    return "one try" if found.attempts <= 1 else f"{found.attempts} tries"


def _cost(price: Price | None) -> list[tuple[str, str, str]]:
    return [] if price is None else [(f"Price, {price.currency}", price.amount, "by itself")]


def _steps(found: Explanation) -> list[Step]:
    times, begin, steps = found.timings, 0.0, []
    for name, at in (
        ("choose a site", times.chosen_ms), ("send it there", times.sent_ms),
        ("wait for the first byte", times.first_byte_ms), ("stream the answer", times.total_ms),
    ):
        if at is not None:
            steps.append(Step(name=name, begin_ms=min(begin, at), end_ms=at))
            begin = at
    return steps


def _choice(decision: Decision) -> None:
    whole = decision.is_full
    with card("Sites that could serve it, soonest first" if whole else "The chosen site"):
        if decision.because is not None:
            ui.label(f"Chosen: {BECAUSE[decision.because]}.").classes("iso-about")
        if not decision.candidates:
            empty(
                "An allowed site exists, but none was healthy." if decision.allowed_exists
                else "No site that serves the model is allowed.", icon="block",
            )
            return
        stacked(TERMS, [
            (
                f"→ {each.site}" if number == 0 else each.site, duration(each.cost_ms),
                (each.rtt_ms, each.transfer_ms, each.queue_ms, each.prefill_ms, each.decode_ms),
            )
            for number, each in enumerate(decision.candidates)
        ])
        chosen = decision.candidates[0]
        age = "" if chosen.digest_age_ms is None else (
            f" What was known of {chosen.site} was {duration(chosen.digest_age_ms)} old."
        )
        ui.label(f"Round trip there is {chosen.rtt_source}.{age}").classes("iso-about")
        if not whole:
            ui.label(_others(decision)).classes("iso-about")


def _others(decision: Decision) -> str:
    if decision.runner_up is None:
        return "It was the only site that could serve it."
    return (
        f"It was chosen from {decision.eligible} sites; the next best was "
        f"{decision.runner_up.site}, expected after {duration(decision.runner_up.cost_ms)}. "
        "A request with the header x-isochrone-explain: full has all of them recorded."
    )


def _refusals(decision: Decision) -> None:
    columns = (Column(title="Site"), Column(title="Rule", kind="code"), Column(title="Fact"),
               Column(title="Meaning"))
    known = {str(rule): meaning for rule, meaning in RULES.items()}
    for name, listed, none in (
        ("Sites refused", decision.refused, "No site that serves the model was refused."),
        ("Tries that failed before, in order", decision.tried, ""),
    ):
        if listed or none:
            with card():
                table(
                    columns,
                    [
                        (each.site, each.rule, each.detail,
                         known.get(each.rule, "see docs/explain.md of the gateway's release"))
                        for each in listed
                    ],
                    title=name, empty=none,
                )


def _record(found: Explanation) -> None:
    decision = found.decision
    pairs: list[tuple[str, object]] = [
        ("Request", found.id), ("Received", f"{instant(found.received_at)} UTC"),
        ("Asked", f"{found.endpoint} of {found.model or 'an unknown model'}, "
         f"{'streamed' if found.stream else 'not streamed'}, class "
         f"{found.class_ if found.classes is None else found.classes.wanted}"),
        *_classes(found.classes),
        ("Entered", f"{found.ingress.site}: {found.ingress.plaintext}"),
        *(("Stopped", words_of_stop(each)) for each in found.stops),
        ("Replica", found.serving.replica), ("Weights", found.revision),
    ]
    if decision is not None:
        pairs += [
            ("Policy", policy(decision)),
            ("Ground", f"{decision.ground} (policy {decision.policy_id}, sites, round trips)"),
        ]
        pairs += _bond(decision.bond)
    pairs += [
        ("Key", found.key_id), ("Project", f"{found.org_id} / {found.project_id}"),
        ("Client's id", found.client_request_id), ("Tokens", SOURCES[found.tokens.source]),
        ("Record", REPORTERS[found.reporter]),
    ]
    with card("Record"):
        facts(pairs)


def policy(decision: Decision) -> str:
    """What bound it: the policy's axes, and what the request's own headers narrowed."""
    return words_of_bounds(
        decision.residency, decision.transit, decision.caches or (), decision.logs,
        decision.narrowed, decision.narrowed_transit,
    )


def _classes(classes: Classes | None) -> list[tuple[str, object]]:
    """How it came to be served in another class than the one that it asked for."""
    if classes is None:
        return []
    said: list[tuple[str, object]] = []
    if classes.allowed != classes.wanted:
        said.append(("Class asked for", f"{classes.wanted}, which the key does not have; it has "
                     f"{classes.allowed}"))
    if classes.because is not None:
        known = {str(name): why for name, why in UNPAID.items()}
        why = known.get(classes.because, classes.because)
        said.append(("Class", f"{classes.served} instead of {classes.allowed}: {why}"))
    return said


def _bond(bond: Bond | None) -> list[tuple[str, object]]:
    if bond is None:
        return []
    said: list[tuple[str, object]] = [(
        "Prefix", f"{bond.cached_tokens} of about {bond.prompt_tokens} prompt tokens were believed "
        "to be cached there",
    )]
    home = HOMES[bond.verdict].format(home=bond.home, limit=bond.limit_ms)
    return [*said, ("Session", home)] if home else said


def _price(price: Price) -> None:
    with card("Price"):
        table(
            (Column(title="For"), Column(title="Quantity", kind="number"),
             Column(title="Adjusted by"), Column(title=price.currency, kind="number")),
            [
                (line.name, whole(line.quantity), line.adjustments, line.amount)
                for line in price.lines
            ],
            empty="It costs nothing.",
        )
        ui.label(
            "By itself, at the sheet in force: what is once a period is not in it. "
            "Charges are made by the hour."
        ).classes("iso-about")
        if price.unpriced:
            with banner("warn", f"No sheet prices {', '.join(price.unpriced)}."):
                pass
