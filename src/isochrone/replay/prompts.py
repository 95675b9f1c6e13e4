"""Makes prompts of a wanted length with the recorded sharing: equal block ids give equal text.

Text is made of short common words. How many tokens a word takes, and how many the chat template
adds, is measured with the model itself, so lengths come out right within a few percent.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from isochrone.core.errors import Unavailable
from isochrone.core.rng import Random, stream
from isochrone.replay.scale import ScaledRow

_COMMON = (
    "the a and to was it he she they in on of had said for with you one day time little old "
    "there her his him them that not but so very then when came went saw found took home tree "
    "bird dog cat fox sun moon rain sea wind key box cake red blue green big small good happy sad "
    "new friend boy girl king story house garden river road forest morning night water"
)
WORDS = tuple(_COMMON.split())
SHORT_PROBE_WORDS = 60
LONG_PROBE_WORDS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Tokens that one word takes on average, and tokens that every prompt has beyond its text."""

    tokens_per_word: float
    overhead_tokens: int

    def words(self, tokens: int) -> int:
        """How many words fill a prompt of this many tokens."""
        return max(0, round((tokens - self.overhead_tokens) / self.tokens_per_word))


async def calibrate(
    count: Callable[[str], Awaitable[int]], *, longest_tokens: int | None = None
) -> Calibration:
    """Measure with two probes; `count` sends a text and returns the prompt tokens that the engine
    reports. Raises Unavailable when the reports make no sense."""
    long_words = LONG_PROBE_WORDS
    if longest_tokens is not None:
        long_words = max(min(long_words, longest_tokens // 4), 8)
    short_words = min(SHORT_PROBE_WORDS, long_words // 4)
    rng = stream(0, "calibration")
    short = await count(_text(rng, short_words))
    long = await count(_text(rng, long_words))
    tokens_per_word = (long - short) / (long_words - short_words)
    if short <= 0 or tokens_per_word <= 0:
        raise Unavailable(
            f"the engine counts {short} tokens for {short_words} words and {long} for "
            f"{long_words}: lengths cannot be calibrated"
        )
    overhead = max(0, round(short - short_words * tokens_per_word))
    return Calibration(tokens_per_word=tokens_per_word, overhead_tokens=overhead)


class Prompts:
    """Texts of one replay; `seed` changes the words but not the lengths."""

    def __init__(self, calibration: Calibration, seed: int = 0) -> None:
        self._calibration = calibration
        self._seed = seed

    def text(self, row: ScaledRow) -> str:
        """The prompt of one row. Rows without blocks share nothing with any other."""
        words = self._calibration.words
        total = max(words(row.input_tokens), 1)
        parts: list[str] = []
        at = 0
        for block, end in zip(row.blocks, row.block_ends, strict=True):
            take = min(words(end), total) - at
            if take > 0:
                parts += self._words(f"block {block}", take)
                at += take
        if at < total:
            parts += self._words(f"row {row.number}", total - at)
        return " ".join(parts)

    def _words(self, name: str, size: int) -> list[str]:
        """The first `size` words of this block or row: a shorter piece begins a longer one."""
        return stream(self._seed, name).choices(WORDS, k=size)


def _text(rng: Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))
