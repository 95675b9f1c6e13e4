"""Turns the operator's world file into the intent that the book is reconciled with, and the seed.

Pure: files are read and hashed by the caller, who passes what it found in `Weights`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from isochrone.core.estimate.round_trip import RoundTripTable, links_of_world
from isochrone.core.ids import ModelName, OrgId, PolicyId, ProjectId
from isochrone.core.world.model import Deployment, Model
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import ANY, Organisation, Policy, Principal, Project
from isochrone.core.world.world import World, WorldSite
from isochrone.ports.estate import Intent
from isochrone.ports.tenants import Seed, StoredPolicy
from isochrone.wire import fleet

DEFAULT = "default"
OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where a model's file lies, and the sha256 of its content (None when it is not here)."""

    path: str
    revision: str | None


def intent_of(
    world: World, weights: Mapping[ModelName, Weights], table: RoundTripTable, *, now: int
) -> Intent:
    """What the world asks for; `weights` names every model that has a file."""
    models = tuple(
        Model(
            name=model.name,
            kind=model.kind,
            revision=weights[model.name].revision if model.name in weights else model.revision,
            context_tokens=model.context_tokens,
            created_at=0,
        )
        for model in world.models
    )
    asked = Intent(
        fingerprint="",
        sites=tuple(_site(site) for site in world.sites),
        models=models,
        deployments=tuple(
            _with_path(wish, weights) for site in world.sites for wish in site.deployments
        ),
        links=links_of_world(world, table),
    )
    return replace(
        asked,
        fingerprint=sha256(fleet.encode(asked)).hexdigest(),
        models=tuple(replace(model, created_at=now) for model in models),
    )


def seed_of(admin_key_sha256: str, *, now: int) -> Seed:
    """The default organisation with its project and an open policy, and the operator."""
    org_id = OrgId(DEFAULT)
    policy = Policy(id=PolicyId(ANY), org_id=org_id, residency=(ANY,), transit=(ANY,))
    return Seed(
        organisation=Organisation(id=org_id, name=DEFAULT, created_at=now),
        project=Project(id=ProjectId(DEFAULT), org_id=org_id, name=DEFAULT, created_at=now),
        policy=StoredPolicy(policy=policy, name=ANY, created_at=now),
        operator=Principal(
            id=OPERATOR, org_id=None, name=OPERATOR, role="operator", kind="service"
        ),
        operator_secret_sha256=admin_key_sha256,
    )


def _site(site: WorldSite) -> Site:
    """The site before it has joined: its address and key come with the join."""
    return Site(
        name=site.name,
        country=site.country,
        operator=site.operator,
        parent=site.parent,
        latitude_deg=site.latitude_deg,
        longitude_deg=site.longitude_deg,
        host="",
        port=0,
        public_url="",
        peer_key=None,
        hardware=site.hardware,
    )


def _with_path(wish: Deployment, weights: Mapping[ModelName, Weights]) -> Deployment:
    if wish.engine.kind != "llamacpp" or wish.model not in weights:
        return wish
    return replace(wish, engine=replace(wish.engine, source=weights[wish.model].path))
