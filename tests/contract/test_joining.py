"""What a joining site may state of itself, which everybody else writes into requests of their own;
and how an operator cuts one off that has joined."""

import sys
from pathlib import Path

import pytest

from isochrone.cli.app import run
from tests.contract.test_control_api import JOIN, Api, api  # noqa: F401 - a fixture
from tests.contract.test_tenancy_cli import Cli, cli, url  # noqa: F401 - fixtures


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peer_key", "00" * 32), ("peer_key", "01" + "00" * 31), ("peer_key", "ab" * 31),
        ("nats_key", "A" * 56),
        # The first leads to this very machine, by the rules for names beyond ASCII.
        ("host", "\u217cocalhost"), ("host", "m\u00fcnchen"), ("host", "a\x1bb"), ("host", ""),
        ("public_url", "http:///v1"), ("public_url", "https://x:99999/v1"),
        ("public_url", "https://[x/v1"), ("public_url", "https://e vil/v1"),
    ],
)
def test_a_site_states_nothing_that_other_sites_stumble_over(
    api: Api, field: str, value: str  # noqa: F811
) -> None:
    token = api.make("sites/sydney/token", None)["token"]
    wanted = {"token": token, **JOIN, field: value}
    status, problem = api.call("POST", "sites/join", wanted, key=None)
    assert status == 422
    assert problem["problems"][0].startswith(f"{field}: ")
    assert api.call("POST", "sites/join", {"token": token, **JOIN}, key=None)[0] == 200


@pytest.mark.parametrize(
    ("host", "public_url"),
    [("::1", "http://[::1]:4100/v1"), ("10.0.0.2", "http://10.0.0.2:4100/v1")],
)
def test_a_site_is_reached_at_its_host_where_no_url_is_given(
    api: Api, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
    host: str, public_url: str,
) -> None:
    token = api.make("sites/sydney/token", None)["token"]
    words = ["--url", url, "--host", host, "--port", "4100", "--out", str(tmp_path / "identity")]
    monkeypatch.setattr(sys, "argv", ["isochrone", "site", "join", token, *words])
    assert run() == 0
    assert api.call("GET", "sites/sydney")[1]["public_url"] == public_url


def test_an_operator_cuts_a_site_off_until_it_joins_anew(
    api: Api, cli: Cli  # noqa: F811
) -> None:
    token, unused = (api.make("sites/sydney/token", None)["token"] for _ in range(2))
    assert api.call("POST", "sites/join", {"token": token, **JOIN}, key=None)[0] == 200
    assert api.call("GET", "sites/sydney")[1]["joined"]
    changes = len(api.changes)
    assert cli("site", "revoke", "sydney") == (
        0, "the identity of sydney is refused; it has to join anew\n", ""
    )
    assert len(api.changes) == changes + 1, "sites and the bus are told"
    assert not api.call("GET", "sites/sydney")[1]["joined"]
    for spent in (token, unused):
        assert api.call("POST", "sites/join", {"token": spent, **JOIN}, key=None)[0] == 401
    status, again = api.call("DELETE", "sites/sydney/login")
    assert (status, again["joined"]) == (200, False)
    revoked = api.context.registry.estate.revoked_logins(now=api.context.now())
    assert [each.user_key for each in revoked] == [JOIN["nats_key"]]
    token = api.make("sites/sydney/token", None)["token"]
    assert api.call("POST", "sites/join", {"token": token, **JOIN}, key=None)[0] == 200
    code, _, said = cli("site", "revoke", "nowhere")
    assert (code, "nowhere" in said) == (1, True)
