"""Assembles the Control API: one router a resource, problem details, bounds."""

from fastapi import FastAPI

from isochrone import __version__
from isochrone.control.api import (
    accounts,
    audit,
    days,
    deployments,
    docs,
    entitlements,
    experiments,
    hosts,
    keys,
    ledger,
    limits,
    live,
    meters,
    models,
    organisations,
    policies,
    prices,
    principals,
    problems,
    projects,
    reconciliation,
    replicas,
    requests,
    sessions,
    sites,
    status,
    traffic,
    trials,
    usage,
    voters,
)
from isochrone.control.api.body_limit import BodyLimit
from isochrone.control.api.context import Context

PREFIX = "/api/v1"

RESOURCES = (
    status, sessions, organisations, projects, accounts, principals, policies, trials, keys,
    entitlements, limits, voters, audit,
    models, sites, hosts, deployments, replicas, live, usage, traffic, requests,
    prices, ledger, meters, days, reconciliation, experiments,
)


def build_app(context: Context) -> FastAPI:
    """The API as an ASGI application."""
    app = FastAPI(
        title="Isochrone Control API",
        version=__version__,
        description="Send an admin key or a project key: Authorization: Bearer KEY. Writes by POST"
        " take an Idempotency-Key header: the same key and body again change nothing.",
        openapi_url=f"{PREFIX}/openapi.json",
        # The stock pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    docs.install(app, f"{PREFIX}/docs")
    for resource in RESOURCES:
        app.include_router(resource.routes(context), prefix=PREFIX)
    app.add_middleware(BodyLimit)
    return app
