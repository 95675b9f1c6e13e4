"""Bars to scale: the time of one request step by step, and sums of terms beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass

from nicegui import ui

from isochrone.console.parts.words import duration

TONES = 6  # how many there are in console.css


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From `begin_ms` to `end_ms`, counted from the beginning."""

    name: str
    begin_ms: float
    end_ms: float


def timeline(steps: Sequence[Step]) -> None:
    """One bar a step, each where it lies in the whole."""
    whole_ms = max((step.end_ms for step in steps), default=0.0) or 1.0
    with ui.element("div").classes("iso-timeline"):
        for number, step in enumerate(steps):
            ui.label(step.name).classes("iso-bar-name")
            with ui.element("div").classes("iso-track"):
                left = 100 * step.begin_ms / whole_ms
                width = max(100 * (step.end_ms - step.begin_ms) / whole_ms, 0.3)
                ui.element("div").classes(f"iso-bar iso-tone-{number % TONES}").style(
                    f"margin-left: {min(left, 99.7):.2f}%; width: {min(width, 100 - left):.2f}%"
                )
            ui.label(duration(step.end_ms - step.begin_ms)).classes("iso-bar-value")


def stacked(terms: Sequence[str], rows: Sequence[tuple[str, str, Sequence[float]]]) -> None:
    """Rows of (name, what is said beside it, values in milliseconds, one a term), with a legend."""
    whole = max((sum(values) for _, _, values in rows), default=0.0) or 1.0
    with ui.row().classes("iso-legend"):
        for number, term in enumerate(terms):
            with ui.element("span"):
                ui.element("i").classes(f"iso-tone-{number % TONES}")
                ui.label(term)
    with ui.element("div").classes("iso-timeline"):
        for name, beside, values in rows:
            ui.label(name).classes("iso-bar-name")
            said = ", ".join(
                f"{term} {duration(value)}" for term, value in zip(terms, values, strict=True)
            )
            track = ui.element("div").classes("iso-track").props('role="img"')
            track.props["aria-label"] = track.props["title"] = said
            with track:
                for number, value in enumerate(values):
                    if value > 0:
                        ui.element("div").classes(f"iso-bar iso-tone-{number % TONES}").style(
                            f"width: {100 * value / whole:.2f}%"
                        )
            ui.label(beside).classes("iso-bar-value")
