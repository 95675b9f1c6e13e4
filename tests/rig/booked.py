"""What of a load the book of a real cloud has, once all of it is there."""

from collections import Counter

from isochrone.core.errors import Unavailable
from tests.rig.cloud import Cloud
from tests.rig.load import Result
from tests.rig.waiting import wait_until

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
