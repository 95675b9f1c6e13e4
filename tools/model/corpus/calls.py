"""Makes conversations with tools: declarations, a call, at times a result and an answer."""

import json
from dataclasses import replace
from random import Random

from tools.model.corpus import text
from tools.model.corpus.answers import question_and_answer

Piece = tuple[str, bool]

PARAMETERS = {
    "city": list(text.CAPITALS.values()), "name": text.GIRLS + text.BOYS, "place": text.PLACES,
    "color": text.COLORS, "food": text.FOODS, "word": text.THINGS, "animal": text.KINDS,
    "query": text.NOUNS, "topic": text.NOUNS, "title": text.THINGS,
}
HOW_TO_CALL = (
    '\nTo use a tool write <tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>'
)


def _make_tool(rng: Random) -> text.KnownTool:
    if rng.random() < 0.45:
        return replace(rng.choice(text.KNOWN_TOOLS))  # a copy: one may be drawn twice
    verb = rng.choice(text.VERBS)
    finds = rng.choice(text.NOUNS + text.THINGS)
    parameter = rng.choice(list(PARAMETERS))
    questions = [
        f"{verb.capitalize()} the {finds} for {{v}}.", f"Please {verb} the {finds} of {{v}}.",
        f"Use the tool to {verb} the {finds} for {{v}}.",
        f"Can you {verb} the {finds} with {parameter} {{v}}?",
    ]
    return text.KnownTool(
        name=f"{verb}_{finds}", finds=finds, parameter=parameter, questions=questions,
        answers=text.THING_ADJECTIVES,
    )


def _declaration(rng: Random, tool: text.KnownTool, chosen_value: str | None) -> str:
    """The tool as clients declare it; an enumeration of the chosen tool holds the value."""
    about: dict[str, object] = {"type": "string"}
    if rng.random() < 0.3:
        ways = [f"the {tool.parameter}", f"{tool.parameter} to use", f"a {tool.parameter}"]
        about["description"] = rng.choice(ways)
    if rng.random() < 0.15:
        values = {rng.choice(PARAMETERS[tool.parameter]) for _ in range(3)}
        about["enum"] = sorted(values | ({chosen_value} if chosen_value is not None else set()))
    function: dict[str, object] = {"name": tool.name}
    if rng.random() < 0.8:
        capital = f"{tool.finds.capitalize()} for a {tool.parameter}"
        function["description"] = rng.choice([tool.finds, f"Get the {tool.finds}", capital])
    parameters: dict[str, object] = {"type": "object", "properties": {tool.parameter: about}}
    if rng.random() < 0.8:
        parameters["required"] = [tool.parameter]
    function["parameters"] = parameters
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


def tool_conversation(rng: Random) -> list[Piece]:
    """A conversation in which a tool is called, or could have been."""
    tools = [_make_tool(rng) for _ in range(rng.choices([1, 2, 3], [6, 3, 1])[0])]
    tool = rng.choice(tools)
    value = rng.choice(PARAMETERS[tool.parameter])
    declared = [_declaration(rng, each, value if each is tool else None) for each in tools]
    system = "Tools:" + "".join(f"\n{each}" for each in declared) + HOW_TO_CALL
    if rng.random() < 0.4:
        system = f"{rng.choice(text.phrases('systems'))}\n\n{system}"
    pieces: list[Piece] = [(f"{text.START}system\n{system}{text.END}\n", False)]
    if rng.random() < 0.12:
        question, answer = question_and_answer(rng)
        return [*pieces, (_user(question), False), (answer + text.END, True)]
    arguments = json.dumps(
        {"name": tool.name, "arguments": {tool.parameter: value}}, ensure_ascii=False
    )
    question = rng.choice(tool.questions).replace("{v}", value)
    call = f"{rng.choice(['', chr(10)])}<tool_call>\n{arguments}\n</tool_call>{text.END}"
    pieces += [(_user(question), False), (call, True)]
    if rng.random() < 0.5:
        result = rng.choice(tool.answers)
        shown = json.dumps({tool.finds: result}) if rng.random() < 0.7 else result
        response = _user(f"<tool_response>\n{shown}\n</tool_response>")
        pieces.append((f"\n{response}", False))
        pieces.append((f"The {tool.finds} for {value} is {result}.{text.END}", True))
    return pieces


def _user(said: str) -> str:
    return f"{text.START}user\n{said}{text.END}\n{text.START}assistant\n"
