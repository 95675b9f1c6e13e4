"""The loops of one copy of control: booking and charging usage, keeping its days, following
budgets, publishing, revoking logins, hearing the fleet, having experiments played, retention.

Free of threads, sockets and servers, so the twin runs the same loops on virtual time.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.control.booking import Booking
from isochrone.control.charging import Charging
from isochrone.control.experimenting import Experimenting
from isochrone.control.fleet_state import FleetState, learn_links, listen
from isochrone.control.limiting import Limiting
from isochrone.control.offload import Offload
from isochrone.control.publish import Publisher
from isochrone.control.reconciling import Reconciler
from isochrone.control.retention import erase_for_ever
from isochrone.control.revoking import Revoking
from isochrone.control.usage_days import UsageDaysLoop
from isochrone.core.errors import Unavailable
from isochrone.ports.book import Book
from isochrone.ports.bus import Bus, Subscription
from isochrone.ports.clock import Clock
from isochrone.ports.experiments import Player
from isochrone.ports.logins import Logins
from isochrone.ports.registry import Registry

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlan:
    """`holder` names this copy in leases: the same name may take its own lease again at once."""

    holder: str
    signer: Ed25519PrivateKey
    evidence_wait_s: float = 30.0
    retain_usage_days: int | None = None  # None: all days stay in the book


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPorts:
    """What control touches the world with."""

    registry: Registry
    book: Book
    bus: Bus
    clock: Clock
    offload: Offload
    player: Player | None = None  # None: it plays no experiments
    logins: Logins | None = None  # None: the bus lets everybody in


class ControlLoops:
    """Everything of control but its API; `wake` and `fleet` are for the API to use."""

    def __init__(self, plan: ControlPlan, ports: ControlPorts) -> None:
        self.ports = ports
        self.fleet = FleetState(ports.clock)
        self.publisher = Publisher(
            ports.registry, ports.bus, clock=ports.clock, signer=plan.signer, holder=plan.holder,
            offload=ports.offload,
        )
        self.booking = Booking(
            ports.bus, ports.book, clock=ports.clock, offload=ports.offload,
            evidence_wait_s=plan.evidence_wait_s,
        )
        self.revoking = None if ports.logins is None else Revoking(
            ports.registry.estate, ports.logins, clock=ports.clock, offload=ports.offload
        )
        self.charging = Charging(ports.registry.ledger, clock=ports.clock, offload=ports.offload)
        self.limiting = Limiting(
            ports.registry.limits, ports.registry.ledger, clock=ports.clock,
            offload=ports.offload, changed=self.publisher.wake,
        )
        self.reconciler = Reconciler(
            ports.registry.reconciling, self.fleet, clock=ports.clock, offload=ports.offload
        )
        self.usage_days = UsageDaysLoop(
            ports.registry.usage_days, clock=ports.clock, offload=ports.offload,
            retain_days=plan.retain_usage_days,
        )
        self.experimenting = None if ports.player is None else Experimenting(
            ports.registry.experiments, ports.registry.leases, ports.player, holder=plan.holder,
            clock=ports.clock, offload=ports.offload,
        )

    def wake(self) -> None:
        """Tell sites and the bus now what changed; call it on the loop's own thread."""
        self.publisher.wake()
        if self.revoking is not None:
            self.revoking.wake()

    async def run(self) -> None:
        """Work until cancelled; outages of the book and the bus are waited out."""
        ports = self.ports
        subscriptions: Sequence[Subscription] = ()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.publisher.run(), name="publisher")
                tasks.create_task(self.booking.run(), name="booking")
                tasks.create_task(self.charging.run(), name="charging")
                tasks.create_task(self.limiting.run(), name="limiting")
                tasks.create_task(self.reconciler.run(), name="reconciler")
                tasks.create_task(self.usage_days.run(), name="usage days")
                tasks.create_task(
                    learn_links(self.fleet, ports.registry.estate, ports.offload), name="links"
                )
                tasks.create_task(
                    erase_for_ever(
                        ports.registry.members, ports.registry.accounts,
                        ports.registry.writes, ports.clock, ports.offload,
                    ),
                    name="retention",
                )
                if self.revoking is not None:
                    tasks.create_task(self.revoking.run(), name="revoking")
                if self.experimenting is not None:
                    tasks.create_task(self.experimenting.run(), name="experiments")
                subscriptions = await listen(self.fleet, ports.bus)
        finally:
            for each in subscriptions:
                await each.close()

    async def resign(self) -> None:
        """Let another copy take over at once; call it after `run` was cancelled."""
        try:
            await self.publisher.resign()
        except Unavailable as error:
            log.warning("lease_kept_until_it_expires", reason=str(error))
