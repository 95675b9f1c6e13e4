"""How many requests the ingresses may push to a site before they hear from it again.

A push is a request that is not sent where it is nearest, because the queue is long there. All
ingresses see the same short queue elsewhere for a second; if all ran there, the next second would
see it long and all would run on. So a site says how much came lately (`arrived`), how much of it
was pushed (`pushed`), and how much more it could take until its next digest (`spare`): three
numbers, whoever listens. From those of all sites each ingress knows how many requests want to leave
their nearest site and how many may, and lets its own go by that chance: the sum over all of them is
about what the sites can take, however many they are and however little each has to send. See
docs/herding.md.
"""

from math import isfinite
from typing import Final

from isochrone.core.estimate.service import Servers, Work, busy_s

INTERVAL_S: Final = 1.0  # between two digests

# How fast a site lets its load grow towards what it can serve, and how fast it works off what is
# queued too much. Stable for any delay up to an interval: Katabi, Handley and Rohrs, "Congestion
# control for high bandwidth-delay product networks", SIGCOMM 2002, section 4.
GAIN_RATE: Final = 0.4
GAIN_QUEUE: Final = 0.226

QUEUE_S: Final = 0.25       # of queue beyond full slots, up to which a site invites more

UNREAD_S: Final = 2.0       # of prompts still to be read, beyond which no free slot invites

GIVEN: Final = 2.0          # of what is spare
KEPT: Final = 0.5           # of what is remembered of what was sent, with each digest
LEAST_KEPT: Final = 0.05    # of its own requests that a site is always left
BACK_KEPT: Final = 0.25     # of them that a site is sent first when it comes back
AWAY_NS: Final = 3_000_000_000  # a site that said nothing of credits for so long was away
LEAVING_MS: Final = 2000.0  # a queue that is longer by this is left by everybody
RATHER_MS: Final = 20.0     # of what leaving costs, at which the chance to stay is a square root
PUSHED_MS: Final = 1000.0   # nobody is pushed to where it costs him more than this
MOST_SAID: Final = 1e9      # requests; more cannot have been measured


def spare_requests(
    servers: Servers, pending: Work, *, prompt_tokens: float, output_tokens: float,
    arrived: float,
) -> float:
    """Requests of the usual size that a site could take until its next digest beyond `arrived`,
    which is what came in the last interval. Below 0: so many fewer should come.

    `pending` is queued or running; all slots busy and nothing waiting is as it should be. Prompts
    that are still to be read wait, however many slots are free.
    """
    usual_s = max(busy_s(servers, prompt_tokens, output_tokens), 1e-6)
    backlog_s = busy_s(servers, pending.prompt_tokens, pending.output_tokens)
    unread_s = busy_s(servers, pending.prompt_tokens, 0)
    full_s = output_tokens / servers.rates.decode_tok_s
    growth = GAIN_RATE * (INTERVAL_S / usual_s - arrived)
    room_s = QUEUE_S + min(full_s - backlog_s, min(full_s, UNREAD_S) - unread_s)
    return growth + GAIN_QUEUE * room_s / usual_s


def credit(pushed: float, arrived: float, spare: float) -> float:
    """Requests that all ingresses together may push to a site until its next digest, where `pushed`
    of the `arrived` in the last interval were pushes.

    Twice what is spare: nobody knows exactly how many want to leave their sites, and where fewer
    are let go the queues there grow for longer than elsewhere.
    """
    if spare > 0.0:
        return pushed + GIVEN * spare
    return pushed * max(0.0, 1.0 + spare / arrived) if arrived > 0.0 else 0.0


def wanting(pushed: float, arrived: float, spare: float) -> float:
    """Of the requests that want to leave their nearest site, those that are counted at this one:
    what was pushed there; if it is full itself, all that come, for they would leave, too."""
    return max(pushed, arrived) if spare <= 0.0 else pushed


def kept(keep: float, arrived: float, spare: float) -> float:
    """The part of its requests that an ingress leaves at the site nearest to it, after a digest;
    `keep` before it. All ingresses of a site that is too near to too many find the same part."""
    if arrived <= 0.0:
        return keep
    change = min(max(1.0 + spare / arrived, 0.5), 2.0)
    return min(max(keep * change, LEAST_KEPT), 1.0)


def stays(keep: float, share: float, late_ms: float, arrived: float) -> float:
    """The chance with which a request stays at its nearest site, where it would be answered
    `late_ms` later than elsewhere and where `arrived` came in the last interval.

    Who sends `share` of what comes there sees the effect of leaving at once in its own count, and
    leaves as soon as it pays. Of those who send little, only so many leave as the queue is longer,
    since all do the same; but one in an interval, whose leaving the next ones hear of.
    """
    if late_ms <= 0.0:
        return keep
    leave = min(max(late_ms / LEAVING_MS, 1.0 / max(arrived, 1.0)), 1.0)
    return keep * (1.0 - share - (1.0 - share) * leave)


def stays_rather(stay: float, dearer_ms: float) -> float:
    """The same chance, `stay`, where the place that it would go to answers `dearer_ms` later.

    So many have to leave a site that is nearest to too many; best those who lose least by it. If
    too few of them do, the site says so, and `stay` falls for all until enough leave.
    """
    return stay ** (RATHER_MS / (RATHER_MS + dearer_ms)) if dearer_ms > 0.0 else stay


def said_requests(requests: float | None) -> float | None:
    """A figure of another site's digest; None for what it cannot have measured."""
    if requests is None or not isfinite(requests):
        return None
    return min(max(requests, -MOST_SAID), MOST_SAID)
