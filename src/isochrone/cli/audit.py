"""`isochrone audit`: who changed what, when, and how it was before and after."""

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud
from isochrone.cli.line import LimitOption


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone audit` · `isochrone audit --kind key --since "
        "2026-11-20T00:00:00Z` · `isochrone audit --subject KEY_ID --json`"
    )(audit)


def audit(
    kind: Annotated[
        str | None,
        typer.Option(
            help="Only of this kind: organisation, project, principal, person, account, session, "
            "policy, key, limit, entitlement, price_sheet, posting, meter_event, site, site_token, "
            "model, deployment, voters, world, experiment, detached_day, detached_evidence, "
            "attached_day."
        ),
    ] = None,
    actor: Annotated[
        str | None, typer.Option(help="Only by this one, as principal:ID or control.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only of the record with this id.")] = None,
    org: Annotated[str | None, typer.Option(help="Only of this organisation (id).")] = None,
    since: Annotated[
        str | None, typer.Option(help="From this instant on, as 2026-11-20T18:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this instant.")] = None,
    limit: LimitOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the audit log, oldest first: every change of what control keeps. Nobody can change or
    remove an entry. Secrets and personal fields read (hidden); --json has whole records."""
    from isochrone.cli.show import instant, print_json, print_table

    query = {
        "kind": kind, "actor": actor, "subject": subject, "org": org, "since": since,
        "until": until,
    }
    rows = list(islice(find_cloud(state, url, key).api.items("audit", query), limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("entry", "at", "by", "what", "id", "change", "organisation", "fields"),
        [
            (
                row["serial"], instant(row["at"]), row["actor"], row["kind"], row["subject"],
                row["change"], row["org_id"], changed_fields(row["before"], row["after"]),
            )
            for row in rows
        ],
    )


def changed_fields(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> list[str]:
    """What differs, as `name: old -> new`; nothing for what was made or removed as a whole."""
    if before is None or after is None:
        return []
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in after if before.get(name) != after.get(name)
    ]
