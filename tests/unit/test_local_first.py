"""What ends local first for the requests that follow, and what does not: docs/spill.md."""

from isochrone.core.ids import SiteName
from isochrone.core.rng import stream
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.loads import Loads
from tests.builders import a_choice, a_digest, a_load, a_site, a_table, a_view


def test_a_request_that_says_nothing_of_the_own_queue_does_not_end_local_first() -> None:
    """The own site has 50 ms of queue, an idle one is 20 ms away; both read 1 token a ms."""
    view = a_view([a_site("here"), a_site("near")], rtt_ms={"near": 20.0})
    loads = Loads()
    loads.heard(a_digest("here", a_load(running=4, output_tokens=80)), 0)
    loads.heard(a_digest("near"), 0)
    table, rng = a_table(view), stream(3, "local")

    def because(tokens: int = 100, *tried: Refused) -> str | None:
        return a_choice(table, loads, prompt_tokens=tokens, tried=tried, rng=rng).because

    refused = Refused(site=SiteName("here"), rule="saturated", detail="busy, 1 s")
    assert because() == "local"
    assert because(20_000) != "local", "nobody reads it within the target"
    assert because() == "local"
    assert because(100, refused) != "local", "it was there already"
    assert because() == "local"
    assert because(160) == "cheapest", "180 ms at the other site, 210 here"
    assert because() == "cheapest", "the own site has spilled"
    assert because(80) == "local"
    assert because() == "local"
