"""`isochrone replay`: sends a recorded trace to a running cloud, open loop, and sums up."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from isochrone.cli.cloud import Cloud, JsonOption, KeyOption, StateOption, UrlOption, find_cloud
from isochrone.cli.line import MOST, LimitOption
from isochrone.cli.outputs import check_outputs
from isochrone.core.errors import InvalidInput, NotFound, Unavailable
from isochrone.core.percent import percent

if TYPE_CHECKING:
    from isochrone.replay.client import Ingress, Sent, Target
    from isochrone.replay.report import Group, Report, Spread
    from isochrone.replay.session import Plan, Ready
    from isochrone.replay.trace import Trace
    from isochrone.replay.verify import Verdict

BOOKED_WITHIN_S = 90.0
POLL_S = 1.0
CLOCKS_APART_NS = 600 * 1_000_000_000  # our clock against those of the gateways


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone replay azure-conv-sample --limit 300 --speed 4 --verify` · "
        "`isochrone replay mooncake.jsonl.gz --limit 200 --out result.json`"
    )(replay)


def replay(
    trace: Annotated[str, typer.Argument(help="A recorded trace: a file or a packaged name.")],
    speed: Annotated[float, typer.Option(help="2 halves the time between arrivals.")] = 1.0,
    limit: LimitOption = None,
    start: Annotated[
        int, typer.Option(min=0, max=MOST, help="Leave out this many rows first.")
    ] = 0,
    factor: Annotated[
        float | None,
        typer.Option(help="Scale lengths by this. [default: the longest row fits the model]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts' words.")] = 0,
    model: Annotated[str | None, typer.Option(help="Model. [default: the first]")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Enter here only; may be repeated. [default: all]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file of the result. [default: replay-RUN.json]")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Then check that the book has each request once.")
    ] = False,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a recorded trace at its recorded moments, however slow the answers are.

    Prompts have the recorded lengths and, where recorded, the recorded shared prefixes; all lengths
    are scaled by one factor to fit the model. Ends with a table and a JSON file. Known formats:
    the Azure LLM inference traces (CSV) and Mooncake's (JSON lines), plain or gzip.
    """
    from isochrone.replay.client import Target
    from isochrone.replay.session import Plan

    rows = _trace(trace).window(start=start, limit=limit)
    run = new_run()
    path = out or Path(f"replay-{run}.json")
    check_outputs({"--out": path})
    cloud = find_cloud(state, url, key)
    name, context_tokens = _model(cloud, model)
    plan = Plan(run=run, context_tokens=context_tokens, speed=speed, factor=factor, seed=seed)
    plan.check()
    target = Target(
        ingresses=_ingresses(cloud, site or []), api_key=cloud.api_key, model=name
    )
    began_ns = time.time_ns()
    report = _play(rows, plan, target, quiet=as_json)
    keep(report, path, as_json=as_json)
    if verify:
        _verify(cloud, report, began_ns, quiet=as_json)


def _play(rows: "Trace", plan: "Plan", target: "Target", *, quiet: bool) -> "Report":
    import asyncio

    from isochrone.adapters.clock import SystemClock
    from isochrone.adapters.network.sockets import SocketNetwork
    from isochrone.replay.session import replay as play

    with _progress(rows, plan, target, quiet=quiet) as (on_ready, on_sent):
        return asyncio.run(
            play(
                rows, plan, target, SocketNetwork(), SystemClock(), on_ready=on_ready,
                on_sent=on_sent,
            )
        )


def new_run() -> str:
    """A name that no other replay has, not even one of this second: requests are found by it."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"


def keep(report: "Report", path: Path, *, as_json: bool) -> None:
    """Print the result and write it to its file; neither costs the other."""
    try:
        if as_json:
            print(report.json().decode(), flush=True)
        else:
            _print_report(report)
    finally:
        _write(report, path)
    if not as_json:
        print(f"written to {path}")


def _write(report: "Report", path: Path) -> None:
    from isochrone.adapters.disk.whole_file import whole_file

    try:
        with whole_file(path) as part:
            part.write_bytes(report.json())
    except OSError as error:
        raise InvalidInput([f"--out {path}: cannot be written: {error.strerror}"]) from error


def _trace(wanted: str) -> "Trace":
    from isochrone.adapters.packaged import DATA
    from isochrone.replay.trace import parse_trace
    from isochrone.wiring.home import expanded
    from isochrone.wiring.twin_files import unpacked_of

    path = expanded(Path(wanted))
    if not path.exists():
        files = [each for each in (DATA / "traces").iterdir() if each.suffix in (".csv", ".gz")]
        packaged = {each.name.split(".")[0]: each for each in files}
        if wanted not in packaged:
            raise InvalidInput(
                [f"there is no trace file {wanted}, and no packaged trace of this name; packaged: "
                 f"{', '.join(sorted(packaged))}"]
            )
        path = packaged[wanted]
    return parse_trace(unpacked_of(path), wanted)


def _model(cloud: Cloud, wanted: str | None) -> tuple[str, int]:
    """Name and context of the model to ask for."""
    models = [one for one in cloud.api.items("models") if one["kind"] == "chat"]
    for one in models:
        if wanted in (None, one["name"]):
            return one["name"], one["context_tokens"]
    known = ", ".join(one["name"] for one in models) or "none"
    raise NotFound(f"there is no chat model {wanted or ''}; known: {known}")


def _ingresses(cloud: Cloud, wanted: list[str]) -> "tuple[Ingress, ...]":
    from isochrone.replay.client import Ingress

    places = dict(cloud.endpoints())
    unknown = [name for name in wanted if name not in places]
    if unknown or not places:
        raise InvalidInput(
            [f"there is no site {', '.join(unknown)}; known sites: {', '.join(places) or 'none'}"]
        )
    found = []
    for name in wanted or places:
        parts = urlsplit(places[name])
        tls = parts.scheme == "https"
        found.append(
            Ingress(
                name=name, host=parts.hostname or "", port=parts.port or (443 if tls else 80),
                tls=tls, base_path=parts.path.rstrip("/"),
            )
        )
    return tuple(found)


@contextmanager
def _progress(
    trace: "Trace", plan: "Plan", target: "Target", *, quiet: bool
) -> "Iterator[tuple[Callable[[Ready], None], Callable[[Sent], None]]]":
    """A progress bar on standard error, and what to call when rows are ready and sent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, disable=quiet or not console.is_terminal,
    )
    task = bar.add_task("measuring prompt lengths", total=len(trace.rows))
    failed = 0

    def on_ready(ready: "Ready") -> None:
        console.print(
            f"{len(trace.rows)} requests to {target.model} over {ready.last_at_s:.0f} s at "
            f"{len(target.ingresses)} sites; lengths x {ready.scaled.factor:.3f}, speed x "
            f"{plan.speed:g}"
        )
        bar.update(task, description="replaying")

    def on_sent(sent: "Sent") -> None:
        nonlocal failed
        failed += sent.error is not None
        bar.update(task, advance=1, description=f"replaying, {failed} failed")

    with bar:
        yield on_ready, on_sent


def _print_report(report: "Report") -> None:
    from isochrone.cli.show import print_table

    print_table(
        ("served at", "requests", "finished", "TTFT p50", "p90", "p99", "total p50", "p90", "p99",
         "tokens", "tokens/s"),
        [_row(group) for group in (*report.by_site, report.whole)],
        title=f"{report.trace}: {report.wall_s:.1f} s (times in ms)",
    )
    if report.errors:
        print_table(("error", "requests"), list(report.errors.items()))
    altered = len(report.clipped_rows) + len(report.lifted_rows)
    print(
        f"lengths x {report.factor:.3f}; {altered} of {report.whole.requests} rows altered "
        f"({len(report.clipped_rows)} clipped, {len(report.lifted_rows)} lifted), "
        f"{len(report.bad_rows)} rows of the file left out"
    )
    print(
        f"lengths off by {_percent(report.input_error)} (prompts) and "
        f"{_percent(report.output_error)} (answers); {_percent(report.cached_share)} of prompt "
        f"tokens were cached; sent late by {report.late_ms.p99 or 0:.1f} ms at p99"
    )


def _row(group: "Group") -> tuple[object, ...]:
    def three(spread: "Spread") -> tuple[float | None, ...]:
        return spread.p50, spread.p90, spread.p99

    name = {"-": "(no site)"}.get(group.name, group.name)
    return (
        name, group.requests, group.finished, *three(group.ttft_ms), *three(group.total_ms),
        group.output_tokens, group.output_tok_s,
    )


def _percent(share: float | None) -> str:
    return "unknown" if share is None else percent(share)


def _verify(cloud: Cloud, report: "Report", began_ns: int, *, quiet: bool) -> None:
    """Wait until the book agrees with what was sent; raises Unavailable when it does not."""
    verdict = _verdict(cloud, report, began_ns)
    deadline = time.monotonic() + BOOKED_WITHIN_S
    while not verdict.agrees and time.monotonic() < deadline:
        time.sleep(POLL_S)
        verdict = _verdict(cloud, report, began_ns)
    if not verdict.agrees:
        raise Unavailable(
            f"the book does not agree: {len(verdict.lost)} lost, {len(verdict.double)} double, "
            f"{len(verdict.unlike)} with other tokens, {len(verdict.unknown)} never sent"
        )
    if not quiet:
        print(
            f"the book agrees: {verdict.booked} requests booked once, 0 lost, 0 double"
            + (f", {len(verdict.unheard)} never reached a gateway" if verdict.unheard else "")
        )


def _verdict(cloud: Cloud, report: "Report", began_ns: int) -> "Verdict":
    import msgspec

    from isochrone.replay.verify import BookedRow, verify

    rows = list(cloud.api.items("usage", {"by": "request", "since": began_ns - CLOCKS_APART_NS}))
    return verify(report, msgspec.convert(rows, list[BookedRow]))
