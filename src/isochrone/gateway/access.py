"""Who asks: the bearer key looked up by its hash."""

from dataclasses import replace

from isochrone.core.ids import KeyId
from isochrone.core.world.tenant import NO_LIMITS, ApiKey, KeyShard


class Keys:
    """All live keys by the hash of their secret and by id; fed shard by shard."""

    def __init__(self) -> None:
        self.version = 0  # grows with every change
        self._shards: dict[str, tuple[ApiKey, ...]] = {}
        self._by_hash: dict[str, ApiKey] = {}
        self._by_id: dict[KeyId, ApiKey] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def put(self, shard: KeyShard) -> None:
        """Replace one shard; keys that it no longer lists stop to work at once."""
        self.drop(shard.shard)
        # The same `NO_LIMITS` everywhere, so that `is` will do.
        keys = tuple(
            replace(key, limits=NO_LIMITS) if key.limits == NO_LIMITS else key for key in shard.keys
        )
        self._shards[shard.shard] = keys
        for key in keys:
            self._by_hash[key.secret_sha256] = key
            self._by_id[key.id] = key

    def drop(self, shard: str) -> None:
        self.version += 1
        for key in self._shards.pop(shard, ()):
            self._by_hash.pop(key.secret_sha256, None)
            # A key that got another secret is in the shard of that one, which may have come before.
            if self._by_id.get(key.id) is key:
                del self._by_id[key.id]

    def by_id(self, key_id: KeyId) -> ApiKey | None:
        return self._by_id.get(key_id)

    def by_hash(self, secret_sha256: str | None) -> ApiKey | None:
        """The key with this hash of its secret, hex. Looking up a hash tells nothing about the
        secret, so the time that it takes does not matter."""
        return None if secret_sha256 is None else self._by_hash.get(secret_sha256)
