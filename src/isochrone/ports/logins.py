"""Logins: what sites log in to the bus with, where they are refused once they were taken back.

Live on NATS. The virtual bus of the twin lets everybody in, so there is nothing to refuse there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedLogin:
    """Whoever proves `user_key` is refused with what was issued until `revoked_at` (wall ns)."""

    user_key: str
    revoked_at: int


class Logins(Protocol):
    async def refuse(self, revoked: Sequence[RevokedLogin]) -> int:
        """Have the bus refuse these logins, and cut off whoever is there with one of them, for
        ever: also after a restart. Return how many it did not refuse before. What was refused once
        stays so, named again or not. Raises BusUnavailable."""
        ...
