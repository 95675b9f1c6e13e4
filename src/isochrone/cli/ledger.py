"""`isochrone ledger`: what was spent so far, balances, postings, credits."""

import uuid
from typing import Annotated

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud

app = typer.Typer(help="Show what was spent, and the ledger behind it.")

OrgOption = Annotated[str | None, typer.Option("--org", help="Organisation id. [default: all]")]
ProjectOption = Annotated[
    str | None, typer.Option("--project", help="Project id. [default: all]")
]


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone ledger` · `isochrone ledger spent --month 2026-11` · "
    "`isochrone ledger balances`",
)
def ledger(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was spent, and the ledger behind it; alone, what was spent this month."""
    if context.invoked_subcommand is None:
        spent(None, None, None, state, url, key, as_json)


@app.command(epilog="Example: `isochrone ledger spent --month 2026-11 --project default --json`")
def spent(
    month: Annotated[
        str | None, typer.Option(help="As 2026-11. [default: the present one]")
    ] = None,
    org: OrgOption = None, project: ProjectOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each project spent in a month so far, line by line."""
    from isochrone.cli.show import print_json, print_table

    query = {"month": month, "org_id": org, "project_id": project}
    rows = list(find_cloud(state, url, key).api.items("ledger/spent", query))
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("nothing was used in that month yet; try `isochrone chat 'Hello!'`")
    for row in rows:
        if row["problem"] is not None:
            print(f"not known: {row['problem']}")
            continue
        print_table(
            ("line", "model", "class", "site", "quantity", "adjusted by", "amount"),
            [
                (
                    line["meter"] or f"{line['kind']}: {line['name']}", line["model"],
                    line["class_"], line["site"], line["quantity"], line["adjustments"],
                    line["amount"],
                )
                for line in row["lines"]
            ],
            title=f"{row['org_id']} / {row['project_id']}, {row['month']}: {row['amount']} "
            f"{row['currency'] or ''}, of which charged {row['charged']}",
            empty=f"{row['org_id']} / {row['project_id']}: nothing that has a price",
        )
        for each in row["unpriced"]:
            print(f"no price: {each['quantity']} {each['meter']} of {each['model'] or '-'}")


@app.command(epilog="Example: `isochrone ledger balances --project default`")
def balances(
    org: OrgOption = None, project: ProjectOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the balance of each account."""
    from isochrone.cli.show import print_json, print_table

    query = {"org_id": org, "project_id": project}
    rows = list(find_cloud(state, url, key).api.items("ledger/balances", query))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("org", "project", "account", "amount", "currency"),
        [
            (row["org_id"], row["project_id"], row["account"], row["amount"], row["currency"])
            for row in rows
        ],
        empty="all accounts are at zero",
    )


@app.command(epilog="Example: `isochrone ledger postings --project default --json`")
def postings(
    org: OrgOption = None, project: ProjectOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the postings, in the order of their recording."""
    from isochrone.cli.show import instant, print_json, print_table

    query = {"org_id": org, "project_id": project}
    rows = list(find_cloud(state, url, key).api.items("ledger/postings", query))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("number", "at", "kind", "about", "entries", "currency", "key"),
        [
            (
                row["number"], instant(row["at"]), row["kind"], row["about"],
                [f"{each['account']} {each['amount']}" for each in row["entries"]],
                row["currency"], row["key"],
            )
            for row in rows
        ],
        empty="no postings yet",
    )


@app.command(epilog="Example: `isochrone ledger credit 10.00 --project default`")
def credit(
    amount: Annotated[str, typer.Argument(help="As 10.00, in units of the currency.")],
    currency: Annotated[
        str | None, typer.Option(help="Code of ISO 4217. [default: that of the prices]")
    ] = None,
    about: Annotated[str, typer.Option(help="What it is for.")] = "credit",
    org: Annotated[str, typer.Option(help="Organisation id.")] = "default",
    project: Annotated[str, typer.Option(help="Project id.")] = "default",
    once: Annotated[
        str | None, typer.Option(help="Idempotency key; the same again credits nothing.")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Credit a project with what it paid or is given."""
    from isochrone.cli.show import print_json

    made = find_cloud(state, url, key).api.post(
        "ledger/credits",
        {"org_id": org, "project_id": project, "amount": amount, "currency": currency,
         "about": about},
        idempotency_key=once or str(uuid.uuid4()),
    )
    if as_json:
        print_json(made)
        return
    print(f"posted {made['key']}")


@app.command(epilog="Example: `isochrone ledger correct KEY --about 'paid to another project'`")
def correct(
    posting: Annotated[str, typer.Argument(help="The key of the credit (see `postings`).")],
    about: Annotated[str, typer.Option(help="Why.")],
    org: Annotated[str, typer.Option(help="Organisation id.")] = "default",
    once: Annotated[
        str | None, typer.Option(help="Idempotency key; the same again corrects nothing.")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unwind a credit by a posting of opposite entries."""
    from isochrone.cli.show import print_json

    made = find_cloud(state, url, key).api.post(
        "ledger/corrections", {"org_id": org, "key": posting, "about": about},
        idempotency_key=once or str(uuid.uuid4()),
    )
    if as_json:
        print_json(made)
        return
    print(f"posted {made['key']}")


@app.command(epilog="Example: `isochrone ledger charge`")
def charge(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Charge all usage so far, also of the hour that is not over yet.

    Hours are charged by themselves five minutes after their end.
    """
    from isochrone.cli.show import print_json

    made = find_cloud(state, url, key).api.post("ledger/charges", {})
    if as_json:
        print_json(made)
        return
    print(f"{made['charges']} charges recorded")
