"""What the gateway does with a request's head: health, models, or inference for a known key.

Whatever can be refused is refused from the head, with the body unread: unknown paths and keys, and
keys whose policy does not let plain text enter at this site.
"""

import math
from collections.abc import Callable, Sequence
from urllib.parse import unquote

from isochrone.core.errors import Untrusted
from isochrone.core.ids import KeyId
from isochrone.core.metering.event import Endpoint
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.model import Model
from isochrone.core.world.tenant import ApiKey
from isochrone.gateway import admission, models_route
from isochrone.gateway.context import Context
from isochrone.gateway.forward import Exchange
from isochrone.gateway.heads import path_of
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.letters import PATH as LETTERS_PATH
from isochrone.gateway.letters import Letters
from isochrone.gateway.peer_hop import (
    KEEP_ALIVE_S,
    Hop,
    HopEntrant,
    claimed_ingress,
    claims_hop,
)
from isochrone.gateway.replies import JSON, Refusal, head, refusal_lines
from isochrone.gateway.reply import Reply
from isochrone.gateway.server import ClientConnection, Handler
from isochrone.gateway.surface import ROUTES, api_of, error_body_for, unknown_path

UNAUTHENTICATED = Refusal(
    status=401, reason="invalid_api_key", code="invalid_api_key",
    message="No valid API key: send one as 'Authorization: Bearer KEY'.",
)
KEY_UNKNOWN = Refusal(
    status=403, reason="key_unknown", message="The key is unknown at this site."
)
STARTING = Refusal(
    status=503, reason="starting", retry_after_s=1,
    message="This gateway has not received its view yet; try again in a moment.",
)
UNHEARD = Refusal(
    status=503, reason="starting", retry_after_s=1,
    message="This gateway has not heard from every site yet; try again in a moment.",
)
STOPPING = Refusal(
    status=503, reason="gateway_stopping", retry_after_s=1,
    message="This gateway is stopping and takes no new requests; try again, or at another one.",
)
NEVER_NS = 1 << 62
PROBE = "probe"  # answers to supervisors and peers, which ask all the time: not logged
NOT_POST = Refusal(status=405, reason="method", message="Use POST here.", allow="POST")
NOT_GET = Refusal(status=405, reason="method", message="Use GET here.", allow="GET, HEAD")


class OwnAnswer:
    """A request that this gateway answers itself, by `action`; and every refusal from the head."""

    def __init__(
        self,
        context: Context,
        connection: ClientConnection,
        incoming: Incoming,
        action: "Callable[[OwnAnswer], None] | None" = None,
    ) -> None:
        self.context = context
        self.connection = connection
        self.incoming = incoming
        self.request_id = context.new_request_id(context.clock.wall_ns())
        self._action = action

    def serve(self) -> None:
        assert self._action is not None, "refused from the head"
        self._action(self)

    def fail(self, fault: Fault) -> None:
        self.refuse(Refusal(status=fault.status, reason=fault.reason, message=fault.message))

    def refuse(self, refusal: Refusal) -> None:
        asked = self.incoming.head
        path = asked.path if asked.complete else path_of(asked.url)
        self.send(
            refusal.status, error_body_for(api_of(path), refusal),
            reason=refusal.reason, extra=refusal_lines(refusal),
        )

    def send(self, status: int, body: bytes, *, reason: str, extra: str = "") -> None:
        """Answer with JSON; the reason goes to the log."""
        context, incoming = self.context, self.incoming
        close = self.connection.will_close(incoming)
        total_ms = (context.clock.monotonic_ns() - incoming.began_ns) / 1e6
        top = head(
            status, content_type=JSON, request_id=self.request_id, where=context.where,
            timing=f"total;dur={total_ms:.3f}", length=len(body), close=close,
            client_request_id=incoming.head.client_request_id, extra=extra,
        )
        if reason != PROBE:
            context.log.other(
                self.request_id, at=context.clock.wall_ns(), status=status,
                path=incoming.head.path, reason=reason,
            )
            context.metrics.answered(status, reason)
        self.connection.answer(top + body, close=close)


class HopClaim:
    """A request that says that a peer sent it: the proof covers the body, so it is checked last."""

    def __init__(
        self, context: Context, connection: ClientConnection, incoming: Incoming,
        endpoint: Endpoint,
    ) -> None:
        self._context = context
        self._connection = connection
        self._incoming = incoming
        self._endpoint = endpoint

    def serve(self) -> None:
        context, incoming = self._context, self._incoming
        known = incoming.head.known
        ingress = context.view.site(
            known.ingress.name if isinstance(known, HopEntrant) else claimed_ingress(incoming)
        )
        try:
            hop = context.peers.verify(incoming, ingress, incoming.body)
        except Untrusted as error:
            self._refuse(Refusal(status=401, reason="peer_untrusted", message=error.message))
            return
        entrant = hop.entrant
        key, sender = context.view.keys.by_id(KeyId(entrant.head.key_id)), entrant.ingress.name
        rtt_ms = context.view.rtt_ms(sender)
        wall_ns = context.clock.wall_ns()
        context.skew.heard(sender, hop.sent_at, rtt_ms, incoming.began_ns)
        unknown: Refusal | None = KEY_UNKNOWN
        if key is not None:
            unknown = admission.refuse_key(key, admission.scope_of(self._endpoint), wall_ns)
        if key is None or unknown is not None:
            self._refuse_hop(hop, unknown or KEY_UNKNOWN)
            return
        if context.stopping:
            self._refuse_hop(hop, STOPPING)
            return
        narrowing = context.narrowings.of_hop(entrant.head.residency, context.view.table.blocs)
        if isinstance(narrowing, Refusal):
            self._refuse_hop(hop, narrowing)
            return
        exchange = Exchange(
            context, self._connection, incoming, key=key, endpoint=self._endpoint,
            request_id=hop.request_id, received_at=wall_ns, hop=hop,
        )
        exchange.narrowing = narrowing
        exchange.serve()

    def fail(self, fault: Fault) -> None:
        self._refuse(Refusal(status=fault.status, reason=fault.reason, message=fault.message))

    def _refuse_hop(self, hop: Hop, refusal: Refusal) -> None:
        """Tell a peer, which says itself what came of the request."""
        context = self._context
        reply = Reply(self._connection, self._incoming, hop.request_id, hop)
        reply.refuse(refusal, where=context.where, timing="total;dur=0", typed=True)
        context.metrics.answered(refusal.status, refusal.reason)
        reply.close()

    def _refuse(self, refusal: Refusal) -> None:
        OwnAnswer(self._context, self._connection, self._incoming).refuse(refusal)


class Entrant:
    """A head that was let in: by this key, to this endpoint, while table and keys are these.
    `narrowing` is what it asks for beyond the key's policy, `until_ns` the key's end (wall)."""

    __slots__ = ("endpoint", "key", "keys_version", "narrowing", "table", "until_ns")

    def __init__(
        self, table: RoutingTable, keys_version: int, key: ApiKey, endpoint: Endpoint,
        narrowing: Narrowing | None,
    ) -> None:
        self.table = table
        self.keys_version = keys_version
        self.key = key
        self.endpoint = endpoint
        self.narrowing = narrowing
        self.until_ns = NEVER_NS if key.expires_at is None else key.expires_at


class Routes:
    """The application of the server."""

    def __init__(self, context: Context, letters: Letters) -> None:
        self._context = context
        self._letters = letters

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler | None:
        """Decide from the head alone. None when the answer has been given."""
        context, view, known = self._context, self._context.view, incoming.head.known
        wall_ns = context.clock.wall_ns()
        if (
            not isinstance(known, Entrant)
            or known.table is not view.table
            or known.keys_version != view.keys.version
            or view.aged
            or wall_ns >= known.until_ns
        ):
            found = self._examine(connection, incoming)
            if not isinstance(found, Entrant):
                return found
            known = found
        exchange = Exchange(
            context, connection, incoming, key=known.key, endpoint=known.endpoint,
            request_id=context.new_request_id(wall_ns), received_at=wall_ns,
        )
        if known.narrowing is not None:
            exchange.narrowing = known.narrowing
        return exchange

    def fail(self, connection: ClientConnection, incoming: Incoming, fault: Fault) -> None:
        OwnAnswer(self._context, connection, incoming).fail(fault)

    # -- inference -------------------------------------------------------------------------------

    def _examine(
        self, connection: ClientConnection, incoming: Incoming
    ) -> "Entrant | Handler | None":
        """What a head means that was not seen before, or not since keys or routes changed."""
        context, path = self._context, incoming.head.path
        endpoint = ROUTES.get(path)
        if path == LETTERS_PATH and claims_hop(incoming) and incoming.head.method == b"POST":
            return OwnAnswer(context, connection, incoming, self._hear)
        if endpoint is None:
            own = OwnAnswer(context, connection, incoming, self._action(path))
            refusal = self._refusal_of_own(path, incoming)
            if refusal is None:
                return own
            own.refuse(refusal)
            return None
        if claims_hop(incoming) and context.view.synced and incoming.head.method == b"POST":
            return HopClaim(context, connection, incoming, endpoint)
        key = context.view.keys.by_hash(incoming.head.secret_sha256)
        narrowing = None
        if incoming.head.method != b"POST":
            refusal = NOT_POST
        elif not context.view.synced:
            refusal = STARTING
        elif key is None:
            refusal = UNAUTHENTICATED
        else:
            refusal = STOPPING if context.stopping else admission.refuse_old_view(context, key)
            refusal = refusal or admission.refuse_key(
                key, admission.scope_of(endpoint), context.clock.wall_ns()
            )
            asked = _narrowing(context, incoming)
            if isinstance(asked, Refusal):
                refusal = refusal or asked
            else:
                narrowing = asked
                refusal = refusal or admission.refuse_transit(context, key, narrowing)
        if key is None:
            assert refusal is not None
            OwnAnswer(context, connection, incoming).refuse(refusal)
            return None
        if refusal is not None:
            wall_ns = context.clock.wall_ns()
            exchange = Exchange(
                context, connection, incoming, key=key, endpoint=endpoint,
                request_id=context.new_request_id(wall_ns), received_at=wall_ns,
            )
            exchange.refuse(refusal)
            return None
        view = context.view
        entrant = incoming.head.known = Entrant(
            view.table, view.keys.version, key, endpoint, narrowing
        )
        return entrant

    # -- answered here ---------------------------------------------------------------------------

    def _hear(self, own: OwnAnswer) -> None:
        """Letters of a peer."""
        refusal = self._letters.hear(own.incoming)
        if refusal is not None:
            own.refuse(refusal)
        else:
            own.send(200, b"{}", reason=PROBE, extra=f"keep-alive: timeout={KEEP_ALIVE_S}\r\n")

    def _refusal_of_own(self, path: str, incoming: Incoming) -> Refusal | None:
        if self._action(path) is None:
            return unknown_path(incoming.head.method.decode("latin-1"), path)
        if incoming.head.method != b"GET":
            return NOT_GET
        if not path.startswith(models_route.PATH):
            return None
        if not self._context.view.synced:
            return STARTING
        key = self._context.view.keys.by_hash(incoming.head.secret_sha256)
        if key is None:
            return UNAUTHENTICATED
        refusal = admission.refuse_key(key, "models", self._context.clock.wall_ns())
        if refusal is not None:
            return refusal
        asked = _narrowing(self._context, incoming)
        return asked if isinstance(asked, Refusal) else None

    def _action(self, path: str) -> Callable[[OwnAnswer], None] | None:
        if path == "/health":
            return _health
        if path == "/ready":
            return _ready
        if path == models_route.PATH:
            return _models
        if path.startswith(models_route.PATH + "/"):
            return _model
        return None


def _health(own: OwnAnswer) -> None:
    """Alive: the event loop runs."""
    own.send(200, b'{"status":"ok"}', reason=PROBE)


def _ready(own: OwnAnswer) -> None:
    """Ready: there is a view to serve from, sites were heard, and usage can be recorded."""
    context = own.context
    why = context.journal.refusal()
    if not context.view.synced:
        own.refuse(STARTING)
    elif not context.has_heard(context.clock.monotonic_ns()):
        own.refuse(UNHEARD)
    elif why is not None:
        own.refuse(Refusal(status=503, reason="journal", message=why, retry_after_s=5))
    else:
        view = context.view
        age = f"{view.age_s:.1f}" if math.isfinite(view.age_s) else "null"
        source = "live" if view.current else "stored"
        body = f'{{"status":"ready","view":"{source}","view_age_s":{age}}}'
        own.send(200, body.encode(), reason=PROBE)


def _models(own: OwnAnswer) -> None:
    own.send(200, models_route.list_body(_allowed_models(own)), reason="models")


def _model(own: OwnAnswer) -> None:
    name = unquote(own.incoming.head.path.removeprefix(models_route.PATH + "/"))
    for model in _allowed_models(own):
        if model.name == name:
            own.send(200, models_route.model_body(model), reason="model")
            return
    own.refuse(
        Refusal(
            status=404, reason="model_not_found", param="model",
            message=f"The model '{name[:200]}' does not exist or you do not have access to it.",
        )
    )


def _allowed_models(own: OwnAnswer) -> Sequence[Model]:
    view = own.context.view
    key = view.keys.by_hash(own.incoming.head.secret_sha256)
    narrowing = _narrowing(own.context, own.incoming)
    if key is None or isinstance(narrowing, Refusal):
        return []
    return models_route.allowed_models(view.table, key.policy_id, narrowing)


def _narrowing(context: Context, incoming: Incoming) -> Narrowing | Refusal | None:
    return context.narrowings.of(incoming.head.headers, context.view.table.blocs)
