"""Binds keys to countries, asks at Sydney, and prints where it ran or why it was refused.

Run `isochrone up` first, then: python examples/residency.py [UP_JSON]
"""

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import openai

DEFAULT = Path("~/.local/state/isochrone/local/up.json").expanduser()
up = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT).read_text())
sydney = next(site["endpoint"] for site in up["sites"] if site["name"] == "sydney")


def make_key(country: str) -> str:
    """A key whose requests may be processed in this country only; its secret is shown once."""
    request = urllib.request.Request(
        f"{up['control']}/api/v1/keys",
        json.dumps({"name": f"only {country}", "residency": [country]}).encode(),
        {"authorization": f"Bearer {up['admin_key']}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["key"])


def ask(key: str) -> Any:
    """The answer at Sydney; a new key is known to every gateway within a second."""
    client = openai.OpenAI(base_url=sydney, api_key=key)
    deadline = time.monotonic() + 10
    while True:
        try:
            return client.chat.completions.with_raw_response.create(
                model="tiny-fable", messages=[{"role": "user", "content": "Hello!"}], max_tokens=16
            )
        except openai.AuthenticationError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


german = ask(make_key("DE")).headers
print(f"DE: asked at sydney, ran at {german['x-isochrone-site']}, {german['x-isochrone-country']}")

try:
    ask(make_key("FR"))
except openai.PermissionDeniedError as refused:
    reason = refused.response.headers["x-isochrone-reason"]
    print(f"FR: {refused.status_code} {reason}: {refused.message}")
