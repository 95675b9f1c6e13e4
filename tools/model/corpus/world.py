"""The world of one story: its hero, friend, thing and place; fills them into templates."""

import re
from dataclasses import dataclass
from random import Random
from typing import Literal

from tools.model.corpus import text

Wish = tuple[Literal["kind", "thing", "place", "name"], str]

QUEENS = ("queen", "princess", "hen")
KINGS = ("king",)


@dataclass(slots=True)
class World:
    """`words` holds every field that a template may read; `hero_kind` is None for a child."""

    rng: Random
    words: dict[str, str]
    hero_kind: str | None
    girl: bool


def make_world(rng: Random, wish: Wish | None = None) -> World:
    """Draw a world at random; `wish` fixes one part of it."""
    hero_kind = rng.choice(text.KINDS) if rng.random() < 0.6 else None
    thing, place = rng.choice(text.THINGS), rng.choice(text.PLACES)
    if wish is not None:
        hero_kind = wish[1] if wish[0] == "kind" else hero_kind
        thing = wish[1] if wish[0] == "thing" else thing
        place = wish[1] if wish[0] == "place" else place
    girl = rng.random() < 0.5
    name = rng.choice(text.GIRLS if girl else text.BOYS)
    if wish is not None and wish[0] == "name":
        name = wish[1]
        girl = name in text.GIRLS
        hero_kind = None if rng.random() < 0.7 else hero_kind
    if hero_kind in QUEENS:
        girl = True
        name = name if name in text.GIRLS else rng.choice(text.GIRLS)
    if hero_kind in KINGS:
        girl = False
        name = name if name in text.BOYS else rng.choice(text.BOYS)
    words = {"name": name, "thing": thing, "place": place, "hero_kind": hero_kind or ""}
    words["he"], words["him"], words["his"] = ("she", "her", "her") if girl else (
        "he", "him", "his",
    )
    _add_details(rng, words, hero_kind)
    return World(rng=rng, words=words, hero_kind=hero_kind, girl=girl)


def _add_details(rng: Random, words: dict[str, str], hero_kind: str | None) -> None:
    """Draw everything else; the order of the draws is the order of the seeds."""
    words["adj"] = rng.choice(text.ADJECTIVES)
    words["tadj"] = rng.choice(text.THING_ADJECTIVES)
    words["fkind"] = rng.choice([kind for kind in text.KINDS if kind != hero_kind])
    words["fadj"] = rng.choice(text.ADJECTIVES)
    names = [name for name in text.GIRLS + text.BOYS if name != words["name"]]
    words["fname"] = rng.choice(names)
    words["food"] = rng.choice(text.FOODS)
    words["sad"] = rng.choice(text.words("bad_feelings"))
    words["feel"] = rng.choice(text.words("good_feelings"))
    words["feel2"] = rng.choice(text.words("good_feelings"))
    words["thing2"] = rng.choice([thing for thing in text.THINGS if thing != words["thing"]])
    words["place2"] = rng.choice([place for place in text.PLACES if place != words["place"]])
    words["weather"] = rng.choice(text.words("weathers"))
    words["time"] = rng.choice(text.words("times"))
    words["color"] = rng.choice(text.COLORS)
    words["n"] = rng.choice(["two", "three", "four", "five", "seven", "ten"])


def an(word: str) -> str:
    """The word with its indefinite article."""
    vowel = word[0] in "aeiou" and not word.startswith(("uni", "use"))
    return f"{'an' if vowel else 'a'} {word}"


def fill(template: str, world: World) -> str:
    """`{a|b}` picks one (nested allowed); `[field]` reads the world; `[an field]` adds `a` or
    `an`; a capital letter asks for one. Repairs prepositions and the starts of sentences."""
    filled = template
    while (found := re.search(r"\{([^{}]*)\}", filled)) is not None:
        picked = world.rng.choice(found.group(1).split("|"))
        filled = filled[: found.start()] + picked + filled[found.end() :]

    def read(found: re.Match[str]) -> str:
        field = found.group(1)
        if field.startswith("an "):
            return an(" ".join(world.words[each] for each in field[3:].split("+")))
        if field[0].isupper():
            word = world.words[field.lower()]
            return word[0].upper() + word[1:]
        return world.words[field]

    filled = re.sub(r"\[([A-Za-z0-9_ +]+)\]", read, filled)
    on = r"\bin (the|a|an) (farm|mountain|island|beach|river bank|moon|ship|bridge)\b"
    filled = re.sub(on, r"on \1 \2", filled)
    filled = filled.replace("on an moon", "on the moon").replace("a moon", "the moon")
    filled = filled.replace("  ", " ")
    return re.sub(
        r"(^\"?|[.!?] )([a-z])", lambda found: found.group(1) + found.group(2).upper(), filled
    )
