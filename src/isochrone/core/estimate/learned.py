"""Rates of a model on a kind of hardware, learned by a gateway from when answers came.

For sites whose engines do not say their own rates: what is learned at one of them stands for all
with the same hardware. Kept as the logarithm of what a rate is of the hardware table's, so that
twice and half are as far; one sample moves it little, and what nobody renews fades to the table.
"""

from math import exp, inf, log
from typing import Final

from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName

MOST_FACTOR: Final = 8.0    # away from the table's rate, in either direction
SHARE: Final = 0.2          # of a sample's difference that is taken over
MOST_STEP: Final = 0.5      # of the logarithm that a sample may differ and count by how much
HALF_LIFE_S: Final = 3600.0
_MOST: Final = log(MOST_FACTOR)


class LearnedRates:
    """By (model, kind of hardware). Mutable, owned by one event loop; time is an argument."""

    def __init__(self) -> None:
        self._prefill: dict[tuple[ModelName, str], float] = {}
        self._decode: dict[tuple[ModelName, str], float] = {}
        self._faded_ns: int | None = None

    def rates(self, model: ModelName, kind: str, seed: Rates) -> Rates:
        """What to assume of a replica of the model there; `seed` is the hardware table's word."""
        key = (model, kind)
        prefill, decode = self._prefill.get(key), self._decode.get(key)
        if prefill is None and decode is None:
            return seed
        return Rates(
            prefill_tok_s=seed.prefill_tok_s * exp(prefill or 0.0),
            decode_tok_s=seed.decode_tok_s * exp(decode or 0.0),
        )

    def saw_prefill(self, model: ModelName, kind: str, seed: Rates, tok_s: float) -> None:
        """A prompt was read at this rate while nobody was ahead of it."""
        _learn(self._prefill, (model, kind), seed.prefill_tok_s, tok_s)

    def saw_decode(self, model: ModelName, kind: str, seed: Rates, tok_s: float) -> None:
        """An answer was written at this rate."""
        _learn(self._decode, (model, kind), seed.decode_tok_s, tok_s)

    def fade(self, now_ns: int) -> None:
        """Call it now and then: half of what was learned is forgotten in an hour."""
        before_ns, self._faded_ns = self._faded_ns, now_ns
        if before_ns is None or now_ns <= before_ns:
            return
        left = 0.5 ** ((now_ns - before_ns) / 1e9 / HALF_LIFE_S)
        for known in (self._prefill, self._decode):
            for key in known:
                known[key] *= left


def _learn(
    known: dict[tuple[ModelName, str], float], key: tuple[ModelName, str], seed_tok_s: float,
    tok_s: float,
) -> None:
    if not 0.0 < tok_s < inf:
        return
    before = known.get(key, 0.0)
    step = min(max(log(tok_s / seed_tok_s) - before, -MOST_STEP), MOST_STEP)
    known[key] = min(max(before + SHARE * step, -_MOST), _MOST)
