"""What a digest says of the replicas of each model, as far as it tells what their caches hold.

It is worked out once for each digest, however many gateways of a simulation hear it.
"""

from typing import Final

from isochrone.core.ids import ModelName, ReplicaId
from isochrone.core.world.digest import ReplicaLoad, SiteDigest

KEPT_TOKENS: Final = 200_000  # by a replica that does not say how many its cache holds
LEAST_KEPT_TOKENS: Final = 256  # a block
MOST_KEPT_TOKENS: Final = 1 << 40  # a digest is another site's word
NOT_ASKED: Final = -1


class ModelSaid:
    """Of all replicas of one model at a site: the `generations`, the `totals` of tokens that each
    computed since it was started, of those that tell, and the tokens that their caches hold
    together. A digest is known by `epoch` and `sequence`."""

    __slots__ = (
        "_before_epoch", "_before_sequence", "_since_tokens", "epoch", "generations",
        "kept_tokens", "sequence", "totals",
    )

    def __init__(self, epoch: int, sequence: int) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.generations: dict[ReplicaId, int] = {}
        self.totals: dict[ReplicaId, int] = {}
        self.kept_tokens = 0
        self._before_epoch = self._before_sequence = NOT_ASKED
        self._since_tokens: int | None = None

    def add(self, said: ReplicaLoad) -> None:
        replica = ReplicaId(said.id)
        self.generations[replica] = said.generation
        self.kept_tokens += _kept(said.kept_tokens)
        if said.prompt_tokens_total is not None:
            read, written = said.prompt_tokens_total, said.output_tokens_total or 0
            self.totals[replica] = max(read, 0) + max(written, 0)

    def since(self, before: "ModelSaid") -> int | None:
        """Tokens computed since an earlier digest of the site; None where that does not tell: both
        must speak of the same replicas, and all of those say what they computed. Remembered for
        whoever asks next, who mostly has heard the same."""
        if before.sequence != self._before_sequence or before.epoch != self._before_epoch:
            self._before_epoch, self._before_sequence = before.epoch, before.sequence
            self._since_tokens = self._count(before)
        return self._since_tokens

    def _count(self, before: "ModelSaid") -> int | None:
        generations, totals = self.generations, self.totals
        if not len(totals) == len(generations) == len(before.totals) == len(before.generations):
            return None
        since_tokens = 0
        for replica, total in totals.items():
            earlier = before.totals.get(replica)
            if earlier is None:
                return None
            if before.generations[replica] != generations[replica]:
                earlier = 0  # totals begin anew with a generation
            since_tokens += max(total - earlier, 0)
        return since_tokens


class ReplicasSaid:
    """A digest, by model, once anybody asks."""

    __slots__ = ("_by_model", "_digest", "site")

    def __init__(self, digest: SiteDigest) -> None:
        self.site = digest.site
        self._digest = digest
        self._by_model: dict[ModelName, ModelSaid] | None = None

    def of(self, model: ModelName) -> ModelSaid | None:
        """None where it speaks of no replica of the model."""
        if self._by_model is None:
            self._by_model = self._sorted()
        return self._by_model.get(model)

    def _sorted(self) -> dict[ModelName, ModelSaid]:
        found: dict[ModelName, ModelSaid] = {}
        for said in self._digest.replicas:
            of_model = found.get(said.model)
            if of_model is None:
                of_model = found[said.model] = ModelSaid(self._digest.epoch, self._digest.sequence)
            of_model.add(said)
        return found


def _kept(said_tokens: int | None) -> int:
    """What a replica's cache holds; a size that none can have counts as not said."""
    if said_tokens is None or not LEAST_KEPT_TOKENS <= said_tokens <= MOST_KEPT_TOKENS:
        return KEPT_TOKENS
    return said_tokens
