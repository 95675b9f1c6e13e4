"""Leases: which copy of control runs a loop, with a fencing epoch; and serials of signed entries.

A lease alone does not stop a frozen holder that wakes up late, so its epoch is checked by the
transaction that draws serials: entries of an old holder can never carry a newer serial.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """`holder` may run `name` until `expires_at`; `epoch` grows with every new holding."""

    name: str
    holder: str
    epoch: int
    expires_at: int


class Leases(Protocol):
    def take(self, name: str, holder: str, *, now: int, ttl_ns: int) -> Lease | None:
        """A new holding when the lease is free, expired or held under the same holder name."""
        ...

    def renew(self, lease: Lease, *, now: int, ttl_ns: int) -> Lease | None:
        """The same holding, longer; None when another took over."""
        ...

    def release(self, lease: Lease) -> None:
        """Give it up; nothing happens when another took over."""
        ...

    def serials(self, lease: Lease, count: int, *, above: int) -> int:
        """Reserve `count` serials greater than `above` and than all before; return the first.

        Raises Conflict when `lease` is not the current holding.
        """
        ...
