"""The peer hop: headers between two gateways, and the message codes that prove both ends.

Two sites share a key without ever exchanging one: X25519 of one's secret and the other's public key
(from the signed view), through HKDF. The ingress sends a code over id, method, path, key id, class,
instant, what the client's headers narrow, and body digest; the serving gateway answers with a code
over id and status. A code older than `MAX_AGE_S` is refused. The client's own key never travels:
the destination finds `key id` in its own view and re-checks tenant and residency there.
"""

import hmac
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_AGE_S = 30.0

REQUEST = "x-isochrone-request"
SITE = "x-isochrone-site"
COUNTRY = "x-isochrone-country"
REASON = "x-isochrone-reason"
REPLICA = "x-isochrone-replica"
PEER = "x-isochrone-peer"              # ingress site, on the request of a peer hop
KEY_ID = "x-isochrone-key"
CLASS = "x-isochrone-class"
SENT_AT = "x-isochrone-sent-at"        # wall ns of the sender
CODE = "x-isochrone-code"              # hex message code, on request and answer
RESIDENCY = "x-isochrone-residency"    # narrows a request: a client's wish, and on a hop the same
TRANSIT = "x-isochrone-transit"        # likewise, of a client's request only
REFUSED = "x-isochrone-refused"        # on a typed refusal by the destination: the rule
TOKENS = "x-isochrone-tokens"          # answer without stream: uncached,cached,output,source


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRequest:
    """What the code of a peer request covers. `residency` is what the client's headers narrow, in
    canonical terms; empty where they narrow nothing."""

    request_id: str
    method: str
    path: str
    ingress: str
    serving: str
    key_id: str
    class_: str
    sent_at: int
    residency: str = ""


def shared_key(own_secret_hex: str, peer_public_hex: str, one: str, other: str) -> bytes:
    """32 bytes that only the two named sites can compute; the order of names does not matter."""
    secret = X25519PrivateKey.from_private_bytes(bytes.fromhex(own_secret_hex))
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(peer_public_hex))
    info = "isochrone peer hop v1\n" + "\n".join(sorted((one, other)))
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info.encode()).derive(
        secret.exchange(public)
    )


def request_code(key: bytes, head: PeerRequest, body: bytes) -> str:
    """Message code of a peer request, hex."""
    text = "\n".join(
        (
            "request", head.request_id, head.method, head.path, head.ingress, head.serving,
            head.key_id, head.class_, str(head.sent_at),
        )
    )
    if head.residency:
        text += f"\n{head.residency}"  # no part has a line end, so their number says what is last
    return hmac.digest(key, text.encode() + b"\n" + sha256(body).digest(), "sha256").hex()


def answer_code(key: bytes, request_id: str, serving: str, status: int) -> str:
    """Message code of the answer's head, hex."""
    return hmac.digest(key, f"answer\n{request_id}\n{serving}\n{status}".encode(), "sha256").hex()


def same_code(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())
