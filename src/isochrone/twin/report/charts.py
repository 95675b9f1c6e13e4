"""Charts as SVG text: lines over a quantity, and bars. Nothing is fetched, nothing is scripted."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Protocol

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 40
# Apart for those who see no red or green, too (Okabe and Ito), then others. All are seen on white
# and on dark blue; the page says what own colours are, as they differ on dark ground.
COLOURS = (
    "#1f83c1", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#9c7f10", "#8f62c4",
    "#77808f", "#a6761d",
)
OWN = {"ours": "var(--own)", "bound": "var(--bound)", "campus": "#8a8f99"}
ARROW = 9.0  # its width
DASHED = frozenset({"bound"})


def colour_of(name: str, names: Sequence[str]) -> str:
    """The same for a policy in every chart of a report."""
    others = [each for each in names if each not in OWN]
    return OWN.get(name) or COLOURS[others.index(name) % len(COLOURS)]


def lines(
    series: Mapping[str, Sequence[tuple[float, float | None]]], *, x_title: str, y_title: str,
    names: Sequence[str], logarithmic: bool = False,
) -> str:
    """One line for each name. Where there is no value it has a gap, and an arrow at the upper edge:
    never. `names` fix the colours."""
    values = [y for points in series.values() for _, y in points if y is not None]
    xs = sorted({x for points in series.values() for x, _ in points})
    if not values or not xs:
        return "<p class=none>Nothing to draw.</p>"
    low_x, high_x = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1.0
    ticks = _log_ticks(values) if logarithmic and min(values) > 0 else _ticks(values)
    low_y, high_y = ticks[0], ticks[-1]

    def at_x(x: float) -> float:
        return LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        if logarithmic and low_y > 0:
            part = (log10(y) - log10(low_y)) / ((log10(high_y) - log10(low_y)) or 1.0)
        else:
            part = (y - low_y) / ((high_y - low_y) or 1.0)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    parts = [_frame(ticks, at_y, y_title)]
    parts += [
        f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" class=m>{x:g}</text>' for x in xs
    ]
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" class=m>'
                 f"{escape(x_title)}</text>")
    for name, points in series.items():
        parts.append(_line(name, points, at_x, at_y, colour_of(name, names)))
    for x in xs:
        gone = [name for name, points in series.items() if (x, None) in points]
        parts += _nevers(gone, x, at_x(x), names)
    return _svg("".join(parts), f"{y_title} by {x_title}") + _legend(list(series), names)


def bars(
    values: Mapping[str, Mapping[str, float | None]], *, y_title: str, names: Sequence[str],
    never: str = "never",
) -> str:
    """Groups of bars: `values[group][name]`. Where that is None, the bar has no end and says
    `never`; a name that a group does not have has none."""
    there = [y for group in values.values() for y in group.values() if y is not None]
    if not there:
        all_ = f": {escape(never)}, all of them" if any(values.values()) else ""
        return f"<p class=none>Nothing to draw{all_}.</p>"
    ticks = _ticks([0.0, *there])

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - y / (ticks[-1] or 1.0) * (HEIGHT - TOP - BOTTOM)

    parts = [_frame(ticks, at_y, y_title)]
    wide = (WIDTH - LEFT - RIGHT) / len(values)
    shown = list(dict.fromkeys(name for group in values.values() for name in group))
    one = wide * 0.8 / max(len(shown), 1)
    for number, (group, of_group) in enumerate(values.items()):
        begin = LEFT + number * wide + wide * 0.1
        parts.append(
            f'<text x="{begin + wide * 0.4:.1f}" y="{HEIGHT - BOTTOM + 16}" class=m>'
            f"{escape(group[: max(int(wide / 6), 4)])}</text>"
        )
        for place, name in enumerate(shown):
            if name in of_group:
                y = of_group[name]
                told = f"{group}, {name}: {never if y is None else f'{y:,.4g}'}"
                parts.append(_bar(
                    begin + place * one, one * 0.9, None if y is None else at_y(y),
                    colour_of(name, names), told, never,
                ))
    return _svg("".join(parts), y_title) + _legend(shown, names)


def _bar(
    left: float, wide: float, top: float | None, colour: str, told: str, never: str
) -> str:
    """Without `top` it goes up to the edge, pale and open, with the word for that in it."""
    high = HEIGHT - BOTTOM - (0.0 if top is None else top)
    bar = f'<rect x="{left:.1f}" y="{top or 0.0:.1f}" width="{wide:.1f}" height="{high:.1f}"'
    title = f"<title>{escape(told)}</title>"
    if top is not None:
        return f'{bar} fill="{colour}">{title}</rect>'
    x, y = left + wide / 2 + 4, HEIGHT - BOTTOM - 8
    return (
        f'{bar} fill="{colour}" fill-opacity=".15" stroke="{colour}" stroke-dasharray="3 3">'
        f'{title}</rect><text transform="translate({x:.1f} {y:.1f}) rotate(-90)">'
        f"{escape(never)}</text>"
    )


def _line(
    name: str, points: Sequence[tuple[float, float | None]], at_x: "Scale", at_y: "Scale",
    colour: str,
) -> str:
    runs: list[list[str]] = [[]]
    dots = []
    for x, y in sorted(points, key=lambda point: point[0]):
        if y is None:
            runs.append([])
            continue
        runs[-1].append(f"{at_x(x):.1f},{at_y(y):.1f}")
        dots.append(
            f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="2.6" fill="{colour}">'
            f"<title>{escape(f'{name} at {x:g}: {y:,.4g}')}</title></circle>"
        )
    dash = ' stroke-dasharray="6 4"' if name in DASHED else ""
    width = 2.6 if name in OWN else 1.4
    return "".join(
        f'<polyline points="{" ".join(run)}" fill="none" stroke="{colour}" '
        f'stroke-width="{width}"{dash}/>'
        for run in runs if len(run) > 1
    ) + "".join(dots)


def _nevers(gone: Sequence[str], x: float, place: float, names: Sequence[str]) -> list[str]:
    """Their arrows side by side, as all point beyond the same edge."""
    wide = (len(gone) - 1) * ARROW
    left = min(place - wide / 2, WIDTH - ARROW - wide)
    return [
        f'<path d="M{left + number * ARROW:.1f} 0l4 9h-8Z" fill="{colour_of(name, names)}">'
        f"<title>{escape(f'{name} at {x:g}: never')}</title></path>"
        for number, name in enumerate(gone)
    ]


def _frame(ticks: Sequence[float], at_y: "Scale", y_title: str) -> str:
    parts = []
    for tick in ticks:
        y = at_y(tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class=g />'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class=e>{_short(tick)}</text>'
        )
    parts.append(
        f'<text transform="translate(12 {HEIGHT / 2:.0f}) rotate(-90)" class=m>'
        f"{escape(y_title)}</text>"
    )
    return "".join(parts)


def _svg(inner: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inner}</svg>'
    )


def _legend(shown: Sequence[str], names: Sequence[str]) -> str:
    return "<p class=legend>" + " ".join(
        f'<span><i style="background:{colour_of(name, names)}"></i>{escape(name)}</span>'
        for name in shown
    ) + "</p>"


def _ticks(values: Sequence[float]) -> list[float]:
    low, high = min(0.0, *values), max(values)
    span = (high - low) or 1.0
    step = 10.0 ** floor(log10(span / 4))
    step = next(step * each for each in (1, 2, 2.5, 5, 10) if span / (step * each) <= 5)
    first = floor(low / step)
    return [each * step for each in range(first, ceil(high / step - 1e-9) + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    whole = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    if len(whole) > 2:
        return whole
    return [each for power in whole for each in (power, 2 * power, 5 * power)][:-2]


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


class Scale(Protocol):
    """From a value to its place in the picture."""

    def __call__(self, value: float, /) -> float: ...
