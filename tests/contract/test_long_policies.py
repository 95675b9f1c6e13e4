"""Policies that list as much as they may, through the Control API and the book."""

from hashlib import blake2b

from tests.contract.test_control_api import Api, api  # noqa: F401 - a fixture


def test_as_many_terms_as_are_possible_are_kept_and_found_again(api: Api) -> None:  # noqa: F811
    digests = [blake2b(str(number).encode(), digest_size=40) for number in range(300)]
    names = [f"operator:{each.hexdigest()}" for each in digests]
    wish: dict[str, list[str]] = {
        "residency": names, "transit": ["any", *(f"-{name}" for name in names[1:])],
        "caches": names[::-1], "logs": names[:299],
    }
    made = api.make("policies", wish)
    assert made["residency"] == made["caches"] == sorted(names)
    assert api.make("policies", {**wish, "residency": names[::-1]})["id"] == made["id"]
    assert api.make("policies", {**wish, "logs": names[:298]})["id"] != made["id"]
    assert api.make("policies", {**wish, "caches": None})["id"] != made["id"]
    assert api.make("keys", wish)["policy_id"] == made["id"]
    for much, word in (([*names, "DE"], "301 terms"), (["site:" + "x" * 96], "101 letters")):
        for path in ("policies", "keys"):
            status, problem = api.call("POST", path, {"residency": much})
            assert status == 422
            assert problem["problems"] == [f"residency: {problem['problems'][0][11:]}"]
            assert word in problem["problems"][0]
