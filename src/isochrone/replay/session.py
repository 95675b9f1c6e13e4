"""One replay from start to end: calibrate, scale, send at the chosen speed, sum up."""

from collections.abc import Callable
from dataclasses import dataclass

from isochrone.core.errors import InvalidInput
from isochrone.ports.clock import Clock
from isochrone.ports.network import Network
from isochrone.replay.client import Call, Client, Sent, Target
from isochrone.replay.prompts import Calibration, Prompts, calibrate
from isochrone.replay.report import Report, summarise
from isochrone.replay.scale import Scaled, fit
from isochrone.replay.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to replay. `speed` 2 halves the time between arrivals; `factor` None fits the longest
    row into `context_tokens`; `run` names this replay in the request ids."""

    run: str
    context_tokens: int
    speed: float = 1.0
    factor: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises InvalidInput."""
        problems = []
        if not self.speed > 0:
            problems.append(f"speed {self.speed} is not above 0")
        if self.factor is not None and not 0 < self.factor <= 1:
            problems.append(f"factor {self.factor} is not above 0 and at most 1")
        if problems:
            raise InvalidInput(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What will be sent, before anything is."""

    calibration: Calibration
    scaled: Scaled
    last_at_s: float


async def replay(
    trace: Trace, plan: Plan, target: Target, network: Network, clock: Clock, *,
    on_ready: Callable[[Ready], None] = lambda ready: None,
    on_sent: Callable[[Sent], None] = lambda sent: None,
) -> Report:
    """Replay all rows of `trace`. `on_ready` is called before the first request, `on_sent` after
    each. Raises InvalidInput, and Unavailable when the cloud does not answer the first probe."""
    plan.check()
    client = Client(network, clock, target, run=plan.run)
    calibration = await calibrate(client.count_prompt, longest_tokens=plan.context_tokens)
    scaled = fit(
        trace, context_tokens=plan.context_tokens, factor=plan.factor,
        overhead_tokens=calibration.overhead_tokens,
    )
    prompts = Prompts(calibration, plan.seed)
    calls = [
        Call(
            row=row.number, at_s=row.at_s / plan.speed, text=prompts.text(row),
            input_tokens=row.input_tokens, output_tokens=row.output_tokens,
        )
        for row in scaled.rows
    ]
    on_ready(Ready(calibration=calibration, scaled=scaled, last_at_s=calls[-1].at_s))
    begun_ns = clock.monotonic_ns()
    sent = await client.send_all(calls, on_sent)
    wall_s = (clock.monotonic_ns() - begun_ns) / 1e9
    return summarise(
        sent, run=plan.run, trace=trace, scaled=scaled, model=target.model, speed=plan.speed,
        wall_s=wall_s,
    )
