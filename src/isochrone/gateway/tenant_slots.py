"""Keeps tenants apart at engines whose cache knows none: llama.cpp's that this site's agent runs.

Nobody but this gateway sends requests to them, so it says in which slot each runs, and whether it
may use what that holds; see `core/routing/engine_slots.py`. Engines that are reached by URL may
have other users, and slots that nobody knows of.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
from xxhash import xxh3_64_intdigest

from isochrone.core.ids import ReplicaId
from isochrone.core.routing.engine_slots import EngineSlots, Place
from isochrone.core.routing.prefix import BLOCK_BYTES, UNKNOWN
from isochrone.core.world.model import Replica
from isochrone.gateway.prefix_hash import prompt_blocks
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.request_fields import ABSENT

if TYPE_CHECKING:
    from isochrone.gateway.tries import Tries

# Most prompts of a small engine are shorter than one block of those that routing goes by.
MARK_BYTES: Final = 128
MOST_BYTES: Final = 1 << 20  # of a body that an engine is sure to have read in time
SWEPT_ABOVE: Final = 64  # runs of engines that are remembered before those of the past go

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class TenantSlots:
    """`generation_of` says which run of a replica is the present one. Owned by one event loop."""

    def __init__(self, generation_of: Callable[[ReplicaId], int]) -> None:
        self._generation_of = generation_of
        self._runs: dict[ReplicaId, tuple[int, EngineSlots]] = {}

    def place(self, exchange: "Tries", replica: Replica) -> Place:
        """Where in this engine a request runs that is about to be sent there."""
        request, context, key = exchange.request, exchange.context, exchange.key
        now_ns = context.clock.monotonic_ns()
        slots = self.of_run(replica)
        if request.choices > 1 or request.endpoint == "messages":
            # Choices take a slot each, and the engine drops these fields on its way from this API.
            return slots.take_any(now_ns)
        is_kept = context.view.table.standing(key.policy_id, exchange.narrowing).caches
        if not is_kept or len(exchange.asking or exchange.body) > MOST_BYTES:
            return slots.take(exchange.request_id, (), now_ns)  # a tenant of its own
        owner = context.salts.of_engine(key.org_id, request.own_salt or b"")
        salt = context.salts.of_prompts(key.org_id, request.model)
        return slots.take(owner, prompt_marks(request, salt), now_ns)

    def of_run(self, replica: Replica) -> EngineSlots:
        """The slots of the run that this record speaks of."""
        known = self._runs.get(replica.id)
        if known is not None and known[0] == replica.generation:
            return known[1]
        if len(self._runs) >= SWEPT_ABOVE:
            gone = [each for each in self._runs if self._generation_of(each) == UNKNOWN]
            for each in gone:
                del self._runs[each]
        slots = EngineSlots(max(replica.slots, 1))
        if known is not None and known[0] > replica.generation:
            return slots  # of a run that has ended: it says nothing of the present one
        self._runs[replica.id] = (replica.generation, slots)
        return slots


def is_parted(replica: Replica, request: InferenceRequest) -> bool:
    """Whether a request has a place at this engine: an agent started it, so it has no other users;
    it keeps what it reads, and not for all."""
    return (
        replica.engine == "llamacpp" and replica.pid is not None
        and not replica.shares_cache and request.endpoint != "embeddings"
    )


def placed_body(body: bytes, place: Place, choices: int) -> bytes:
    """The body with its place in it, whatever the client says of one, and with as many answers to a
    prompt as are counted: each takes a slot."""
    fields = _decode_fields(body)
    fields["id_slot"] = msgspec.Raw(b"%d" % (-1 if place.slot is None else place.slot))
    fields["cache_prompt"] = msgspec.Raw(b"true" if place.may_reuse else b"false")
    fields["n_cmpl"] = msgspec.Raw(b"%d" % choices)
    return _encode(fields)


def prompt_marks(request: InferenceRequest, salt: int) -> list[int]:
    """Chained hashes of the beginning of a prompt, finer than blocks where it is short."""
    mark = salt if request.tools is ABSENT else xxh3_64_intdigest(request.tools, salt)
    content = memoryview(request.prompt)[:BLOCK_BYTES]
    marks = []
    for begin in range(0, len(content), MARK_BYTES):
        mark = xxh3_64_intdigest(content[begin : begin + MARK_BYTES], mark)
        marks.append(mark)
    return marks + prompt_blocks(request, salt)[1:]
