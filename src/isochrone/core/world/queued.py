"""Queued: what waits at a site's gateways for its turn, and how much of what came was pushed there;
engines know of neither."""

from dataclasses import dataclass

from isochrone.core.ids import ModelName, SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedWork:
    """All requests that wait for one model; tokens as expected. `pushed` counts those that came
    past a nearer site, since the worker's start."""

    model: ModelName
    requests: int
    prompt_tokens: int
    output_tokens: int
    pushed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """Of one worker of a site's gateway: a later one replaces it, and so does silence."""

    site: SiteName
    worker: int
    queues: tuple[QueuedWork, ...] = ()
