"""The list of pages, in the order of the menu: a page is a file beside this one and an entry."""

from isochrone.console.page import Page
from isochrone.console.pages import (
    account,
    audit,
    experiments,
    explain,
    fleet,
    keys,
    ledger,
    limits,
    organisations,
    overview,
    playground,
    policies,
    prices,
    reconciliation,
    traffic,
    usage,
    world_map,
)
from isochrone.core.tenancy.authorise import CallerRole

MEMBERS: tuple[CallerRole, ...] = (
    "owner", "admin", "developer", "billing", "auditor", "operator",
)
OPERATORS: tuple[CallerRole, ...] = ("operator",)
MANAGERS: tuple[CallerRole, ...] = ("owner", "admin", "auditor", "operator")
BOOKKEEPERS: tuple[CallerRole, ...] = ("owner", "admin", "billing", "auditor", "operator")

PAGES = (
    Page(
        path="/", title="Overview", icon="insights", group="Cloud", roles=MEMBERS,
        needs=("estate.read", "usage.read"), build=overview.build,
    ),
    Page(
        path="/map", title="Map", icon="public", group="Cloud", roles=MEMBERS,
        needs=("estate.read", "traffic.read", "usage.read", "policies.read"),
        build=world_map.build,
    ),
    Page(
        path="/traffic", title="Traffic", icon="stacked_line_chart", group="Cloud", roles=MEMBERS,
        needs=("traffic.read", "estate.read"), build=traffic.build,
    ),
    Page(
        path="/explain", title="Explain", icon="troubleshoot", group="Cloud", roles=MEMBERS,
        needs=("usage.read", "prices.read"), build=explain.build,
    ),
    Page(
        path="/fleet", title="Fleet", icon="dns", group="Operate", roles=OPERATORS,
        needs=("estate.read", "estate.details", "estate.write"), build=fleet.build,
    ),
    Page(
        path="/policies", title="Policies", icon="policy", group="Operate", roles=MEMBERS,
        needs=("policies.read", "estate.read", "organisations.read"), build=policies.build,
    ),
    Page(
        path="/experiments", title="Experiments", icon="science", group="Operate", roles=OPERATORS,
        needs=("experiments.read", "experiments.write", "members.read"), build=experiments.build,
    ),
    Page(
        path="/organisations", title="Organisations", icon="groups", group="Book", roles=MANAGERS,
        needs=("organisations.read", "members.read", "projects.read"), build=organisations.build,
    ),
    Page(
        path="/prices", title="Prices", icon="sell", group="Book", roles=MEMBERS,
        needs=("prices.read",), build=prices.build,
    ),
    Page(
        path="/ledger", title="Ledger", icon="account_balance", group="Book", roles=BOOKKEEPERS,
        needs=("ledger.read", "projects.read"), build=ledger.build,
    ),
    Page(
        path="/reconciliation", title="Reconciliation", icon="rule", group="Book",
        roles=OPERATORS, needs=("reconcile", "estate.read"), build=reconciliation.build,
    ),
    Page(
        path="/audit", title="Audit log", icon="history", group="Book", roles=MANAGERS,
        needs=("audit.read", "organisations.read", "members.read"), build=audit.build,
    ),
    Page(
        path="/keys", title="Keys", icon="key", group="Use",
        roles=("owner", "admin", "developer", "auditor", "operator"),
        needs=("keys.read", "projects.read", "estate.read"), build=keys.build,
    ),
    Page(
        path="/playground", title="Playground", icon="forum", group="Use", roles=MEMBERS,
        needs=("estate.read", "usage.read"), build=playground.build,
    ),
    Page(
        path="/usage", title="Usage", icon="receipt_long", group="Use", roles=MEMBERS,
        needs=("estate.read", "usage.read"), build=usage.build,
    ),
    Page(
        path="/limits", title="Limits", icon="speed", group="Use", roles=MEMBERS,
        needs=("limits.read", "projects.read"), build=limits.build,
    ),
    Page(
        path="/account", title="Account", icon="person", group="You", roles=MEMBERS,
        needs=("self.read", "self.write"), build=account.build,
    ),
)
