"""Judges the book: every request once, under its own tenant, with the tokens that engines made."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import UsageEvent
from isochrone.twin.checks.record import Asked, Record, Worked

# Records of the last 100 ms and of the sync in progress are lost with a host (docs/metering.md).
UNSYNCED_S = 0.25
# Said before the gateway can tell whose request it is, or because it can record nothing.
NOT_BOOKED = ("starting", "invalid_api_key", "journal")


def once(record: Record) -> Iterator[str]:
    """Whoever was told a request's id finds it in the book; nothing is there twice."""
    if record.booked is None:
        return
    references = _references(record)
    for reference, count in Counter(references.values()).items():
        if reference is not None and count > 1:
            yield f"request {reference} is booked {count} times"
    for request_id, count in Counter(event.request_id for event in record.booked).items():
        if count > 1:
            yield f"id {request_id} is booked {count} times"
    # Where its policy was not known, the client's own reference is not told, and one whose answer
    # was lost as well is known by its id to nobody.
    nameless = sum(reference is None for reference in references.values())
    unanswered = sum(one.request_id is None for one in record.asked)
    if nameless > unanswered:
        yield f"{nameless} requests are booked that nobody made, or only {unanswered} of them"
    known = {one.reference for one in record.asked}
    for reference in sorted({*references.values()} - known - {None}, key=str):
        yield f"a request {reference} is booked that nobody made"
    ids = {event.request_id for event in record.booked}
    for one in record.asked:
        is_known = one.request_id is not None and one.reason not in NOT_BOOKED
        if is_known and one.request_id not in ids and not _may_be_lost(one, record):
            yield (
                f"request {one.reference} ({one.request_id}) at {one.ingress} is not booked:"
                f" status {one.status}, {one.reason}"
            )


def under_its_tenant(record: Record) -> Iterator[str]:
    """What is booked names the key, the organisation and the ingress that asked."""
    for event, one in _pairs(record):
        said = (event.org_id, event.key_id, event.ingress_site)
        if said != (one.org_id, one.key_id, one.ingress):
            yield (
                f"request {one.reference} of {one.org_id}/{one.key_id} at {one.ingress} is booked"
                f" as {said}"
            )


def with_its_tokens(record: Record) -> Iterator[str]:
    """An answer that came whole is booked as finished with the tokens that came. No request is
    booked with more than engines made for it, nor, unless its gateway died, with less than its
    client has."""
    worked = None if record.worked is None else _by_reference(record.worked)
    for event, one in _pairs(record):
        output, where = event.tokens.output, f"request {one.reference} at {one.ingress}"
        if one.whole and not _died(one, record):
            if event.outcome != "finished" or output != one.tokens:
                yield (
                    f"{where}: {one.tokens} tokens came whole, {output} are booked as"
                    f" {event.outcome} by {event.reporter}"
                )
        elif output < one.tokens and not _died(one, record) and not one.left:
            yield f"{where}: {one.tokens} tokens came, {output} are booked ({event.outcome})"
        if worked is not None:
            yield from _against_engines(event, one, worked.get(one.reference, []), record)


def _against_engines(
    event: UsageEvent, one: Asked, works: list[Worked], record: Record
) -> Iterator[str]:
    tokens, where = event.tokens, f"request {one.reference} at {one.ingress}"
    made = sum(work.output_tokens for work in works)
    if tokens.output > made:
        yield f"{where}: {tokens.output} tokens are booked, engines made {made}"
    prompts = {work.prompt_tokens for work in works}
    read = tokens.input_uncached + tokens.input_cached
    if read and not works:
        yield f"{where}: a prompt of {read} tokens is booked that no engine read"
    if tokens.source == "engine" and works and read not in prompts:
        yield f"{where}: a prompt of {read} tokens is booked, engines read {sorted(prompts)}"
    if record.is_exact and one.whole and (len(works) != 1 or tokens.output != made):
        yield f"{where}: {tokens.output} tokens are booked, {len(works)} engines made {made}"


def _by_reference(worked: tuple[Worked, ...]) -> dict[str, list[Worked]]:
    found: defaultdict[str, list[Worked]] = defaultdict(list)
    for work in worked:
        found[work.reference].append(work)
    return found


def _pairs(record: Record) -> Iterator[tuple[UsageEvent, Asked]]:
    asked = {one.reference: one for one in record.asked}
    references = _references(record)
    for event in record.booked or ():
        one = asked.get(references[event.request_id] or "")
        if one is not None:
            yield event, one


def _references(record: Record) -> dict[RequestId, str | None]:
    """Whose each booked request is: as it says itself, or as its client was told its id."""
    told = {one.request_id: one.reference for one in record.asked}
    return {
        event.request_id: event.client_request_id or told.get(event.request_id)
        for event in record.booked or ()
    }


def _died(one: Asked, record: Record) -> bool:
    """Whether the gateway of the ingress died before what came of the request was on record. What
    was there is found again, with its tokens."""
    ended_s = math.inf if one.ended_s is None else one.ended_s
    return any(
        down.site == one.ingress and down.at_s > one.began_s
        and (down.full or ended_s >= down.at_s - UNSYNCED_S)
        for down in record.downs if not down.lives
    )


def _may_be_lost(one: Asked, record: Record) -> bool:
    """Whether its record can have been lost by what is documented: with the host that had not
    synced it, or, where nothing was served, with a gateway whose disk took no records."""
    ended_s = one.ended_s if one.ended_s is not None else one.began_s
    return any(
        down.site == one.ingress and down.at_s > one.began_s and (
            (down.unsynced and ended_s >= down.at_s - UNSYNCED_S)
            or (down.full and one.tokens == 0)
        )
        for down in record.downs
    )
