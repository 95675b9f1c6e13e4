"""What control says of hosts to operators, and how it is written."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from isochrone.console.api import Api
from isochrone.console.estate import MOST, Fleet, Replica
from isochrone.console.parts.words import NOTHING, ago

GIB = 1024**3
UNKNOWN = "The addresses of their upstreams say nothing about machines."


class Gpu(msgspec.Struct, frozen=True):
    kind: str
    memory_bytes: int | None


class Host(msgspec.Struct, frozen=True):
    """A machine of a site, and of the replicas wanted there those that are ready."""

    site: str
    name: str
    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    machine: str | None
    health: str
    replicas_wanted: int
    ready: int
    running: int
    waiting: int
    digest_age_ms: float

    @property
    def accelerators(self) -> list[str]:
        """Its GPUs in words, those of a kind together."""
        return [
            f"{count} × {gpu.kind}" + (
                "" if gpu.memory_bytes is None else f" ({memory(gpu.memory_bytes)})"
            )
            for gpu, count in Counter(self.gpus).items()
        ]

    @property
    def machinery(self) -> str:
        """What is in it, in one line."""
        cores = f"{self.cores} core{'s' * (self.cores != 1)}"
        parts = [cores, *([] if self.memory_bytes is None else [memory(self.memory_bytes)])]
        return ", ".join([*parts, *(self.accelerators or ["no GPU found"])])

    @property
    def heard(self) -> str:
        return ago(self.digest_age_ms)

    @property
    def about(self) -> str:
        """What it is and how it does, in one line."""
        return (
            f"{self.machinery}. {self.ready} of {self.replicas_wanted} wanted replicas ready."
            f" Heard {self.heard}."
        )


async def load_hosts(api: Api, *, site: str | None = None) -> tuple[Host, ...]:
    """Hosts of all sites, or of one. Raises IsochroneError."""
    return await api.items("hosts", Host, most=MOST, site=site)


def grouped(
    replicas: Sequence[Replica], hosts: Sequence[Host]
) -> Mapping[str | None, Sequence[Replica]]:
    """Replicas of a site by host, every host with its own; under None, at the end, those of whose
    host nothing is known, and where there is nothing else no replica at all."""
    groups: dict[str | None, list[Replica]] = {each.name: [] for each in hosts}
    unknown: list[Replica] = []
    for each in replicas:
        groups.get(each.host, unknown).append(each)
    if unknown or not groups:
        groups[None] = unknown
    return groups


def row(fleet: Fleet, host: Host) -> tuple[object, ...]:
    """Site, host, health, GPUs, cores, memory, replicas ready of wanted, running, heard."""
    return (
        host.site, host.name, standing(fleet, host), host.accelerators, host.cores,
        memory(host.memory_bytes), f"{host.ready} / {host.replicas_wanted}", host.running,
        host.heard,
    )


def standing(fleet: Fleet, host: Host) -> str:
    """Its health; stopped where an operator stopped the replicas of its site."""
    site = fleet.site(host.site)
    return "stopped" if site is not None and site.stopped else host.health


def shared(hosts: Sequence[Host]) -> list[str]:
    """A sentence for each machine that several hosts are."""
    by_machine: dict[str, list[Host]] = {}
    for host in hosts:
        if host.machine is not None:
            by_machine.setdefault(host.machine, []).append(host)
    return [
        f"{_listed(sorted({each.name for each in group}))} at"
        f" {_listed(sorted({each.site for each in group}))} is one machine: its cores, memory and"
        " GPUs are there once."
        for group in by_machine.values() if len(group) > 1
    ]


def memory(size_bytes: int | None) -> str:
    """In gibibytes."""
    if size_bytes is None:
        return NOTHING
    size_gib = size_bytes / GIB
    return f"{size_gib:.0f} GiB" if size_gib >= 9.95 else f"{size_gib:.1f} GiB"


def _listed(names: Sequence[str]) -> str:
    """At most four of them."""
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
