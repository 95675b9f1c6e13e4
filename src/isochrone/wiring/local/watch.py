"""Judges whether a local cloud is ready, and keeps up.json true while it runs.

Ready means: every gateway's /ready says so and control has heard of every replica that the world
asks for as ready. Afterwards the file is written again whenever a process or replica was replaced.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isochrone.core.errors import InvalidInput, IsochroneError, Unavailable
from isochrone.core.world.world import WorldSite
from isochrone.wiring.local.cloud import (
    OPERATOR_LOGIN,
    LocalCloud,
    agent_child,
    gateway_child,
)
from isochrone.wiring.local.ready import http_status
from isochrone.wiring.private_file import write_private

POLL_S = 0.2
KNOWN_POLL_S = 0.05
KEEP_S = 1.0
GIVE_UP_RESTARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProgress:
    """How far one site is: replicas ready of those wanted, and whether its gateway says ready."""

    name: str
    ready: int
    wanted: int
    gateway: bool
    detail: str | None

    @property
    def done(self) -> bool:
        return self.gateway and self.ready >= self.wanted

    def __str__(self) -> str:
        if self.done:
            return "ready"
        replicas = f"replicas {self.ready} of {self.wanted}" if self.wanted else "no replicas"
        return f"{replicas}, gateway {'ready' if self.gateway else 'starting'}"


async def progress(cloud: LocalCloud) -> tuple[list[SiteProgress], Mapping[str, Any]]:
    """How far every site is, and the status that control gave."""
    try:
        status = await asyncio.to_thread(cloud.api.get, "status")
    except Unavailable:
        status = {"sites": []}
    known = {site["name"]: site for site in status["sites"]}
    ready = await asyncio.gather(
        *(http_status(cloud.host, port, "/ready") for port in cloud.sites.values())
    )
    found = [
        _site_progress(site, known.get(site.name, {}), gateway=answer == 200)
        for site, answer in zip(cloud.here, ready, strict=True)
    ]
    return found, status


def _site_progress(
    site: WorldSite, known: Mapping[str, Any], *, gateway: bool
) -> SiteProgress:
    """What the book wants wins over the world: replicas may have been changed by the API."""
    loads = known.get("loads")
    if loads is None:
        wanted = sum(one.replicas for one in site.deployments)
    else:
        wanted = sum(load["replicas_wanted"] for load in loads)
    failing = [
        replica["id"]
        for replica in known.get("replicas", ())
        if replica["state"] != "ready" and replica["restarts"] >= GIVE_UP_RESTARTS
    ]
    return SiteProgress(
        name=site.name,
        ready=sum(load["ready"] for load in loads or ()),
        wanted=wanted,
        gateway=gateway,
        detail=f"replica {failing[0]} keeps failing" if failing else None,
    )


async def wait_ready(cloud: LocalCloud, *, deadline_s: float) -> Mapping[str, Any]:
    """Return control's status once every site is ready; raises Unavailable naming what is not."""
    found: list[SiteProgress] = []
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                if failures := cloud.supervisor.failures():
                    raise Unavailable("; ".join(failures))
                found, status = await progress(cloud)
                for site in found:
                    cloud.tell(site.name, str(site))
                    _give_up(cloud, site)
                if all(site.done for site in found):
                    return status
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        waiting = "; ".join(f"{site.name}: {site}" for site in found if not site.done)
        raise Unavailable(
            f"not ready within {deadline_s:.0f} s ({waiting or 'control does not answer'}); "
            f"logs are in {cloud.state.path('logs')} and {cloud.state.path('sites')}"
        ) from None


async def wait_known(cloud: LocalCloud, key: str, *, deadline_s: float) -> None:
    """Return once every gateway takes `key` and has heard of the sites: what is printed must work
    at once."""
    waiting = dict(cloud.sites)
    try:
        async with asyncio.timeout(deadline_s):
            while waiting:
                for name, port in list(waiting.items()):
                    known = await http_status(cloud.host, port, "/v1/models", key=key) == 200
                    if known and await http_status(cloud.host, port, "/ready") == 200:
                        del waiting[name]
                await asyncio.sleep(KNOWN_POLL_S if waiting else 0)
    except TimeoutError:
        raise Unavailable(
            f"the gateways of {', '.join(waiting)} did not learn the API key within "
            f"{deadline_s:.0f} s; logs are in {cloud.state.path('logs')}"
        ) from None


def _give_up(cloud: LocalCloud, site: SiteProgress) -> None:
    """Raises InvalidInput when engines of the site start again and again without success."""
    if site.detail is None or site.done:
        return
    models = ", ".join(f"{one.name} ({one.file})" for one in cloud.world.models if one.file)
    raise InvalidInput(
        [f"{site.name}: {site.detail}; is the model file whole and of a kind that llama.cpp "
         f"reads? {models}; engine logs are in {cloud.state.path('sites', site.name, 'logs')}"]
    )


def replicas_by_site(status: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Replicas that control has heard of, by site name."""
    return {site["name"]: list(site.get("replicas") or []) for site in status["sites"]}


def up_content(cloud: LocalCloud, api_key: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """What up.json says."""
    replicas = replicas_by_site(status)
    sites: Sequence[dict[str, Any]] = [
        {
            "name": site.name,
            "country": site.country,
            "endpoint": cloud.endpoint(site.name),
            "gateway_pid": cloud.supervisor.pid(gateway_child(site.name)),
            "agent_pid": cloud.supervisor.pid(agent_child(site.name)),
            "replicas": [
                {"id": one["id"], "model": one["model"], "pid": one["pid"]}
                for one in replicas.get(site.name, [])
            ],
        }
        for site in cloud.here
    ]
    return {
        "control": cloud.control_url,
        "admin_key": cloud.state.admin_key,
        "api_key": api_key,
        "nats": cloud.nats_url,
        "console": cloud.console_url,
        "console_login": OPERATOR_LOGIN,
        "console_password": cloud.state.console_password,
        "sites": sites,
    }


def server_pids(cloud: LocalCloud) -> dict[str, int | None]:
    """Process ids of the servers that up.json does not name."""
    return {name: cloud.supervisor.pid(name) for name in ("postgres", "nats", "control", "console")}


def write_up(cloud: LocalCloud, api_key: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """Publish up.json and, for those who look after the servers, run/pids.json."""
    content = up_content(cloud, api_key, status)
    pids = json.dumps(server_pids(cloud)).encode()
    write_private(cloud.state.path("run", "pids.json"), pids + b"\n")
    cloud.state.write_up(content)
    return content


async def keep_up_json(cloud: LocalCloud, api_key: str, changed: asyncio.Event) -> None:
    """Write up.json again whenever what it says has changed; for ever. Where there is no room for
    it, it is tried again."""
    status: Mapping[str, Any] | None = None
    written: object = None
    failed = False
    while True:
        try:
            status = await asyncio.to_thread(cloud.api.get, "status")
        except IsochroneError as error:
            cloud.note("status_unknown", reason=error.message)
        if status is not None:
            said = (up_content(cloud, api_key, status), server_pids(cloud))
            if said != written:
                try:
                    write_up(cloud, api_key, status)
                    written, failed = said, False
                except OSError as error:
                    if not failed:
                        cloud.note("up_json_not_written", reason=str(error))
                    failed = True
        try:
            async with asyncio.timeout(KEEP_S):
                await changed.wait()
        except TimeoutError:
            continue
        changed.clear()
