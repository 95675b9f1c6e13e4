"""Says which replicas may go on with each other's answers: the same weights behind like engines."""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.world.model import Replica

# `vllm` also means engines with its flags and counts (SGLang); `unknown` any other upstream.
EngineFamily = Literal["llamacpp", "vllm", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kin:
    """What two replicas must share for one to continue the other's answer. `revision` names the
    weights; None is unknown and like no other."""

    engine: EngineFamily
    revision: str | None

    def may_follow(self, lost: "Kin") -> bool:
        """Whether a replica of this kin may continue an answer of a lost one's."""
        return self.revision is not None and self == lost


def kin_of(replica: Replica) -> Kin:
    """An upstream is known by the way in which it counts: the family was seen by its metrics."""
    family: EngineFamily = "unknown"
    if replica.engine == "llamacpp" or replica.running_counts == "timings":
        family = "llamacpp"
    elif replica.running_counts == "usage":
        family = "vllm"
    return Kin(engine=family, revision=replica.revision)
