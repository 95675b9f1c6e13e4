"""What every endpoint works with: the book, the clock, chance, and the loop's ear for changes."""

from collections.abc import Callable
from dataclasses import dataclass

from isochrone.control.fleet_state import FleetState
from isochrone.control.joining import Hub, SiteCredentials
from isochrone.core.estimate.power import PowerTable
from isochrone.core.ids import uuid7
from isochrone.core.residency.blocs import Blocs
from isochrone.ports.book import Book
from isochrone.ports.clock import Clock
from isochrone.ports.experiments import Player
from isochrone.ports.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Playing:
    """What plays experiments; `wake()` has the loop look at the book, from any thread."""

    player: Player
    wake: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`entropy(n)` gives n unpredictable bytes; `changed()` has sites and the bus told, from any
    thread; `secret_root` is what repeatable secrets are derived from, `power` estimates of power;
    without `experiments` none are played here."""

    registry: Registry
    book: Book
    fleet: FleetState
    blocs: Blocs
    clock: Clock
    entropy: Callable[[int], bytes]
    changed: Callable[[], None]
    bus_connected: Callable[[], bool]
    hub: Hub
    site_credentials: SiteCredentials
    secret_root: bytes
    power: PowerTable
    experiments: Playing | None = None

    def now(self) -> int:
        """Wall nanoseconds UTC."""
        return self.clock.wall_ns()

    def new_id(self) -> str:
        """A fresh UUIDv7."""
        return uuid7(self.now(), int.from_bytes(self.entropy(10), "big"))
