"""What control says of sites, replicas and deployments, as far as pages show it."""

import asyncio
from collections.abc import Sequence

import msgspec

from isochrone.console.api import Api
from isochrone.console.parts.words import ago, count

MOST = 100_000


class Hardware(msgspec.Struct, frozen=True):
    kind: str
    count: int


class Load(msgspec.Struct, frozen=True):
    """Of all ready replicas of a model at a site; rates are of one stream."""

    model: str
    replicas_wanted: int
    ready: int
    slots: int
    running: int
    waiting: int
    prefill_tok_s: float | None
    decode_tok_s: float | None


class Replica(msgspec.Struct, frozen=True):
    """`pid` and `host` are None for all but operators; `host` also where nobody knows it."""

    id: str
    model: str
    state: str
    health: str
    why: str | None
    generation: int
    pid: int | None
    running: int
    waiting: int
    restarts: int
    kept_tokens: int | None
    held_tokens: int | None = None
    host: str | None = None


class Power(msgspec.Struct, frozen=True):
    watts: float
    most_w: float
    source: str


class Link(msgspec.Struct, frozen=True):
    peer: str
    rtt_ms: float
    source: str


class Seen(msgspec.Struct, frozen=True):
    """How the gateway of another site trusts this one, where it does not wholly."""

    by: str
    state: str
    why: str


class Site(msgspec.Struct, frozen=True):
    """A site of GET /status; GET /sites/{name} says its links as well."""

    name: str
    country: str | None
    operator: str | None
    parent: str | None
    public_url: str | None
    joined: bool
    draining: bool
    stopped: bool
    ready: bool
    health: str
    digest_age_ms: float | None
    hardware: tuple[Hardware, ...]
    seen: tuple[Seen, ...]
    loads: tuple[Load, ...]
    replicas: tuple[Replica, ...]
    power: Power | None
    links: tuple[Link, ...] = ()

    @property
    def standing(self) -> str:
        """Its health; stopped where an operator stopped its replicas."""
        return "stopped" if self.stopped else self.health

    @property
    def machines(self) -> list[str]:
        """Its hardware in words."""
        return [f"{each.count} × {each.kind}" for each in self.hardware]

    @property
    def heard(self) -> str:
        """When its digest came, in words."""
        return ago(self.digest_age_ms)


class Status(msgspec.Struct, frozen=True):
    bus: bool
    sites: tuple[Site, ...]


class Deployment(msgspec.Struct, frozen=True):
    """What should run: `replicas` of the model at the site, `stopped_replicas` once it is started
    again."""

    site: str
    model: str
    replicas: int
    engine: str
    context_tokens: int
    stopped_replicas: int | None


class Fleet(msgspec.Struct, frozen=True):
    """The whole of it at one moment."""

    bus: bool
    sites: tuple[Site, ...]
    deployments: tuple[Deployment, ...]

    def site(self, name: str) -> Site | None:
        return next((each for each in self.sites if each.name == name), None)

    def load(self, site: str, model: str) -> Load | None:
        found = self.site(site)
        loads = () if found is None else found.loads
        return next((each for each in loads if each.model == model), None)

    def wishes(self, site: str) -> Sequence[Deployment]:
        return [each for each in self.deployments if each.site == site]


async def load_fleet(api: Api) -> Fleet:
    """The fleet as it is now. Raises IsochroneError."""
    status, wishes = await asyncio.gather(
        api.get("status", Status), api.items("deployments", Deployment, most=MOST)
    )
    return Fleet(bus=status.bus, sites=status.sites, deployments=wishes)


def cache_use(replicas: Sequence[Replica]) -> str | None:
    """Tokens that running requests take of the engines' caches, of the room there, as far as the
    engines say; None where none does."""
    held = [each.held_tokens for each in replicas if each.held_tokens is not None]
    room = [each.kept_tokens for each in replicas if each.kept_tokens is not None]
    if not held:
        return f"of {count(sum(room))} tokens" if room else None
    of = f" of {count(sum(room))}" if len(room) == len(held) == len(replicas) else ""
    return f"{count(sum(held))}{of} tokens"


def drawn_power(power: Power | None) -> str | None:
    """In words, and where the figure comes from."""
    if power is None:
        return None
    return f"{watts(power.watts)} of {watts(power.most_w)}, {power.source}"


def watts(power_w: float) -> str:
    """In the unit that reads best."""
    return f"{power_w:.0f} W" if power_w < 1_000 else f"{power_w / 1_000:.1f} kW"
