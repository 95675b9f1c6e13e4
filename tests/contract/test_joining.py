"""What a joining site may state of itself: everybody else writes it into requests of their own."""

import pytest

from tests.contract.test_control_api import JOIN, Api, api  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peer_key", "00" * 32), ("peer_key", "01" + "00" * 31), ("peer_key", "ab" * 31),
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
