"""Loads the words, phrases and plots of the training text from the TOML files beside it."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NAME = "Tiny Fable"
START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


_WORDS, _PHRASES, _PLOTS = _load("words"), _load("phrases"), _load("plots")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTool:
    """A tool that people ask for in their own words; `{v}` stands for the parameter's value."""

    name: str
    finds: str
    parameter: str
    questions: Sequence[str]
    answers: Sequence[str]


def words(part: str) -> list[str]:
    """All words that play this part; raises KeyError."""
    return [str(word) for word in _WORDS[part]]


def pairs(part: str) -> dict[str, str]:
    """Words with what belongs to each, such as countries with their capitals."""
    return {str(word): str(other) for word, other in _WORDS[part].items()}


def phrases(kind: str) -> list[str]:
    """All phrases of a kind, with the model's name filled in."""
    return [str(phrase).replace("{N}", NAME) for phrase in _PHRASES[kind]]


def answered(kind: str) -> list[tuple[str, str]]:
    """Questions with their answers."""
    return [(str(question), str(answer)) for question, answer in _PHRASES[kind]]


ENDINGS: Sequence[str] = _PLOTS["endings"]
MORALS: Sequence[str] = _PLOTS["morals"]
PLOTS: Mapping[str, Sequence[Sequence[str]]] = _PLOTS["plots"]
KNOWN_TOOLS = [KnownTool(**tool) for tool in _PHRASES["known_tools"]]

GIRLS, BOYS = words("girls"), words("boys")
KINDS, PLACES, THINGS = words("kinds"), words("places"), words("things")
ADJECTIVES, THING_ADJECTIVES = words("adjectives"), words("thing_adjectives")
COLORS, FOODS, NUMBERS = words("colors"), words("foods"), words("numbers")
FUNCTION_WORDS, NOUNS, VERBS = words("function_words"), words("nouns"), words("verbs")
CAPITALS = pairs("capitals")
