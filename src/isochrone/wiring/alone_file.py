"""Parses the file of a gateway that runs alone (TOML), or lists every problem of it at once.

The file says what control and agents would say: models, sites with their upstreams or gateways,
policies, keys by their hash, and in `[gateway]` the settings of the process. Only the text is
judged here: whether an upstream answers is found out by those who ask it.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from isochrone.adapters.packaged import load_blocs, load_hardware
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import KeyId, ModelName, OrgId, PolicyId, ProjectId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.terms import check_axis, check_together, parse_term
from isochrone.core.world.entitlement import Entitlement
from isochrone.core.world.model import Model, ModelKind
from isochrone.core.world.tenant import ANY, KEY_SCOPES, ApiKey, Class, Limits, Policy
from isochrone.gateway.settings import GatewaySettings, contradictions
from isochrone.wiring.alone_entitlements import (
    DEFAULT_TENANT,
    TENANT_NAME,
    judge_entitlements,
    read_entitlement,
)
from isochrone.wiring.alone_sites import AloneSite, Known, read_site
from isochrone.wiring.settings import values_of
from isochrone.wiring.toml_table import Problems, TomlTable
from isochrone.wiring.world_file import (
    LEAST_CONTEXT_TOKENS,
    MODEL_NAME,
    MOST_CONTEXT_TOKENS,
    SITE_NAME,
)

# Tables that only the file of a gateway alone has; a world file has sites and models, too.
_TABLE = re.compile(
    rb"(?m)^[ \t]*(\[[ \t]*gateway[ \t]*\]"
    rb"|\[\[[ \t]*(key|policy|site[ \t]*\.[ \t]*upstream)[ \t]*\]\])"
)

KEY_NAME = r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,63}"
HASH = r"[0-9a-f]{64}"
CLASSES: tuple[Class, ...] = ("reserved", "on_demand", "batch")
DEFAULT_PORT = 4000
DEFAULT_CONTEXT_TOKENS = 131_072
MOST_LIMIT = 10**12
LONGEST_VIEW_AGE_S = NEVER_S = 10 * 365 * 86_400.0

STANDARD_OUTPUT = "-"
NOWHERE = "none"

# What a gateway alone decides itself: who it is, how old the load of a site may be, its workers.
_DECIDED = frozenset(
    ("identity", "digest_stale_s", "alone", "worker", "workers", "counters")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AloneFile:
    """`settings.identity` is the file itself. `usage` and `request_log` are None for nowhere;
    `request_log` is "-" for standard output. `peer_secret` is None when there are no peers."""

    site: SiteName
    settings: GatewaySettings
    usage: Path | None
    request_log: Path | str | None
    peer_secret: Path | None
    models: tuple[Model, ...]
    sites: tuple[AloneSite, ...]
    policies: tuple[Policy, ...]
    keys: tuple[ApiKey, ...]
    entitlements: tuple[Entitlement, ...] = ()  # without slices


def is_alone(path: Path) -> bool:
    """Whether a file is that of a gateway alone, and not the cloud's settings of one.

    By its tables, without parsing it: that is done once, by those who read it. A file that cannot
    be read is left to them, too.
    """
    try:
        return _TABLE.search(path.read_bytes()) is not None
    except OSError:
        return False


def load_alone(path: Path) -> AloneFile:
    """Read the file; raises InvalidInput with every problem found."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput([f"{path}: cannot be read: {reason}"]) from error
    return parse_alone(text, source=str(path), path=path.absolute())


def parse_alone(text: str, *, source: str, path: Path) -> AloneFile:
    """Parse the text of a file; relative paths are relative to the folder of `path`."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number may be too long for Python
        raise InvalidInput([f"{source}: not a TOML file: {error}"]) from error
    problems = Problems(source)
    process = content.pop("gateway", {})
    if not isinstance(process, dict):
        problems.add("", "gateway is not a table; write [gateway]")
        process = {}
    top = TomlTable("", content, problems)
    blocs = load_blocs()
    models = [_model(each) for each in top.tables("model", name_key="name")]
    policies = [_policy(each, blocs) for each in top.tables("policy", name_key="name")]
    gateway = _Process(process, path, problems)
    known = Known(
        own=gateway.site, folder=path.parent, countries=blocs.countries,
        hardware=load_hardware(), models={model.name: model for model in models},
    )
    sites = [read_site(each, known) for each in top.tables("site", name_key="name")]
    names = {policy.id for policy in policies}
    keys = [_key(each, names) for each in top.tables("key", name_key="name")]
    entitlements = [
        read_entitlement(each, known.models, blocs)
        for each in top.tables("entitlement", name_key="name")
    ]
    top.finish()
    _judge_whole(models, sites, policies, keys, gateway, problems)
    judge_entitlements(entitlements, keys, sites, blocs, problems)
    _once("entitlement", (each.id for each in entitlements), problems)
    problems.raise_if_any()
    if PolicyId(ANY) not in names:
        policies.append(_unbound())
    return AloneFile(
        site=gateway.site, settings=GatewaySettings(**gateway.settings), usage=gateway.usage,
        request_log=gateway.request_log, peer_secret=gateway.peer_secret, models=tuple(models),
        sites=tuple(sites), policies=tuple(policies), keys=tuple(keys),
        entitlements=tuple(entitlements),
    )


class _Process:
    """The table [gateway]: what the process needs, and whatever GatewaySettings knows."""

    def __init__(self, given: Mapping[str, Any], path: Path, problems: Problems) -> None:
        own_keys = ("site", "usage", "request_log", "peer_secret_file")
        folder = path.parent
        table = TomlTable("gateway", {k: given[k] for k in own_keys if k in given}, problems)
        name = table.text(
            "site", pattern=SITE_NAME, expected="1 to 32 lower-case letters, digits or hyphens"
        )
        self.site = SiteName(name or "here")
        usage = table.text("usage", expected='a path, or "none"') or "usage.jsonl"
        self.usage = None if usage == NOWHERE else folder / usage
        log = table.text("request_log", expected='a path, "-" or "none"') or STANDARD_OUTPUT
        self.request_log: Path | str | None = folder / log
        if log in (NOWHERE, STANDARD_OUTPUT):
            self.request_log = None if log == NOWHERE else log
        if self.usage is not None and self.usage == self.request_log:
            problems.add("gateway", "usage and request_log are the same file; each needs its own")
        secret = table.text("peer_secret_file", expected="a path to a file with the peer secret")
        self.peer_secret = None if secret is None else folder / secret
        rest = {"port": DEFAULT_PORT, "journal": "journal", **given}
        for key in own_keys:
            rest.pop(key, None)
        found: list[str] = []
        self.settings = values_of(rest, GatewaySettings, folder, found, without=_DECIDED)
        self.settings |= {"identity": path, "digest_stale_s": NEVER_S}
        if not found:
            found = contradictions(GatewaySettings(**self.settings))
        for problem in found:
            problems.add("gateway", problem)


def _model(table: TomlTable) -> Model:
    name = table.need_text(
        "name", pattern=MODEL_NAME,
        expected="1 to 128 letters, digits or any of . _ : / @ + -, a letter or digit first",
    )
    named_kind = table.choice("kind", ("chat", "embedding"), default="chat")
    kind: ModelKind = "embedding" if named_kind == "embedding" else "chat"
    context = table.integer(
        "context", LEAST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS, default=DEFAULT_CONTEXT_TOKENS
    )
    revision = table.text("revision")
    table.finish()
    return Model(
        name=ModelName(name), kind=kind, revision=revision, context_tokens=context, created_at=0
    )


def _policy(table: TomlTable, blocs: Blocs) -> Policy:
    name = _name(table)
    axes, faults = [], []
    for axis in ("residency", "transit", "caches", "logs"):
        terms = tuple(parse_term(term) for term in table.names(axis, default=(ANY,)))
        found = check_axis(terms, blocs, links=axis == "transit")
        faults += [f"{axis}: {fault}" for fault in found]
        axes.append(tuple(sorted(terms)))
    caches = axes[2] if table.has("caches") else None
    for fault in faults or check_together(axes[0], caches, blocs):
        table.problem(fault)
    age_s = table.number("max_view_age_s", 1, LONGEST_VIEW_AGE_S, default=LONGEST_VIEW_AGE_S)
    table.finish()
    return Policy(
        id=PolicyId(name), org_id=OrgId(DEFAULT_TENANT), residency=axes[0], transit=axes[1],
        max_view_age_s=age_s, caches=caches, logs=axes[3],
    )


def _unbound() -> Policy:
    """What keys without a policy get."""
    return Policy(
        id=PolicyId(ANY), org_id=OrgId(DEFAULT_TENANT), residency=(ANY,), transit=(ANY,),
        max_view_age_s=LONGEST_VIEW_AGE_S,
    )


def _key(table: TomlTable, policies: set[PolicyId]) -> ApiKey:
    name = _name(table)
    if table.has("secret"):
        table.problem("secret does not belong into a file; keep its hash: `isochrone key hash`")
        table.text("secret")
    digest = table.need_text(
        "secret_sha256", pattern=HASH,
        expected="64 hexadecimal digits in lower case; make them with `isochrone key hash`",
    )
    policy = table.text("policy") or ANY
    if policy != ANY and policy not in policies:
        close = get_close_matches(policy, policies, n=1)
        hint = f'did you mean "{close[0]}"?' if close else "add a [[policy]] with this name"
        table.problem(f'policy "{policy}" is not described; {hint}')
    wanted = table.names("classes", default=("on_demand", "batch"))
    for each in wanted:
        if each not in CLASSES:
            table.problem(f'classes names "{each}"; expected some of {", ".join(CLASSES)}')
    scopes = table.names("scopes", default=KEY_SCOPES)
    for each in scopes:
        if each not in KEY_SCOPES:
            table.problem(f'scopes names "{each}"; expected some of {", ".join(KEY_SCOPES)}')
    expires_at = table.instant("expires", default=0) or None
    organisation = table.text("organisation", pattern=TENANT_NAME) or DEFAULT_TENANT
    project = table.text("project", pattern=TENANT_NAME) or DEFAULT_TENANT
    limits = Limits(
        requests_per_min=_limit(table, "requests_per_min"),
        tokens_per_min=_limit(table, "tokens_per_min"),
        concurrent=_limit(table, "concurrent"),
    )
    table.finish()
    return ApiKey(
        id=KeyId(name), secret_sha256=digest, org_id=OrgId(organisation),
        project_id=ProjectId(project), policy_id=PolicyId(policy),
        classes=tuple(each for each in CLASSES if each in wanted), limits=limits,
        scopes=tuple(each for each in KEY_SCOPES if each in scopes), expires_at=expires_at,
    )


def _limit(table: TomlTable, key: str) -> int | None:
    return table.integer(key, 1, MOST_LIMIT, default=0) or None


def _name(table: TomlTable) -> str:
    return table.need_text(
        "name", pattern=KEY_NAME,
        expected="1 to 64 letters, digits or any of . _ : @ + -, a letter or digit first",
    )


def _judge_whole(
    models: list[Model], sites: list[AloneSite], policies: list[Policy], keys: list[ApiKey],
    gateway: _Process, problems: Problems,
) -> None:
    """What no table can tell alone."""
    if not models:
        problems.add("", "there is no [[model]]; name what is served")
    if models and not any(site.models for site in sites):
        problems.add("", "no site serves a model: add a [[site]] with a [[site.upstream]]")
    if not keys:
        problems.add("", "there is no [[key]]; make one with `isochrone key hash`")
    _once("model", (model.name for model in models), problems)
    _once("site", (site.site.name for site in sites), problems)
    _once("policy", (policy.id for policy in policies), problems)
    _once("key", (key.id for key in keys), problems)
    hashes = Counter(key.secret_sha256 for key in keys)
    for key in keys:
        if key.secret_sha256 and hashes[key.secret_sha256] > 1:
            problems.add(f'key "{key.id}"', "another key has the same secret_sha256")
    peers = [site.site.name for site in sites if site.is_peer]
    if peers and gateway.peer_secret is None:
        problems.add(
            "gateway", f"peer_secret_file is missing; the gateway of {peers[0]} wants to know who "
            "asks: make the file with `isochrone gateway --new-peer-secret FILE`",
        )
    own = next((site for site in sites if site.site.name == gateway.site), None)
    unplaced = [s.site.name for s in sites if s.rtt_ms is None and s.site.name != gateway.site]
    if unplaced and (own is None or not own.is_placed):
        problems.add(
            f'site "{gateway.site}"', "latitude and longitude are missing; without them the round "
            f"trip to {unplaced[0]} is unknown: state them, or rtt_ms there",
        )


def _once(what: str, names: Iterable[str], problems: Problems) -> None:
    for name, count in Counter(names).items():
        if count > 1 and name:
            problems.add("", f'{what} "{name}" is described {count} times; expected once')
