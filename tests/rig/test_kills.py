"""Every process in turn is killed with -9 under load: each request is in the book exactly once."""

import os
import signal
import time
from collections import Counter

import pytest

from isochrone.core.errors import Unavailable
from isochrone.core.ids import SiteName
from isochrone.twin.checks.record import Down
from tests.rig.cloud import Cloud
from tests.rig.judging import faults
from tests.rig.load import Load, Result
from tests.rig.waiting import gone, wait_until

pytestmark = pytest.mark.rig

SITES = ("sydney", "frankfurt", "ashburn")
FREE, BOUND = "made by isochrone up", "german"  # names of keys
LOAD_S = 1.5
EVIDENCE_WAIT_S = 30.0


def settle(cloud: Cloud, name: str, results: list[Result]) -> dict[str, dict[str, object]]:
    """Booked rows of this load by the client's own id, once every answered request is there."""
    # A request whose head was seen is in the book; one that was sent without an answer may be. A
    # gateway without a view yet cannot tell whose request it refuses.
    answered = {
        one.own_id for one in results if one.request_id is not None and one.reason != "starting"
    }
    rows: dict[str, dict[str, object]] = {}

    def complete() -> bool:
        try:
            found = [
                row for row in cloud.api.items("usage")
                if str(row["client_request_id"]).startswith(f"{name}-")
            ]
        except Unavailable:
            return False  # control, or its book, is just coming back
        counts = Counter(str(row["client_request_id"]) for row in found)
        assert all(count == 1 for count in counts.values()), "a request was counted twice"
        rows.update({str(row["client_request_id"]): row for row in found})
        return answered <= set(counts)

    try:
        wait_until(complete, "every answered request is booked", deadline_s=EVIDENCE_WAIT_S + 60)
    except AssertionError as error:
        missing = [one for one in results if one.own_id in answered - set(rows)]
        raise AssertionError(f"{error}; missing: {missing[:20]} of {len(results)}") from error
    sent = {one.own_id for one in results if one.sent}
    assert set(rows) <= sent
    return rows


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
            assert rows[one.own_id]["outcome"] in ("engine_lost", "ingress_lost", "client_gone")


def test_control_may_be_away(cloud: Cloud) -> None:
    """Frozen for 30 s: every gateway serves, keys and policies hold, usage waits and arrives."""
    bound = cloud.api.post(
        "keys", {"name": "bound", "residency": ["DE"], "transit": ["any"]}, idempotency_key="away"
    )["key"]
    wait_until(lambda: cloud.chats("sydney", key=bound), "the key is known")
    control = cloud.pids()["control"]
    assert control is not None
    name = f"away-{time.monotonic_ns()}"
    os.kill(control, signal.SIGSTOP)
    try:
        began = time.monotonic()
        endpoints = [(site, cloud.endpoint(site)) for site in SITES]
        load = Load(endpoints, cloud.up["api_key"], name=name, threads=1, max_tokens=4).start()
        while time.monotonic() - began < 30:
            for site in SITES:
                assert cloud.chat(site, key=bound, max_tokens=2).headers[
                    "x-isochrone-site"
                ] == "frankfurt"
                assert cloud.chat(site, key="iso_unknown", max_tokens=2).status == 401
            time.sleep(1)
        results = load.stop()
    finally:
        os.kill(control, signal.SIGCONT)
    assert all(one.whole and one.status == 200 for one in results)
    rows = settle(cloud, name, results)
    assert len(rows) == len(results)


def test_nats_may_be_away(cloud: Cloud) -> None:
    """Frozen past the age at which digests go stale: every gateway serves, here and elsewhere."""
    bound = cloud.api.post(
        "keys", {"name": "bound", "residency": ["DE"], "transit": ["any"]}, idempotency_key="nats"
    )["key"]
    wait_until(lambda: all(cloud.chats(site, key=bound) for site in SITES), "the key is known")
    nats = cloud.pids()["nats"]
    assert nats is not None
    name = f"silent-{time.monotonic_ns()}"
    load = Load(
        [(site, cloud.endpoint(site)) for site in SITES], bound, name=name, threads=2, max_tokens=4
    )
    os.kill(nats, signal.SIGSTOP)
    try:
        load.start()
        time.sleep(15)
        results = load.stop()
    finally:
        os.kill(nats, signal.SIGCONT)
    assert [one for one in results if not one.whole or one.status != 200] == []
    assert {one.served_at for one in results} == {"frankfurt"}
    assert len(settle(cloud, name, results)) == len(results)
