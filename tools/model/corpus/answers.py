"""Makes one question and its answer: stories, facts, sums, lists, small talk, honest refusals."""

from collections.abc import Callable, Mapping
from random import Random

from tools.model.corpus import text
from tools.model.corpus.story import poem, story, story_about, story_about_both, topic
from tools.model.corpus.world import an, make_world

Answered = tuple[str, str]


def noise(rng: Random, length: int | None = None) -> str:
    """Free-form text of mixed words: anything may come in, the answer is still readable."""
    length = length or rng.randint(4, 40)
    others = text.NOUNS + text.THINGS + text.PLACES + text.ADJECTIVES
    words = [
        rng.choice(text.FUNCTION_WORDS) if rng.random() < 0.55 else rng.choice(others)
        for _ in range(length)
    ]
    if rng.random() < 0.2:
        words = [_letters(rng) if rng.random() < 0.5 else word for word in words]
    joined = " ".join(words)
    joined = joined[0].upper() + joined[1:] if rng.random() < 0.8 else joined
    return joined + rng.choice([".", "?", "!", "", "."])


def _letters(rng: Random) -> str:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(2, 8)))


def _story(rng: Random) -> Answered:
    wish, said = topic(rng)
    if " and " in said and wish[0] == "kind":
        told = story_about_both(rng, wish, said.split()[-1])
    else:
        told = story_about(rng, wish)
    question = rng.choice(text.phrases("ask_story")).replace("{X}", said)
    return question, rng.choice(["", "", "", "Here is a story. ", "Of course! ", "Sure. "]) + told


def _any_story(rng: Random) -> Answered:
    return rng.choice(text.phrases("ask_any")), story(make_world(rng))


def _small_talk(kind: str) -> Callable[[Random], Answered]:
    def answer(rng: Random) -> Answered:
        return rng.choice(text.phrases(kind)), rng.choice(text.phrases(f"{kind}_answers"))

    return answer


def _wrapped(rng: Random, question: str) -> str:
    return rng.choice(text.phrases("wraps")).replace("{q}", question)


def _fact(rng: Random) -> Answered:
    question, answer = rng.choice(text.answered("facts"))
    question = _wrapped(rng, question)
    if rng.random() < 0.15:
        question = question.lower().rstrip("?.")
    return question, answer


def _capital(rng: Random) -> Answered:
    country = rng.choice(list(text.CAPITALS))
    city = text.CAPITALS[country]
    wrap = rng.choice(text.phrases("wraps"))
    question = rng.choice(
        [
            f"What is the capital of {country}?",
            f"What is the capital city of {country}?",
            f"Name the capital of {country}.",
        ]
    )
    answers = [f"The capital of {country} is {city}.", f"{city} is the capital of {country}."]
    return wrap.replace("{q}", question), rng.choice(answers)


def _opposite(rng: Random) -> Answered:
    opposites = text.pairs("opposites")
    one = rng.choice(list(opposites))
    other = opposites[one]
    if rng.random() < 0.5:
        one, other = other, one
    questions = [f"What is the opposite of {one}?", f'What is the opposite of "{one}"?']
    return rng.choice(questions), f"The opposite of {one} is {other}."


def _sound(rng: Random) -> Answered:
    sounds = text.pairs("sounds")
    animal = rng.choice(list(sounds))
    questions = [f"What does {an(animal)} say?", f"What sound does {an(animal)} make?"]
    return rng.choice(questions), f"{an(animal).capitalize()} says {sounds[animal]}."


def _color(rng: Random) -> Answered:
    colors = text.pairs("thing_colors")
    thing = rng.choice(list(colors))
    questions = [f"What colour is the {thing}?", f"What color is the {thing}?"]
    return rng.choice(questions), f"The {thing} is {colors[thing]}."


def _sum(rng: Random) -> Answered:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.6:
        questions = [
            f"What is {a} + {b}?", f"What is {a} plus {b}?", f"{a} + {b} = ?", f"{a}+{b}",
            f"How much is {a} + {b}?",
        ]
        answers = [f"{a} + {b} = {a + b}.", f"{a} plus {b} is {a + b}."]
        return rng.choice(questions), rng.choice(answers)
    a, b = max(a, b), min(a, b)
    questions = [f"What is {a} - {b}?", f"What is {a} minus {b}?"]
    return rng.choice(questions), f"{a} - {b} = {a - b}."


def _count(rng: Random) -> Answered:
    last = rng.randint(2, 20)
    if rng.random() < 0.5:
        questions = [f"Count to {last}.", f"Count from 1 to {last}.", f"Can you count to {last}?"]
        return rng.choice(questions), ", ".join(str(i) for i in range(1, last + 1)) + "."
    questions = [f"Count to {text.NUMBERS[last]}.", f"Count to {text.NUMBERS[last]}, please."]
    return rng.choice(questions), ", ".join(text.NUMBERS[1 : last + 1]) + "."


def _joke(rng: Random) -> Answered:
    questions = [
        "Tell me a joke.", "Tell me a joke", "Do you know a joke?", "Make me laugh.", "joke",
    ]
    return rng.choice(questions), rng.choice(text.phrases("jokes"))


def _poem(rng: Random) -> Answered:
    about = rng.choice(text.KINDS + text.THINGS)
    questions = [
        f"Write a poem about {an(about)}.", f"A poem about the {about}, please.",
        f"Write a poem about {about}s.", f"Write a short poem about {an(about)}.",
        f"Write a haiku about {an(about)}.",
    ]
    return rng.choice(questions), poem(rng, about)


def _repeat(rng: Random) -> Answered:
    pool = (
        text.THINGS + text.PLACES + text.ADJECTIVES + text.FUNCTION_WORDS + text.COLORS + text.KINDS
    )
    said = " ".join(rng.choice(pool) for _ in range(rng.randint(1, 8)))
    ways = ["Repeat after me: ", "Repeat this: ", "Say: ", "Echo: ", "Please repeat: "]
    return rng.choice(ways) + said, said


def _list(rng: Random) -> Answered:
    pools = [
        (text.COLORS, "colours"), (text.KINDS[:14], "animals"), (text.FOODS, "foods"),
        (text.THINGS, "things"), (text.GIRLS + text.BOYS, "names"),
    ]
    pool, what = rng.choice(pools)
    length = rng.randint(2, 5)
    items = rng.sample(pool, length)
    number = text.NUMBERS[length]
    questions = [f"Name {number} {what}.", f"List {length} {what}.", f"Give me {number} {what}."]
    numbered = "\n".join(f"{place}. {item}" for place, item in enumerate(items, start=1))
    return rng.choice(questions), rng.choice([", ".join(items) + ".", numbered])


def _yes_or_no(rng: Random) -> Answered:
    return rng.choice(text.answered("yes_or_no"))


def _open(rng: Random) -> Answered:
    """Anything else: it says that this is too hard and tells a story."""
    question = rng.choice(text.phrases("open_questions"))
    question = question.replace("{X}", rng.choice(text.NOUNS + text.THINGS))
    question = question.replace("{Y}", rng.choice(text.NOUNS)).replace("{Z}", noise(rng))
    world = make_world(rng)
    sorry = rng.choice(text.phrases("sorry"))
    return question, f"{sorry} {story(world, short=rng.random() < 0.5)}"


MAKERS: Mapping[Callable[[Random], Answered], int] = {
    _story: 26, _any_story: 7, _small_talk("hello"): 5, _small_talk("who"): 6,
    _small_talk("thanks"): 2, _small_talk("bye"): 2, _fact: 12, _capital: 5, _opposite: 3,
    _sound: 2, _color: 2, _sum: 5, _count: 4, _joke: 2, _poem: 5, _repeat: 8, _open: 12,
    _list: 5, _yes_or_no: 2,
}


def question_and_answer(rng: Random) -> Answered:
    """One question of any kind, by weight, and its answer."""
    return rng.choices(list(MAKERS), list(MAKERS.values()))[0](rng)
