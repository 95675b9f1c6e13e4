"""Tells stories from plots, and poems from four forms."""

from random import Random

from tools.model.corpus import text
from tools.model.corpus.world import Wish, World, an, fill, make_world

TRIES = 8

KIND_OPENING = (
    "{Once upon a time|Long ago|Once|A long time ago}{, there was| there lived} "
    "[an adj+hero_kind] named [name]. "
    "{[name] lived in {a|the} [place].|[name] had a small house near the [place].|"
    "[He] lived by the [place] with [his] {mother|father|grandmother|sister|brother}.|"
    "Every day [he] {walked|played|worked} in the [place].|"
    "[name] loved [food] more than anything.|}"
)
CHILD_OPENING = (
    "{Once upon a time, there was|Long ago there lived|Once there was|There was once} "
    "[an adj+gg] named [name]. "
    "{[name] lived in {a|the} [place].|"
    "[He] lived near the [place] with [his] {mother|father|grandmother|family}.|"
    "[name] liked to {play|read|sing|draw|run|dream} in the [place].|"
    "[He] had a {pet [fpet]|best friend named [fname]}.|}"
)


def story(world: World, *, short: bool = False) -> str:
    """An opening, one sentence for each stage of a plot, an ending, at times a moral."""
    rng = world.rng
    world.words["gg"] = "girl" if world.words["name"] in text.GIRLS else "boy"
    world.words["fpet"] = rng.choice(["cat", "dog", "bird", "rabbit"])
    stages = rng.choice(list(text.PLOTS.values()))
    if short:
        stages = [*stages[:3], *stages[-2:]]
    opening = KIND_OPENING if world.hero_kind else CHILD_OPENING
    told = [fill(opening, world).strip()]
    told += [fill(rng.choice(stage), world) for stage in stages]
    told.append(fill(rng.choice(text.ENDINGS), world))
    if rng.random() < 0.2:
        told.append(fill(rng.choice(text.MORALS), world))
    if rng.random() < 0.35 and len(told) > 5:
        cut = rng.choice([3, 4])
        return " ".join(told[:cut]) + "\n\n" + " ".join(told[cut:])
    return " ".join(told)


def story_about(rng: Random, wish: Wish) -> str:
    """A story in which the wished word really occurs, if a few tries find one."""
    for _ in range(TRIES):
        told = story(make_world(rng, wish))
        if wish[1] in told:
            break
    return told


def story_about_both(rng: Random, wish: Wish, thing: str) -> str:
    """A story about the wish in which `thing` occurs too, if a few tries find one."""
    for _ in range(TRIES):
        world = make_world(rng, wish)
        world.words["thing"] = thing
        told = story(world)
        if thing in told:
            break
    return told


def poem(rng: Random, about: str) -> str:
    """Four lines about a thing or an animal."""
    adjective, look = rng.choice(text.ADJECTIVES), rng.choice(text.THING_ADJECTIVES)
    forms = [
        f"The {about} is {look}, the {about} is bright,\nit keeps us warm all through the night.\n"
        f"The {about} is {adjective}, the {about} is dear,\nwe sing its song from year to year.",
        f"A {adjective} little {about} sat under a tree,\n"
        "and sang a soft song to the wind and the sea.\n"
        "The moon came to listen, the stars came to play,\n"
        "and they all sang together until the new day.",
        f"I saw a {about} upon the hill,\nthe sky was wide, the air was still.\n"
        "It looked at me, I looked at it,\nand so we rested for a bit.",
        f"Oh {about}, oh {about}, so {look} and so small,\nyou are the best {about} of them all.\n"
        "You shine in the spring and you shine in the snow,\n"
        "and I will go with you wherever you go.",
    ]
    return rng.choice(forms)


def topic(rng: Random) -> tuple[Wish, str]:
    """What somebody may want a story about, and how he says it."""
    kinds = ["kind", "thing", "place", "name", "kind and thing", "described thing"]
    match rng.choices(kinds, [5, 4, 2, 2, 2, 2])[0]:
        case "kind":
            kind = rng.choice(text.KINDS)
            ways = [an(kind), an(kind), f"the {kind}", f"{kind}s"]
            return ("kind", kind), rng.choice([*ways, f"a {rng.choice(text.ADJECTIVES)} {kind}"])
        case "kind and thing":
            kind, thing = rng.choice(text.KINDS), rng.choice(text.THINGS)
            return ("kind", kind), f"{an(kind)} and {an(thing)}"
        case "thing":
            thing = rng.choice(text.THINGS)
            ways = [an(thing), f"the {thing}", f"a lost {thing}", f"a magic {thing}"]
            return ("thing", thing), rng.choice(ways)
        case "described thing":
            thing = rng.choice(text.THINGS)
            return ("thing", thing), an(f"{rng.choice(text.THING_ADJECTIVES)} {thing}")
        case "place":
            place = rng.choice(text.PLACES)
            return ("place", place), rng.choice([f"the {place}", an(place)])
    name = rng.choice(text.GIRLS + text.BOYS)
    child = "a girl" if name in text.GIRLS else "a boy"
    return ("name", name), rng.choice([name, f"{child} named {name}"])
