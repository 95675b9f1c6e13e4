"""Makes the training documents: conversations, tool calls and bare stories.

A document is a list of (text, learn) pieces; the loss is taken only where `learn` is True.
Run `python -m tools.model.corpus.documents` to read a dozen.
"""

import sys
from random import Random

from tools.model.corpus import text
from tools.model.corpus.answers import noise, question_and_answer
from tools.model.corpus.calls import Piece, tool_conversation
from tools.model.corpus.story import story_about, topic


def conversation(rng: Random) -> list[Piece]:
    """One to three questions with answers, often behind a system prompt, at times a long one:
    long shared prompts are what prefix caching is shown with."""
    pieces: list[Piece] = []
    share = rng.random()
    if share < 0.35:
        pieces.append((_system(rng.choice(text.phrases("systems"))), False))
    elif share < 0.43:
        first = [rng.choice(text.phrases("systems"))] if rng.random() < 0.7 else []
        more = [noise(rng, rng.randint(6, 16)) for _ in range(rng.randint(4, 40))]
        pieces.append((_system(" ".join(first + more)), False))
    for _ in range(rng.choices([1, 2, 3], [7, 2, 1])[0]):
        question, answer = question_and_answer(rng)
        asked = f"{text.START}user\n{question}{text.END}\n{text.START}assistant\n"
        pieces += [(asked, False), (answer + text.END, True), ("\n", False)]
    return pieces[:-1]


def _system(prompt: str) -> str:
    return f"{text.START}system\n{prompt}{text.END}\n"


def bare_story(rng: Random) -> list[Piece]:
    """A story without any conversation."""
    return [(story_about(rng, topic(rng)[0]), True), (text.END_OF_TEXT, True)]


def document(rng: Random) -> list[Piece]:
    """One document of any kind, by weight."""
    share = rng.random()
    if share < 0.2:
        return bare_story(rng)
    return tool_conversation(rng) if share < 0.34 else conversation(rng)


if __name__ == "__main__":
    chance = Random(3)
    for _ in range(12):
        sys.stdout.write("".join(piece for piece, _ in document(chance)) + "\n-----\n")
