"""Renders a `World` as the TOML text that `parse_world` turns into the same world."""

from collections.abc import Mapping

from isochrone.core.admission.classes import CLASSES
from isochrone.core.world.model import Deployment
from isochrone.core.world.site_policy import SitePolicy
from isochrone.core.world.world import World, WorldLink, WorldModel, WorldSite
from isochrone.wiring.settings import toml_value


def render_world(world: World) -> str:
    """TOML text of a world; what is None is left out."""
    blocks = [_table("", {"emulate_distance": world.emulate_distance})]
    blocks += [_model(model) for model in world.models]
    for site in world.sites:
        blocks += _site(site)
    blocks += [_link(link) for link in world.links]
    return "\n".join(blocks)


def _table(header: str, values: Mapping[str, object]) -> str:
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([header, *lines, ""] if header else [*lines, ""])


def _model(model: WorldModel) -> str:
    return _table(
        "[[model]]",
        {
            "name": model.name,
            "kind": model.kind,
            "file": model.file,
            "revision": model.revision,
            "context": model.context_tokens,
        },
    )


def _site(site: WorldSite) -> list[str]:
    head = _table(
        "[[site]]",
        {
            "name": site.name,
            "country": site.country,
            "operator": site.operator,
            "parent": site.parent,
            "latitude": site.latitude_deg,
            "longitude": site.longitude_deg,
            "elsewhere": site.elsewhere or None,
        },
    )
    hardware = [
        _table("[[site.hardware]]", {"kind": one.kind, "count": one.count})
        for one in site.hardware
    ]
    return [head, *hardware, *(_deployment(one) for one in site.deployments)]


def _deployment(deployment: Deployment) -> str:
    engine = deployment.engine
    values: dict[str, object] = {
        "model": deployment.model,
        "replicas": deployment.replicas,
        "engine": engine.kind,
        "slots": engine.slots if engine.slots_stated else None,
    }
    if engine.kind == "llamacpp":
        values |= {"threads": engine.threads, "shares_cache": engine.shares_cache or None}
    else:
        kind, _, where = (engine.credential or "").partition(":")
        values |= {"url": engine.source, "upstream_model": engine.upstream_model}
        values |= {f"key_{kind}": where} if kind else {}
    text = _table("[[site.deployment]]", values)
    if deployment.admission is None:
        return text
    return f"{text}\n{_admission(deployment.admission)}"


def _admission(policy: SitePolicy) -> str:
    values = {"reclaim_ms": policy.reclaim_ms, "output_weight": policy.output_weight}
    rules = [
        _table(f"[site.deployment.admission.{class_}]", {
            "floor": rule.floor, "share": rule.share, "ceiling": rule.ceiling,
            "queue_most": rule.queue_most, "wait_ms": rule.wait_ms,
        })
        for class_, rule in zip(CLASSES, policy.rules(), strict=True)
    ]
    return "\n".join([_table("[site.deployment.admission]", values), *rules])


def _link(link: WorldLink) -> str:
    return _table("[[link]]", {
        "between": tuple(link.between), "rtt_ms": link.rtt_ms, "via": link.via,
    })
