"""The figures of an experiment as text: which columns it has, and Markdown for documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from isochrone.core.percent import percent
from isochrone.twin.experiments.experiment import IN_THE_ROW, Cell, Outcome, Results, told
from isochrone.twin.experiments.findings import findings_of

BYTES_PER_MB = 1_000_000.0
NONE_FOUND = "none found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    title: str
    value: Callable[[Outcome], Cell]
    digits: int = 0
    share: bool = False


EVERY: tuple[Column, ...] = (
    Column(title="case", value=lambda each: each.point.case or None),
    Column(title="workload", value=lambda each: each.row.workload),
    Column(title="load", value=lambda each: each.row.load, digits=2),
    Column(title="tenant", value=lambda each: each.tenant or None),
    Column(title="policy", value=lambda each: each.row.policy),
    Column(title="TTFT mean ms", value=lambda each: each.row.ttft_ms_mean),
    Column(title="p50", value=lambda each: each.row.ttft_ms_p50),
    Column(title="p90", value=lambda each: each.row.ttft_ms_p90),
    Column(title="p99", value=lambda each: each.row.ttft_ms_p99),
    Column(title="in time", value=lambda each: each.row.slo_attainment, share=True),
    Column(title="good/s", digits=1,
           value=lambda each: None if each.tenant else each.row.goodput_rps),
    Column(title="cached", share=True,
           value=lambda each: None if each.tenant else each.row.hit_rate),
    Column(title="over borders MB", value=lambda each: (
        None if each.row.cross_border_bytes is None
        else each.row.cross_border_bytes / BYTES_PER_MB
    )),
    Column(title="refused", value=lambda each: each.refused or None),
    Column(title="broken", value=lambda each: each.broken or None),
    Column(title="GPUs", value=lambda each: each.gpus),
)
# Where it was looked for: that no fleet keeps the objective is an answer, too.
SIZED = Column(title="GPUs for SLO", value=lambda each: None if each.tenant else (
    each.row.gpus_for_slo or NONE_FOUND
))
ALWAYS = ("workload", "load", "policy", "TTFT mean ms", "p50", "p90", "p99", "in time")


def columns_of(results: Results) -> list[Column]:
    """Those that say something here."""
    keys = dict.fromkeys(
        key for each in results.outcomes for key in each.point.varied if key not in IN_THE_ROW
    )
    varied = [Column(title=key, value=partial(_varied, key)) for key in keys]
    sized = () if results.slo_share is None else (SIZED,)
    return [
        column for column in (EVERY[0], *varied, *EVERY[1:], *sized)
        if column.title in ALWAYS
        or any(column.value(each) is not None for each in results.outcomes)
    ]


def _varied(key: str, outcome: Outcome) -> Cell:
    """As text: its digits are those that somebody wrote."""
    value = outcome.point.varied.get(key)
    return None if value is None else told(value)


def rows_of(results: Results, columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """The policy of each row, and its cells; a dash stands for what does not exist."""
    return [
        (each.row.policy, [_cell(column, column.value(each)) for column in columns])
        for each in results.outcomes
    ]


def _cell(column: Column, value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if column.share:
        return percent(value)
    return f"{value:,.{column.digits}f}"


def markdown_of(results: Results) -> str:
    """A section of a document: the question, what follows, and the table."""
    columns = columns_of(results)
    played = f", {results.requests:,} requests a point" if results.requests else ""
    parts = [
        f"## {results.title}", "", results.question, "",
        f"    {results.command}", "", f"Commit {results.commit}{played}.", "",
    ]
    for each in findings_of(results):
        mark = "" if each.good is None else "**Met.** " if each.good else "**Missed.** "
        parts.append(f"- {mark}{each.text}")
    parts += ["", *(f"{note}\n" for note in results.notes)]
    parts.append("| " + " | ".join(column.title for column in columns) + " |")
    parts.append("|" + "---|" * len(columns))
    parts += ["| " + " | ".join(cells) + " |" for _, cells in rows_of(results, columns)]
    return "\n".join(parts) + "\n"
