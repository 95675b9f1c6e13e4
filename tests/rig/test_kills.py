"""Every process in turn is killed with -9 under load: each request is in the book exactly once."""

import os
import signal
import time

import pytest

from isochrone.core.ids import SiteName
from isochrone.twin.checks.record import Down
from tests.rig.booked import settle
from tests.rig.cloud import Cloud
from tests.rig.judging import faults
from tests.rig.load import Load
from tests.rig.waiting import gone, wait_until

pytestmark = pytest.mark.rig

SITES = ("sydney", "frankfurt", "ashburn")
FREE, BOUND = "made by isochrone up", "german"  # names of keys
LOAD_S = 1.5


@pytest.fixture(scope="session")
def bound(cloud: Cloud) -> str:
    """A key whose requests may be processed in Germany only."""
    key: str = cloud.api.post(
        "keys", {"name": BOUND, "residency": ["DE"], "transit": ["any"]}, idempotency_key=BOUND
    )["key"]
    return key


@pytest.mark.parametrize(
    "victim",
    ["gateway sydney", "gateway frankfurt", "replica frankfurt", "control", "nats", "postgres"],
)
def test_nothing_is_lost_or_counted_twice(cloud: Cloud, bound: str, victim: str) -> None:
    """What is left goes before the judges that the simulations have, too."""
    name = f"kill-{victim.replace(' ', '-')}-{time.monotonic_ns()}"
    endpoints = [(site, cloud.endpoint(site)) for site in SITES]
    wait_until(lambda: cloud.chats("sydney", key=bound), "the key is known")
    free = Load(endpoints, cloud.up["api_key"], name=f"{name}-free", threads=3).start()
    german = Load(endpoints, bound, name=f"{name}-bound", threads=1).start()
    try:
        time.sleep(LOAD_S)
        pid = cloud.pids()[victim]
        assert pid is not None
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), "it is dead")
        wait_until(lambda: cloud.pids().get(victim) not in (None, pid), f"{victim} is back")
        wait_until(
            lambda: all(cloud.chats(site, key=key) for site in SITES for key in (None, bound)),
            "every gateway answers",
        )
        healed_s = time.monotonic()
        time.sleep(LOAD_S)
    finally:
        asked = {FREE: free.stop(), BOUND: german.stop()}
    results = [one for each in asked.values() for one in each]
    rows = settle(cloud, name, results)
    wait_until(cloud.ready, "every site is ready")
    whole = [one for one in results if one.whole and one.status == 200]
    assert len(whole) > 20
    kind, _, site = victim.partition(" ")
    downs: tuple[Down, ...] = ()
    if kind == "gateway":
        downs = (Down(site=SiteName(site), at_s=killed_s, back_s=healed_s),)
    assert all(len(each) > 5 for each in asked.values())
    assert faults(cloud.api, asked, rows.values(), downs=downs, healed_s=healed_s) == []
    for one in whole:
        row = rows[one.own_id]
        assert row["id"] == one.request_id
        assert (row["outcome"], row["source"]) == ("finished", "engine")
        if row["site"] != one.served_at:
            # The head names who began the stream; the book, who ended it, and whom it was lost at.
            decision = cloud.api.get(f"requests/{row['id']}")["decision"]
            assert one.served_at in {earlier["site"] for earlier in decision["tried"]}
    if victim in ("control", "nats", "postgres"):
        # None of these is on the path of a request.
        assert len(whole) == len(results)
    for one in results:
        if one.request_id is not None and not one.whole:
            row = rows[one.own_id]
            if row["outcome"] == "finished":
                # Its gateway had all of it from the engine and wrote it down, and was killed in the
                # same turn of its loop, at whose end the last bytes would have left. What the
                # engine did is charged, once.
                assert victim == f"gateway {one.site}"
                assert one.began_s <= killed_s <= one.ended_s
                assert (row["id"], row["source"]) == (one.request_id, "engine")
                continue
            assert row["outcome"] in ("engine_lost", "ingress_lost", "client_gone")
