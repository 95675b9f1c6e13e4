"""One central campus: the same engines at one place, for the same clients.

What is compared is the fleet, not the routing: the campus gets the best of the rules for one site.
"""

import numpy as np

from isochrone.twin.fast.fleet import Fleet, FleetReplica


def campus_of(fleet: Fleet, at_site: int) -> Fleet:
    """The fleet with all replicas at one of its sites; round trips are those to that site."""
    site = fleet.sites[at_site]
    return Fleet(
        sites=(site,),
        ingresses=fleet.ingresses,
        rtt_ms=np.ascontiguousarray(fleet.rtt_ms[:, [at_site]]),
        site_rtt_ms=np.zeros((1, 1)),
        home=tuple(0 if home == at_site else -1 for home in fleet.home),
        models=fleet.models,
        replicas=tuple(_moved(each) for each in fleet.replicas),
        tenants=fleet.tenants,
        blocs=fleet.blocs,
        via={
            (ingress, 0): countries
            for (ingress, to), countries in fleet.via.items() if to == at_site
        },
        admission=fleet.admission,
    )


def best_campus(fleet: Fleet, weights: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
    """The site with the least mean round trip; `weights[ingress]` is each ingress's part of the
    requests."""
    return int(np.argmin(weights @ fleet.rtt_ms))


def _moved(replica: FleetReplica) -> FleetReplica:
    return FleetReplica(
        site=0, model=replica.model, physics=replica.physics, stated=replica.stated,
        gpus=replica.gpus, cache_tokens=replica.cache_tokens,
        weights_bytes=replica.weights_bytes, fetch_bytes_s=replica.fetch_bytes_s,
        load_s=replica.load_s, starts_cold=replica.starts_cold,
    )
