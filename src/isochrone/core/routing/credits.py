"""How many requests an ingress may push to a site before it hears from it again.

A push is a request that is not sent where it is nearest, because the queue is long there. All
ingresses see the same short queue elsewhere for a second; if all ran there, the next second would
see it long and all would run on. So a site says how much more than lately it could take until its
next digest (`spare`) and how much came lately (`arrived`): two numbers, whoever listens. Each
ingress takes its part by what it pushed lately and one equal part of what is left to newcomers, so
that the sum over all ingresses is about what the site can take. See docs/herding.md.
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

KEPT: Final = 0.5           # of what is remembered of what was sent, with each digest
LEAST_KEPT: Final = 0.05    # of its own requests that a site is always left
BACK_KEPT: Final = 0.25     # of them that a site is sent first when it comes back
AWAY_NS: Final = 3_000_000_000  # a site that said nothing of credits for so long was away
LEAVING_MS: Final = 2000.0  # a queue that is longer by this is left by everybody
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


def credit(pushes: float, arrived: float, spare: float, ingresses: int) -> float:
    """Requests that one of `ingresses` may push until the next digest, of which it pushed `pushes`
    in an interval lately.

    What is spare is given twice, to those who push by how much they do, and to all alike: most use
    neither whole. So at most `arrived + 2 * spare` come, were everybody to turn to the site.
    """
    if spare <= 0.0:
        return pushes * max(0.0, 1.0 + spare / arrived) if arrived > 0.0 else 0.0
    growth = spare / max(arrived, spare)
    return pushes * (1.0 + growth) + spare / ingresses


def kept(keep: float, arrived: float, spare: float) -> float:
    """The part of its requests that an ingress leaves at the site nearest to it, after a digest;
    `keep` before it. All ingresses of a site that is too near to too many find the same part."""
    if arrived <= 0.0:
        return keep
    change = min(max(1.0 + spare / arrived, 0.5), 2.0)
    return min(max(keep * change, LEAST_KEPT), 1.0)


def stays(keep: float, share: float, late_ms: float) -> float:
    """The chance with which a request stays at its nearest site, where it would be answered
    `late_ms` later than elsewhere.

    Who sends `share` of what comes there sees the effect of leaving at once in its own count, and
    leaves as soon as it pays. Of those who send little, only so many leave as the queue is longer,
    since all do the same.
    """
    if late_ms <= 0.0:
        return keep
    leave = share + (1.0 - share) * min(late_ms / LEAVING_MS, 1.0)
    return keep * (1.0 - leave)


def said_requests(requests: float | None) -> float | None:
    """A figure of another site's digest; None for what it cannot have measured."""
    if requests is None or not isfinite(requests):
        return None
    return min(max(requests, -MOST_SAID), MOST_SAID)
