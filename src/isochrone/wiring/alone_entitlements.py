"""Entitlements in the file of a gateway that runs alone: read, judged, and shared by its workers.

There is nobody to lend to or to borrow from: the own site is the home of all that is sold.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from isochrone.core.admission.entitlement import MOST_TOK_S
from isochrone.core.ids import EntitlementId, ModelName, OrgId, ProjectId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import Admitted, admits, check_axis
from isochrone.core.residency.terms import parse_term
from isochrone.core.world.entitlement import Entitlement, Slice
from isochrone.core.world.model import Model
from isochrone.core.world.tenant import ANY, ApiKey
from isochrone.wire import subjects
from isochrone.wiring.alone_sites import AloneSite
from isochrone.wiring.toml_table import Problems, TomlTable

TENANT_NAME = r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,63}"
DEFAULT_TENANT = "default"
ENDLESS_AT = 1 << 62


def read_entitlement(
    table: TomlTable, models: Mapping[ModelName, Model], blocs: Blocs
) -> Entitlement:
    """One [[entitlement]]; its slices are decided later."""
    table.need_text("name", pattern=TENANT_NAME, expected="a name to recognise it by")
    only = next(iter(models)) if len(models) == 1 else None
    model = table.text("model") or only
    if model is None:
        table.problem("model is missing; name one of those that are described")
    elif model not in models:
        table.problem(f'model names "{model}", which is not described')
    tok_s = table.integer("tok_s", 1, MOST_TOK_S)
    organisation = table.text("organisation", pattern=TENANT_NAME) or DEFAULT_TENANT
    project = table.text("project", pattern=TENANT_NAME)
    terms = tuple(parse_term(term) for term in table.names("residency", default=(ANY,)))
    for fault in check_axis(terms, blocs):
        table.problem(f"residency: {fault}")
    starts_at = table.instant("from", default=0)
    ends_at = table.instant("until", default=ENDLESS_AT)
    if ends_at <= starts_at:
        table.problem("until is not after from")
    table.finish()
    sold = Entitlement(
        id=EntitlementId(""), org_id=OrgId(organisation),
        project_id=None if project is None else ProjectId(project), model=ModelName(model or ""),
        class_="reserved", tok_s=tok_s, residency=tuple(sorted(terms)), starts_at=starts_at,
        ends_at=ends_at, slices=(),
    )
    # What is changed in the file is another entitlement: slices never change.
    return replace(sold, id=EntitlementId(subjects.token(f"{table.where} {sold}")))


def judge_entitlements(
    entitlements: Sequence[Entitlement], keys: Iterable[ApiKey], sites: Sequence[AloneSite],
    blocs: Blocs, problems: Problems,
) -> None:
    """What no table can tell alone: whether anybody may use them, and whether anything serves."""
    may = {(key.org_id, key.project_id) for key in keys if "reserved" in key.classes}
    for sold in entitlements:
        where = f"entitlement of {sold.org_id}"
        if not any(
            org == sold.org_id and sold.project_id in (None, project) for org, project in may
        ):
            problems.add(where, 'no [[key]] of it has the class "reserved": nobody may use it')
        serving = [each.site for each in sites if sold.model in each.models]
        if sold.model and not any(
            isinstance(admits(sold.residency, site, blocs), Admitted) for site in serving
        ):
            problems.add(where, f'no site that its residency allows serves "{sold.model}"')


def part_of_worker(
    sold: Entitlement, site: SiteName, *, worker: int, workers: int
) -> Entitlement | None:
    """What one worker of a gateway may honour; None for nothing. The parts add up to the whole."""
    whole, rest = divmod(sold.tok_s, workers)
    tok_s = whole + (worker < rest)
    if not tok_s:
        return None
    return replace(sold, tok_s=tok_s, slices=(Slice(site=site, tok_s=tok_s),))
