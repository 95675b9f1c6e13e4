"""A week's load in tokens/s as a rate curve: its shape, at whatever rate is wanted.

M365's table (SageServe): CSV with model_family, env, t_s and tokens_per_s_plotted. Production of
the first model family in it is taken. Its scale is unverified at the source and not used.
"""

from isochrone.core.errors import InvalidInput
from isochrone.twin.table import table_of
from isochrone.twin.workloads.fitted import MOST_S, Window

NEEDED = ("model_family", "env", "t_s", "tokens_per_s_plotted")
MOST_TOLD = 20
MOST_TOKENS_S = 1e12


def parse_token_week(text: str, source: str) -> tuple[tuple[Window, ...], float]:
    """Windows and period. Raises InvalidInput with all problems."""
    reader = table_of(text)
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise InvalidInput(
            [f"{source}: no column {name}; expected {', '.join(NEEDED)}" for name in missing]
        )
    points: dict[str, list[tuple[float, float]]] = {}
    problems: list[str] = []
    for row in reader:
        try:
            point = float(row["t_s"] or ""), float(row["tokens_per_s_plotted"] or "")
        except ValueError as error:
            problems.append(f"{source}, line {reader.line_num}: {error}")
            continue
        if not (abs(point[0]) <= MOST_S and 0.0 <= point[1] < MOST_TOKENS_S):
            problems.append(
                f"{source}, line {reader.line_num}: expected a time, and a load from 0 on"
            )
        elif row["env"] == "prod":
            points.setdefault(row["model_family"] or "", []).append(point)
    if problems:
        raise InvalidInput(problems[:MOST_TOLD])
    if not points:
        raise InvalidInput([f"{source}: has no row of env prod"])
    found = sorted(points[min(points)])
    step_s = (found[-1][0] - found[0][0]) / max(len(found) - 1, 1) or 300.0
    ends = [each[0] for each in found[1:]] + [found[-1][0] + step_s]
    windows = tuple(
        Window(start_s=at_s, end_s=end_s, rate_rps=load / 1000.0, family="Gamma", spread=1.0)
        for (at_s, load), end_s in zip(found, ends, strict=True) if load > 0 and end_s > at_s
    )
    if not windows:
        raise InvalidInput([f"{source}: has no load above 0"])
    return windows, ends[-1]
