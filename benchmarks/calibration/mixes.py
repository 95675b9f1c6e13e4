"""What is recorded: which part of which packaged trace, how fast, into which cloud."""

from dataclasses import dataclass, replace
from pathlib import Path

WORLDS = Path(__file__).resolve().parent / "worlds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Requests of a packaged trace from row `start` on, `speed` times as fast as recorded, lengths
    by `factor`, for the cloud of a file in `worlds/`."""

    name: str
    trace: str
    start: int
    limit: int
    speed: float
    factor: float
    seed: int
    world: str = "one-engine"

    def options(self, take: int, number: int = 0) -> tuple[str, ...]:
        """Of `isochrone replay`. Every try of a take has words of its own, so that none finds those
        of another in the engine's cache."""
        return (
            self.trace, "--start", str(self.start), "--limit", str(self.limit),
            "--speed", f"{self.speed:g}", "--factor", f"{self.factor:g}",
            "--seed", str(100 * take + 10 * number + self.seed),
        )


CONVERSATIONS = Mix(
    name="conversations", trace="azure-conv", start=4000, limit=220, speed=0.9, factor=0.4, seed=1,
)
# Code has long prompts and short answers: in bursts with pauses, evenly, and more than can be done.
BURSTS = Mix(
    name="bursts", trace="azure-code", start=6000, limit=150, speed=1.3, factor=0.25, seed=2,
)
RUSH = Mix(
    name="rush", trace="azure-code", start=2250, limit=240, speed=1.0, factor=0.25, seed=3,
)
CODE = Mix(
    name="code", trace="azure-code", start=5550, limit=120, speed=0.55, factor=0.25, seed=7,
)
MIXES = (
    CONVERSATIONS, RUSH, BURSTS, CODE,
    *(
        replace(mix, name=f"pair-{mix.name}", seed=mix.seed + 3, world="two-engines")
        for mix in (CONVERSATIONS, RUSH, BURSTS)
    ),
)
