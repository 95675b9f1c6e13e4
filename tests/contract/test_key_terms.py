"""Real gateways hold keys to their end and their scopes, with control away."""

from collections.abc import Callable

from isochrone.ports.clock import Clock
from tests.contract.test_gateway_hops import two_sites
from tests.fixtures.gateways import (
    Client,
    GatewayCloud,
    ask,
    chat_body,
    get,
    post,
    run,
)
from tests.fixtures.signed_hops import signed_by

HOUR_NS = 3600 * 1_000_000_000


class MovedClock:
    """A clock whose wall time the test moves."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.ahead_ns = 0

    def wall_ns(self) -> int:
        return self._clock.wall_ns() + self.ahead_ns

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()


def test_a_key_is_refused_from_its_end_on_though_nobody_says_so() -> None:
    async def main(cloud: GatewayCloud) -> None:
        clock = MovedClock(cloud.clock)
        site = await cloud.add_site("frankfurt", "DE", clock=clock)
        await cloud.key("secret", expires_at=clock.wall_ns() + HOUR_NS)
        await cloud.key("lasting")
        await cloud.ready()
        client = await Client.open(site)  # one connection: its head is remembered
        for _ in range(2):
            client.send(post(chat_body()))
            assert (await client.answer()).status == 200
        clock.ahead_ns = HOUR_NS
        client.send(post(chat_body()))
        answer = await client.answer()
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (401, "key_expired")
        assert answer.json["error"]["code"] == "invalid_api_key"
        client.close()
        listed = await ask(site, get("/v1/models"))
        assert (listed.status, listed.headers["x-isochrone-reason"]) == (401, "key_expired")
        assert (await ask(site, post(chat_body(), key="lasting"))).status == 200
        assert len(site.engines[0].asked) == 3

    run(main)


def test_a_key_is_for_what_its_scopes_say() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("frankfurt", "DE")
        await cloud.key("talks", scopes=("chat",))
        await cloud.key("lists", scopes=("models", "embeddings", "usage"))
        await cloud.ready()
        asked: dict[str, Callable[[str], bytes]] = {
            "chat": lambda key: post(chat_body(), key=key),
            "completions": lambda key: post(
                chat_body(messages=None, prompt="x"), key=key, path="/v1/completions"
            ),
            "models": lambda key: get("/v1/models", key=key),
            "model": lambda key: get("/v1/models/tiny-fable", key=key),
            "embeddings": lambda key: post(
                chat_body(messages=None, input="x"), key=key, path="/v1/embeddings"
            ),
        }
        found = {
            (key, what): await ask(site, raw(key))
            for key in ("talks", "lists") for what, raw in asked.items()
        }
        refused = {each for each, answer in found.items() if answer.status == 403}
        assert refused == {
            ("talks", "models"), ("talks", "model"), ("talks", "embeddings"), ("lists", "chat"),
            ("lists", "completions"),
        }
        for each in refused:
            assert found[each].headers["x-isochrone-reason"] == "key_scope"
        assert "lacks the scope 'embeddings'" in str(found["talks", "embeddings"].json)
        assert found["talks", "chat"].status == found["lists", "models"].status == 200

    run(main)


def test_the_destination_of_a_hop_checks_end_and_scope_again() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        await cloud.key("over", expires_at=cloud.clock.wall_ns())
        await cloud.key("lists", scopes=("models",))
        await cloud.ready()
        for key, reason in (("over", "key_expired"), ("lists", "key_scope")):
            answer = await ask(frankfurt, signed_by(sydney, frankfurt, key=key))
            assert answer.headers["x-isochrone-refused"] == reason
        assert frankfurt.engines[0].asked == []

    run(main)
