"""Host: one machine at a site, and what is in it."""

import re
from dataclasses import dataclass
from typing import Final

from isochrone.core.ids import HostName

# As DNS and Kubernetes name machines, and with the underscores of those who do not.
HOST_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
HOST_NAME_IN_WORDS: Final = "up to 253 letters, digits, '.', '-' and '_', not at the ends"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator of a host. `kind` is what its driver calls it; `memory_bytes` None where
    that does not say."""

    kind: str
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One machine, as the agent on it found it. `name` is unique at its site.

    `cores` and `memory_bytes` are what processes here may use: a container's limits are below what
    the machine has. `machine` is the same for two hosts that run on one machine, and for no other
    two; None where that cannot be told.
    """

    name: HostName
    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...] = ()
    machine: str | None = None


def is_host_name(text: str) -> bool:
    return re.fullmatch(HOST_NAME, text) is not None
