"""The report of one or more experiments: a page of HTML by itself, without scripts or requests."""

from collections.abc import Sequence
from html import escape

from isochrone.twin.experiments.experiment import Outcome, Results
from isochrone.twin.experiments.findings import Finding, findings_of, groups_of
from isochrone.twin.report.charts import bars, lines
from isochrone.twin.report.words import columns_of, rows_of
from isochrone.twin.report.world_map import Ring, world_map

LIGHT = """color-scheme:light;--text:#1b1b1f;--soft:#40434c;--quiet:#5d626d;--ground:#f6f7f9;
--surface:#fff;--line:#e1e4ea;--rule:#d5d9e0;--code:#eceff3;--land:#dfe4ea;--own:#c8102e;
--bound:#111;--good:#087443;--bad:#c8102e;--edge:#9aa1ad;--ours:#fff4f5"""
DARK = """color-scheme:dark;--text:#e8eef9;--soft:#a9b8d2;--quiet:#98a7c4;--ground:#081020;
--surface:#0e1930;--line:#1d2c4c;--rule:#33476f;--code:#132140;--land:#22355a;--own:#ff6b81;
--bound:#f2f5fa;--good:#3ddbb8;--bad:#ff8a80;--edge:#5a6c92;--ours:#2a1828"""
# Dark where its reader's system is, unless whoever shows it says otherwise (`data-theme`).
STYLE = f"""
:root{{{LIGHT}}}@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{DARK}}}}}
:root[data-theme=dark]{{{DARK}}}
""" + """
body{font:16px/1.5 system-ui,sans-serif;color:var(--text);margin:0;
background:var(--ground)}main{max-width:1080px;margin:auto;padding:24px}h1{font-size:30px;
margin:8px 0}h2{font-size:23px;margin:44px 0 4px;border-top:2px solid var(--rule);
padding-top:20px}h3{font-size:16px;margin:14px 0 2px}.lead{font-size:18px;color:var(--soft);
margin:4px 0 14px}.cards{display:grid;grid-template-columns:repeat(auto-fit,
minmax(min(440px,100%),1fr));gap:16px}figure,.box{background:var(--surface);
border:1px solid var(--line);border-radius:8px;padding:14px;margin:0}svg{width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--quiet)}.m{text-anchor:middle}.e{text-anchor:end}
.g{stroke:var(--line)}.legend{font-size:12.5px;margin:4px 0 0}.legend span{white-space:nowrap;
margin-right:10px}.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;
margin-right:4px}.map .l{fill:var(--land);stroke:var(--surface);stroke-width:.5}
.map .c{fill:#3a9fdc;opacity:.45}.map .s{fill:var(--own);opacity:.78;stroke:var(--surface)}
ul.findings{list-style:none;padding:0;margin:12px 0}ul.findings li{padding:7px 12px;
border-left:5px solid var(--edge);background:var(--surface);margin:5px 0;
border-radius:0 6px 6px 0}li.met{border-color:var(--good)!important}
li.missed{border-color:var(--bad)!important}b.met{color:var(--good)}b.missed{color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;background:var(--surface);
width:100%}th,td{padding:4px 9px;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}th:first-child,td:first-child,td.t,th.t{text-align:left}
tr.ours td{font-weight:600;background:var(--ours)}tr.bound td{color:var(--quiet);font-style:italic}
code{background:var(--code);padding:2px 5px;border-radius:4px;font-size:13px;
overflow-wrap:anywhere}.none,footer{color:var(--quiet);font-size:13px}
details summary{cursor:pointer;margin:10px 0}
"""
MOST_LISTED = 12


def page_of(
    results: Sequence[Results], rings: Sequence[Ring], attribution: Sequence[str]
) -> str:
    """All of it; `rings` of the world's countries, `attribution` of the data that is shown."""
    title = results[0].title if len(results) == 1 else "Experiments of the twin"
    every = [finding for each in results for finding in findings_of(each)]
    met = sum(each.good is True for each in every)
    missed = sum(each.good is False for each in every)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><main>",
        f"<h1>{escape(title)}</h1>",
    ]
    if met or missed:
        parts.append(
            f"<p class=lead>Of {met + missed} things that were aimed at, <b class=met>{met} were "
            f"met</b> and <b class=missed>{missed} were missed</b>. All figures are simulated: "
            "the live routing policy on a model of the fleet, in virtual time.</p>"
        )
    for each in results:
        parts += _chapter(each, rings, named=len(results) > 1)
    told = "<br>".join(escape(each) for each in attribution)
    parts.append(f"<footer><p>{told}</p></footer>")
    parts.append("</main></html>\n")
    return "\n".join(parts)


def _chapter(results: Results, rings: Sequence[Ring], *, named: bool) -> list[str]:
    parts = [f"<h2>{escape(results.title)}</h2>"] if named else []
    if results.question:
        parts.append(f"<p class=lead>{escape(results.question)}</p>")
    found = findings_of(results)
    parts.append(_listed(found[:MOST_LISTED]))
    if len(found) > MOST_LISTED:
        parts.append(
            f"<details><summary>{len(found) - MOST_LISTED} more findings</summary>"
            f"{_listed(found[MOST_LISTED:])}</details>"
        )
    parts += [f"<p>{escape(note)}</p>" for note in results.notes]
    parts.append(f"<div class=cards>{_figures(results)}</div>")
    served = _served(results)
    size = "by what they served" if served else "by their replicas"
    parts.append(_figure(
        f"Where it runs: clients (blue) and sites with engines (red, {size})",
        world_map(rings, results.places, results.clients, served),
    ))
    parts.append(
        "<details><summary>All figures</summary><div class=wide>" + _table(results)
        + "</div></details>"
    )
    parts.append(
        f"<p class=none>Reproduce: <code>{escape(results.command)}</code> at commit "
        f"<code>{escape(results.commit)}</code>"
        + (f", {results.requests:,} requests a point" if results.requests else "") + ".</p>"
    )
    return parts


def _listed(found: Sequence[Finding]) -> str:
    rows = []
    for each in found:
        kind = "" if each.good is None else " class=met" if each.good else " class=missed"
        word = "" if each.good is None else (
            "<b class=met>Met.</b> " if each.good else "<b class=missed>Missed.</b> "
        )
        rows.append(f"<li{kind}>{word}{escape(each.text)}</li>")
    return f"<ul class=findings>{''.join(rows)}</ul>"


def _figure(title: str, inner: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{inner}</figure>"


def _figures(results: Results) -> str:
    whole = [each for each in results.outcomes if not each.tenant]
    names = list(dict.fromkeys(each.row.policy for each in whole))
    series: dict[str, list[Outcome]] = {}
    for each in whole:
        series.setdefault(each.subject, []).append(each)
    parts = []
    if results.view == "pooling":
        parts.append(_pools(whole))
    elif any(len(_loads(of_series)) > 1 for of_series in series.values()):
        for title, of_series in series.items():
            parts += _against_load(title, of_series, names)
    else:
        parts += _beside(whole, names)
    tenants = [each for each in results.outcomes if each.tenant]
    if tenants:
        parts += _of_tenants(tenants)
    return "".join(parts)


def _pools(outcomes: Sequence[Outcome]) -> str:
    found: dict[str, list[tuple[float, float | None]]] = {}
    for each in outcomes:
        found.setdefault(f"{each.point.name} ({each.row.policy})", []).append(
            (each.row.load, 100.0 * each.row.slo_attainment)
        )
    return _figure("Who does not wait, by utilisation", lines(
        found, x_title="utilisation asked for", y_title="% in time", names=list(found),
    ))


def _loads(outcomes: Sequence[Outcome]) -> set[float]:
    return {round(each.row.load, 6) for each in outcomes}


def _against_load(title: str, outcomes: Sequence[Outcome], names: Sequence[str]) -> list[str]:
    def of(measure: str, factor: float = 1.0) -> dict[str, list[tuple[float, float | None]]]:
        found: dict[str, list[tuple[float, float | None]]] = {}
        for each in outcomes:
            value = getattr(each.row, measure)
            found.setdefault(each.row.policy, []).append(
                (each.row.load, None if value is None else value * factor)
            )
        return found

    return [
        _figure(f"{title}: the slowest hundredth waits at least", lines(
            of("ttft_ms_p99"), x_title="load", y_title="TTFT p99, ms", names=names,
            logarithmic=True,
        )),
        _figure(f"{title}: within the objective", lines(
            of("slo_attainment", 100.0), x_title="load", y_title="% in time", names=names,
        )),
    ]


def _beside(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[str]:
    groups = groups_of(outcomes)
    p99 = {_group(key): {name: each.row.ttft_ms_p99 for name, each in found.items()}
           for key, found in groups.items()}
    in_time = {_group(key): {name: 100.0 * each.row.slo_attainment for name, each in found.items()}
               for key, found in groups.items()}
    parts = [
        _figure("The slowest hundredth waits at least", bars(
            p99, y_title="TTFT p99, ms", names=names
        )),
        _figure("Within the objective", bars(in_time, y_title="% in time", names=names)),
    ]
    sized = {
        _group(key): {
            name: None if each.row.gpus_for_slo is None else float(each.row.gpus_for_slo)
            for name, each in found.items()
        }
        for key, found in groups.items()
    }
    if any(value is not None for group in sized.values() for value in group.values()):
        parts.append(_figure("GPUs for the objective", bars(
            sized, y_title="GPUs", names=names, never="none found"
        )))
    return parts


def _group(key: tuple[str, str, float]) -> str:
    return key[0] or key[1]


def _of_tenants(outcomes: Sequence[Outcome]) -> list[str]:
    parts = []
    series: dict[str, list[Outcome]] = {}
    for each in outcomes:
        series.setdefault(each.point.name, []).append(each)
    for policy in dict.fromkeys(each.row.policy for each in outcomes):
        own = [each for each in outcomes if each.row.policy == policy]
        names = list(dict.fromkeys(each.tenant for each in own))
        groups: dict[str, dict[str, float | None]] = {}
        for each in own:
            where = each.point.name
            if not where or len(_loads(series[where])) > 1:
                where = f"{where} load {each.row.load:g}".strip()
            groups.setdefault(where, {})[each.tenant] = 100.0 * each.row.slo_attainment
        parts.append(_figure(
            f"Within the objective, by tenant: {policy}",
            bars(groups, y_title="% in time", names=names),
        ))
    return parts


def _served(results: Results) -> Sequence[int]:
    """Requests by place, of the first that ours played there; empty where it did not."""
    return next(
        (each.by_site for each in results.outcomes
         if each.row.policy == "ours" and len(each.by_site) == len(results.places)), (),
    )


def _table(results: Results) -> str:
    columns = columns_of(results)
    head = "".join(f"<th>{escape(each.title)}</th>" for each in columns)
    rows = "".join(
        f'<tr class="{escape(policy)}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for policy, cells in rows_of(results, columns)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
