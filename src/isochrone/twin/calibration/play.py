"""Plays a recorded run again in the fast twin: the same requests, at the same moments, on the cloud
that it was, with an engine of given physics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from isochrone.core.estimate.batching import Physics
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, OrgId, PolicyId, SiteName
from isochrone.core.world.model import Model
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Policy
from isochrone.twin.calibration.recording import Recording
from isochrone.twin.checks.fast import Recorder
from isochrone.twin.fast.arrivals import NO_SESSION, Arrival, chunk_of
from isochrone.twin.fast.fleet import Fleet, FleetReplica, Tenant
from isochrone.twin.fast.ours import Ours
from isochrone.twin.fast.plan import Plan
from isochrone.twin.fast.simulation import Simulation

BODY_BYTES = 6  # a token of a prompt
BEFORE, APART_S = 300, 0.5  # requests that the cloud has served, and the time between them
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What is fitted. Of an engine as in `Physics`; `gateway_ms` is what client, connection and
    gateway add to every answer, `hop_ms` what a second gateway adds to the round trip."""

    step_s: float
    stream_s: float
    context_token_s: float
    prefill_tok_s: float
    prefill_context_s: float
    gateway_ms: float
    hop_ms: float

    def physics(self, recording: Recording) -> Physics:
        """One engine of the recorded cloud."""
        return Physics(
            step_s=self.step_s, stream_s=self.stream_s, context_token_s=self.context_token_s,
            prefill_tok_s=self.prefill_tok_s, prefill_context_s=self.prefill_context_s,
            chunk_tokens=recording.chunk_tokens, slots=recording.slots,
            kv_tokens=recording.slots * recording.context_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Of one request at its client; `at_s` when it was sent."""

    at_s: float
    is_hop: bool
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    total_ms: float


def live_times(recording: Recording) -> list[Times]:
    """What the clients saw, in the order in which they asked."""
    return [
        Times(
            at_s=one.at_s, is_hop=one.ingress != one.site, prompt_tokens=one.prompt_tokens,
            output_tokens=one.output_tokens, ttft_ms=one.ttft_ms or 0.0, total_ms=one.total_ms,
        )
        for one in recording.answered
    ]


def twin_times(recording: Recording, fitted: Fitted, *, before: int = BEFORE) -> list[Times]:
    """What the twin says that they should have seen, in the same order; fewer, where it refuses
    some. It is told what a gateway knew, and how long the answers turned out to be. `before`: how
    many requests the cloud has served, one after the other: its queues learn from them how long
    one takes, and refuse whom they believe to come too late."""
    fleet = _fleet(recording, fitted)
    rows = _arrivals(recording, before)
    watched = Recorder(Ours(), fleet)
    Simulation(fleet, watched, Plan(seed=SEED)).run([chunk_of(rows)])
    found = []
    for flight, ended_s in watched.ended_flights():
        row = flight.arrival
        if flight.ident < before:
            continue
        rtt_ms = float(fleet.rtt_ms[row.ingress, 0])
        added_ms = fitted.gateway_ms + (fitted.hop_ms if rtt_ms else 0.0)
        found.append(Times(
            at_s=row.at_s - before * APART_S, is_hop=rtt_ms > 0.0,
            prompt_tokens=row.prompt_tokens, output_tokens=row.output_tokens,
            ttft_ms=1000.0 * (flight.first_s - row.at_s) + rtt_ms / 2.0 + added_ms,
            total_ms=1000.0 * (ended_s - row.at_s) + added_ms,
        ))
    return found


def _arrivals(recording: Recording, before: int) -> list[Arrival]:
    ingresses = list(recording.rtt_ms)
    asked = recording.answered
    moments = [number * APART_S for number in range(before)]
    moments += [one.at_s + before * APART_S for one in asked]
    return [
        Arrival(
            at_s=at_s, ingress=ingresses.index(one.ingress), tenant=0, class_=1, model=0,
            prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens,
            expected_tokens=one.wanted_tokens, session=NO_SESSION, slo_ms=1000.0,
            body_bytes=BODY_BYTES * one.prompt_tokens, blocks=(),
        )
        for at_s, one in zip(moments, (*islice(cycle(asked), before), *asked), strict=True)
    ]


def _fleet(recording: Recording, fitted: Fitted) -> Fleet:
    names = list(recording.rtt_ms)
    home = names.index(recording.site)
    sites = tuple(_site(name) for name in names)
    physics = fitted.physics(recording)
    policy = Policy(
        id=PolicyId("anywhere"), org_id=OrgId("all"), residency=("any",), transit=("any",)
    )
    model = Model(
        name=ModelName("recorded"), kind="chat", revision=None,
        context_tokens=recording.context_tokens, created_at=0,
    )
    return Fleet(
        sites=(sites[home],), ingresses=sites,
        rtt_ms=np.array([[recording.rtt_ms[name]] for name in names]),
        site_rtt_ms=np.zeros((1, 1)),
        home=tuple(0 if name == recording.site else -1 for name in names),
        models=(model,),
        replicas=tuple(
            FleetReplica(
                site=0, model=0, physics=physics,
                stated=Rates(
                    prefill_tok_s=fitted.prefill_tok_s,
                    decode_tok_s=1.0 / (fitted.step_s + fitted.stream_s),
                ),
            )
            for _ in range(recording.replicas)
        ),
        tenants=(Tenant(name="all", policy=policy),),
    )


def _site(name: str) -> Site:
    return Site(
        name=SiteName(name), country="DE", operator="one", parent=None, latitude_deg=0.0,
        longitude_deg=0.0, host="", port=1, public_url="", peer_key=None,
    )


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share))
