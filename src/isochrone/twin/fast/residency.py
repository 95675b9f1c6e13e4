"""Where requests of the simulation may be processed: by the live tables of each ingress."""

from dataclasses import replace

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.table import RoutingTable, compile_table
from isochrone.core.world.site import Link, Site
from isochrone.core.world.view import View
from isochrone.twin.fast.fleet import Fleet

JOINED_KEY = "00" * 32  # every site of a fleet has joined


class Tables:
    """The routing table of each ingress, and of sites where nobody enters; made when asked for."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.sites = [_joined(site) for site in fleet.sites]
        self._tables: dict[int, RoutingTable] = {}
        self._site_tables: dict[int, RoutingTable] = {}
        self._allowed: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self._number = {site.name: number for number, site in enumerate(fleet.sites)}
        self._policies = {tenant.policy.id: tenant.policy for tenant in fleet.tenants}
        self._deployments = {
            model.name: frozenset(
                site.name for number, site in enumerate(fleet.sites) if fleet.at[number][index]
            )
            for index, model in enumerate(fleet.models)
        }

    def of(self, ingress: int) -> RoutingTable:
        """As the gateway of an ingress compiles it."""
        table = self._tables.get(ingress)
        if table is None:
            home = self.fleet.home[ingress]
            own = _joined(self.fleet.ingresses[ingress]) if home < 0 else self.sites[home]
            rtt_ms = self.fleet.rtt_ms[ingress].tolist()
            table = self._tables[ingress] = self._table(own, rtt_ms, ingress)
        return table

    def of_site(self, site: int) -> RoutingTable:
        """As the gateway of a site does at which nobody enters."""
        table = self._site_tables.get(site)
        if table is None:
            rtt_ms = self.fleet.site_rtt_ms[site].tolist()
            table = self._site_tables[site] = self._table(self.sites[site], rtt_ms, -1)
        return table

    def allowed(self, ingress: int, tenant: int, model: int) -> tuple[int, ...]:
        """See `policy.Rules`."""
        key = ingress, tenant, model
        allowed = self._allowed.get(key)
        if allowed is None:
            fleet = self.fleet
            shortlist = self.of(ingress).shortlist(
                fleet.models[model].name, fleet.tenants[tenant].policy.id
            )
            allowed = self._allowed[key] = tuple(sorted(
                [self._number[site.name] for site in shortlist.open_sites]
            ))
        return allowed

    def _table(self, own: Site, rtt_ms: list[float], ingress: int) -> RoutingTable:
        sites = {site.name: site for site in self.sites}
        sites.setdefault(own.name, own)
        via = self.fleet.via
        links: dict[SiteName, Link] = {}
        for number, site in enumerate(self.sites):
            if site.name != own.name:
                links[site.name] = Link(
                    peer=site.name, rtt_ms=rtt_ms[number], source="table",
                    via=via.get((ingress, number)),
                )
        models = {ModelName(model.name): model for model in self.fleet.models}
        table = compile_table(
            View(own_site=own.name, sites=sites, links=links, models=models,
                 deployments=self._deployments, policies=self._policies),
            self.fleet.blocs,
            self.fleet.hardware,
        )
        # Ingresses without engines are left out of the view; only their number counts.
        count = max(len(self.fleet.ingresses), len(sites))
        return replace(table, joined=(1 << count) - 1)


def _joined(site: Site) -> Site:
    return site if site.peer_key is not None else replace(site, peer_key=JOINED_KEY)
