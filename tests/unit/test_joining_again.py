"""Which keys a site has that joins again: those of its identity file, or new ones without it."""

from pathlib import Path
from typing import Any

import pytest

from isochrone.wiring import joining
from isochrone.wiring.joining import join_site


class Control:
    """Lets everybody join."""

    def __init__(self, url: str, key: str | None) -> None: ...

    def post(self, path: str, body: dict[str, Any], *, idempotency_key: str) -> dict[str, Any]:
        return {
            "site": "oslo", "country": "NO", "nats_urls": [], "nats_jwt": "jwt",
            "control_key": "00" * 32, "control_url": "http://control",
        }


def test_keys_go_with_the_identity_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ControlApi", Control)
    out = tmp_path / "identity.json"

    def join(port: int) -> str:
        return join_site(
            "token", "http://control", host="10.0.0.2", port=port, public_url="http://a/v1", out=out
        ).peer_key

    first = join(4100)
    assert join(4200) == first
    out.rename(tmp_path / "old.json")
    assert join(4200) != first
