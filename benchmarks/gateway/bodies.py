"""Writes the request bodies, the same ones in every run: one JSON document a line."""

import json
import re
from pathlib import Path
from random import Random

MODEL = "mock-model"
COUNT = 64
SYSTEM = "You are a helpful assistant."
WORDS = re.findall(r"\w+", """
    the of a model router cache prefix tree system answer question please explain how tokens are
    served with many workers and what the latency of each step is when load grows
""")
TURNS = 10


def body_file(folder: Path, name: str) -> Path:
    """Write the bodies called `name` unless they are there: `short`, `long`, or `stream-NxMms`.

    `stream-200x0ms` asks for 200 content events without delay; the delay rides in `seed`, which
    the mock engine reads so.
    """
    path = folder / f"{name}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{line}\n" for line in _lines(name))
        path.write_text(lines)
    return path


def _lines(name: str) -> list[str]:
    rng = Random(7)
    if name == "short":
        return [_body(_chat(rng), max_tokens=64) for _ in range(COUNT)]
    if name == "long":
        system = _text(rng, 2000)
        return [_body(_turns(rng, system), max_tokens=64) for _ in range(COUNT)]
    shape = re.fullmatch(r"stream-(\d+)x(\d+)ms", name)
    if shape is None:
        raise ValueError(f"no bodies are called {name}")
    tokens, delay_ms = map(int, shape.groups())
    pace = {"seed": delay_ms}  # 0 too: a gateway gives a stream without a seed one of its own
    return [
        _body(
            _chat(rng), stream=True, stream_options={"include_usage": True}, max_tokens=tokens,
            **pace,
        )
        for _ in range(COUNT)
    ]


def _chat(rng: Random) -> list[dict[str, str]]:
    return [_message("system", SYSTEM), _message("user", _text(rng, 110))]


def _turns(rng: Random, system: str) -> list[dict[str, str]]:
    """22 messages, 16 KB: a conversation after ten turns, behind a system prompt all share."""
    found = [_message("system", system)]
    for _ in range(TURNS):
        found += [_message("user", _text(rng, 500)), _message("assistant", _text(rng, 800))]
    return [*found, _message("user", _text(rng, 400))]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(rng: Random, characters: int) -> str:
    text = ""
    while len(text) < characters:
        text += f"{rng.choice(WORDS)} "
    return text[:characters]


def _body(messages: list[dict[str, str]], **fields: object) -> str:
    content = {"model": MODEL, "messages": messages, "temperature": 0.7, **fields}
    return json.dumps(content, separators=(",", ":"))
