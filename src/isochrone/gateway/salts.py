"""Salts that keep tenants apart: of the hashes of prompts and sessions, and of engines' own caches.

All are keyed hashes under the site's secret, so that nobody outside the site can compute what
another tenant's hashes would be, and the gateways and workers of a site agree.
"""

from hashlib import blake2b
from typing import Final

from isochrone.core.ids import ModelName, OrgId, PolicyId

MOST_KEPT: Final = 65_536
MOST_WISHES: Final = 1024  # apart: clients may invent them, and each is up to 2 KB
ENGINE_SALT_BYTES: Final = 16


class Salts:
    """`secret`: any bytes that nobody else has. Mutable, owned by one event loop."""

    def __init__(self, secret: bytes) -> None:
        self._key = blake2b(secret, digest_size=32, person=b"isochrone salts").digest()
        self._numbers: dict[tuple[str, ...], int] = {}
        self._of_wishes: dict[tuple[str, ...], int] = {}
        self._engines: dict[tuple[str, str], str] = {}

    def of_prompts(self, org: OrgId, model: ModelName) -> int:
        """64 bits for the blocks of a tenant's prompts to a model: engines cache by model."""
        return self._number(("prompts", org, model), self._numbers, MOST_KEPT)

    def of_sessions(
        self, org: OrgId, model: ModelName, policy: PolicyId, narrowed: str
    ) -> int:
        """64 bits for a tenant's sessions. Each policy and each wish has homes of its own, since a
        site may be allowed by one and not by the other."""
        what = ("sessions", org, model, policy, narrowed)
        if narrowed:
            return self._number(what, self._of_wishes, MOST_WISHES)
        return self._number(what, self._numbers, MOST_KEPT)

    def of_engine(self, org: OrgId, own: bytes) -> str:
        """What an engine mixes into its cache for a tenant, hex. `own` is the salt that the client
        gave, if any: it parts the tenant's cache further and never joins another's."""
        if own:
            return self._hash(("engine", org), own, ENGINE_SALT_BYTES).hex()
        known = self._engines.get(("engine", org))
        if known is None:
            known = self._hash(("engine", org), b"", ENGINE_SALT_BYTES).hex()
            if len(self._engines) >= MOST_KEPT:
                self._engines.clear()
            self._engines["engine", org] = known
        return known

    def _number(
        self, what: tuple[str, ...], numbers: dict[tuple[str, ...], int], most: int
    ) -> int:
        known = numbers.get(what)
        if known is None:
            known = int.from_bytes(self._hash(what, b"", 8), "big")
            if len(numbers) >= most:
                numbers.clear()
            numbers[what] = known
        return known

    def _hash(self, what: tuple[str, ...], more: bytes, size_bytes: int) -> bytes:
        """Every part with its length, so that no two lists of parts are alike."""
        whole = blake2b(key=self._key, digest_size=size_bytes)
        for part in what:
            encoded = part.encode("utf-8", "surrogatepass")
            whole.update(len(encoded).to_bytes(8, "big") + encoded)
        whole.update(more)
        return whole.digest()
