"""What one request has to do with those before it: the beginning of its prompt, and its session.

Short requests of no session have none of it. Nothing is remembered where the axis of caches does
not admit this site; a request that came over a hop has no session here, since its ingress has
chosen already.
"""

from typing import TYPE_CHECKING, Final

from isochrone.core.ids import ReplicaId, SiteName
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.bond import HomeVerdict
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.prefix import BLOCK_BYTES, UNKNOWN, Belief, Sighting
from isochrone.core.routing.sessions import Home
from isochrone.gateway.prefix_hash import NO_SESSION, prompt_blocks, session_of
from isochrone.gateway.request import USUAL_OUTPUT_TOKENS
from isochrone.wire.usage import BondRecord

if TYPE_CHECKING:
    from isochrone.gateway.context import Context
    from isochrone.gateway.target import Target
    from isochrone.gateway.tries import Tries

SESSION: Final = "x-session-id"
_LEFT: Final = ("new", "moved", "gone")  # by these a session goes to another home


class Affinity:
    """Of one request. `blocks` and `session` are salted hashes; `home` is its session's before the
    choice, `belief` what the chosen place is expected to have cached, `sighting` the try.
    `verdict` and `limit_ms` are of the home that the session had before the request."""

    __slots__ = (
        "_before", "_model", "_prompt_tokens", "_tokens", "belief", "blocks", "cached", "home",
        "limit_ms", "scope", "session", "sighting", "verdict",
    )

    def __init__(
        self, exchange: "Tries", blocks: list[int], session: int, scope: int
    ) -> None:
        request = exchange.request
        self.blocks = blocks
        self.session = session
        self.scope = scope
        self.home: Home | None = None
        self._before: Home | None = None
        self.verdict: HomeVerdict = "none"
        self.limit_ms = 0.0
        self.belief: Belief | None = None
        self.sighting: Sighting | None = None
        self.cached: dict[ReplicaId, Belief] | None = None
        self._model = request.model
        self._prompt_tokens = request.prompt_tokens
        # Few answers are as long as their clients allow: that would displace all that is believed.
        written_tokens = min(request.output_tokens, USUAL_OUTPUT_TOKENS * request.choices)
        self._tokens = request.prompt_tokens + written_tokens

    def find_home(self, context: "Context", now_ns: int) -> Home | None:
        """Before a choice: where the session is at home."""
        home = None
        if self.session != NO_SESSION:
            home = context.sessions.home(self.session, now_ns)
        self.home = home
        return home

    def chosen(self, context: "Context", choice: Choice, now_ns: int) -> None:
        """After a choice of a site."""
        self.belief, self.cached = choice.belief, None
        if self.session == NO_SESSION or choice.site is None:
            return
        verdict: HomeVerdict = "new" if self.home is None else choice.verdict
        context.sessions.went(self.session, choice.site, verdict, now_ns)
        if self.verdict not in _LEFT:  # else its home was another than where that try has failed
            self.verdict, self.limit_ms, self._before = verdict, choice.limit_ms, self.home

    def cached_at(
        self, context: "Context", site: SiteName, now_ns: int
    ) -> dict[ReplicaId, float] | None:
        """The leading tokens that each of a site's replicas is expected to have; None: nobody."""
        found = context.prefixes.cached_by_replica(site, self.blocks, now_ns)
        cached: dict[ReplicaId, Belief] = {}
        tokens: dict[ReplicaId, float] = {}
        for replica, belief in found.items():
            generation = context.view.replicas.generation_of(replica)
            if generation == belief.sighting.generation or generation == UNKNOWN:
                cached[replica], tokens[replica] = belief, belief.tokens
        self.cached = cached
        return tokens or None

    @property
    def believed_tokens(self) -> int:
        """What the place that was chosen is expected to have, at most the prompt."""
        return 0 if self.belief is None else min(int(self.belief.tokens), self._prompt_tokens)

    def sent(self, context: "Context", target: "Target", now_ns: int) -> None:
        """A try begins. Another replica of the site may have what this one lacks."""
        if not self.blocks:
            return
        replica = target.replica
        if replica is not None and self.cached is not None:
            self.belief = self.cached.get(replica.id)
        self.sighting = context.prefixes.saw(
            target.site, self._model, self.blocks, now_ns, scope=self.scope, tokens=self._tokens,
            replica=None if replica is None else replica.id,
            generation=UNKNOWN if replica is None else replica.generation,
        )

    def failed(self, context: "Context") -> None:
        """The try came to nothing: nobody has computed anything of it."""
        if self.sighting is not None:
            context.prefixes.failed(self.sighting, self.belief, self.blocks)

    def ended(self, context: "Context", tokens: Tokens, replica: ReplicaId | None) -> None:
        """The request is over; the engine's own counts say what it had cached. Estimates are ours,
        so its word is taken as a share of the prompt."""
        seen, belief = self.sighting, self.belief
        prompt = tokens.input_uncached + tokens.input_cached
        if seen is None or tokens.source != "engine" or prompt <= 0:
            return
        if belief is not None and belief.sighting.cache is not seen.cache:
            belief = None
        reported_tokens = self._prompt_tokens * (tokens.input_cached / prompt)
        context.prefixes.answered(seen, belief, reported_tokens, replica)

    def bond(self) -> BondRecord:
        """As the decision keeps it."""
        home = self._before
        return BondRecord(
            self.believed_tokens, self._prompt_tokens, self.verdict,
            None if home is None else home.site, self.limit_ms,
        )

    def timing(self) -> str:
        """What `server-timing` says beside the times."""
        said = f', prefix;desc="{self.believed_tokens} tokens believed cached"'
        return said if self.verdict == "none" else f'{said}, session;desc="{self.verdict}"'


def affinity_of(exchange: "Tries") -> Affinity | None:
    """What a request has to do with others; None where nothing, or where this site may not
    remember."""
    request, is_hop = exchange.request, exchange.reply.hop is not None
    session_id = b"" if is_hop else exchange.head.session_id
    is_long = request.prompt_bytes >= BLOCK_BYTES
    if not is_long and (is_hop or not (session_id or request.cache_key)):
        return None
    if request.endpoint == "embeddings":
        return None  # computed at once, and nothing of it kept
    context, key, narrowing = exchange.context, exchange.key, exchange.narrowing
    if not context.view.table.standing(key.policy_id, narrowing).caches:
        return None
    salts, model = context.salts, request.model
    scope = salts.of_prompts(key.org_id, model)
    blocks = prompt_blocks(request, scope) if is_long else []
    session = NO_SESSION
    # A conversation of which nothing was seen goes on with none, and needs no home before it does.
    if not is_hop and (session_id or request.cache_key or context.prefixes.knows(blocks)):
        narrowed = "" if narrowing is None else narrowing.text
        salt = salts.of_sessions(key.org_id, model, key.policy_id, narrowed)
        session = session_of(request, session_id, salt, blocks)
    return Affinity(exchange, blocks, session, scope)
