"""Streams one chat from the local cloud with the official OpenAI client.

Run `isochrone up` first, then: python examples/openai_chat.py [UP_JSON]
"""

import json
import sys
from pathlib import Path

import openai

DEFAULT = Path("~/.local/state/isochrone/local/up.json").expanduser()
up = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT).read_text())

client = openai.OpenAI(base_url=up["sites"][0]["endpoint"], api_key=up["api_key"])
reply = client.chat.completions.with_raw_response.create(
    model="tiny-fable",
    messages=[{"role": "user", "content": "Tell me a story about a dragon and a key."}],
    max_tokens=64,
    stream=True,
)
for chunk in reply.parse():
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print(f"\n\nserved at {reply.headers['x-isochrone-site']} ({reply.headers['x-isochrone-country']})")
print(f"isochrone explain {reply.headers['x-isochrone-request']}")
