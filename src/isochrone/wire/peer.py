"""The peer hop: headers between two gateways, and the message codes that prove both ends.

Two sites share a key without ever exchanging one: X25519 of one's secret and the other's public key
(from the signed view), through HKDF. The ingress sends a code (keyed BLAKE2b) over id, method,
path, key id, class, instant, what the client's headers narrow, and body; the serving gateway
answers with a code over id, status, token counts and replica (`peer_codes`). A code older than
`MAX_AGE_S` is refused. The client's own key never travels: the destination finds `key id` in its
own view and re-checks tenant and residency there.

What differs from request to request stands in one header, `HOP`, right before the content-length,
so that both gateways know the rest of a head from the one before it.
"""

from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_AGE_S = 30.0

REQUEST = "x-isochrone-request"
SITE = "x-isochrone-site"
COUNTRY = "x-isochrone-country"
REASON = "x-isochrone-reason"
PEER = "x-isochrone-peer"              # ingress site, on the request of a peer hop
KEY_ID = "x-isochrone-key"
CLASS = "x-isochrone-class"
HOP = "x-isochrone-hop"                # request: id, wall ns, code; see `answer`
RESIDENCY = "x-isochrone-residency"    # narrows a request: a client's wish, and on a hop the same
TRANSIT = "x-isochrone-transit"        # likewise, of a client's request only
EXPLAIN = "x-isochrone-explain"        # `full`: a client wants the whole choice on record
REFUSED = "x-isochrone-refused"        # on a typed refusal by the destination: the rule
QUEUED = "x-isochrone-queued"          # on an answer: whole ms that it waited there for its turn
STOPPED = "x-isochrone-stopped"        # on a typed refusal: how it gave way there before
TRIED = "x-isochrone-tried"            # on a hop: the sites that refused or lost the request before
# The last bytes of a stream that a serving gateway leaves to its ingress because its own queue had
# no place for it again; to whoever does not know them they are a comment.
TURNED_AWAY = b": isochrone turned-away\n\n"
NOTHING = "-"                          # in the place of an answer's tokens or replica


class HopHead(msgspec.Struct, frozen=True, gc=False):
    """What the code of a peer request covers and many requests have in common. `residency` is what
    the client's headers narrow, in canonical terms; empty where they narrow nothing."""

    method: str
    path: str
    ingress: str
    serving: str
    key_id: str
    class_: str
    residency: str = ""

    def covered(self) -> bytes:
        """As the code covers it; no part of it has a line end."""
        return (
            f"request\n{self.method}\n{self.path}\n{self.ingress}\n{self.serving}\n{self.key_id}\n"
            f"{self.class_}\n{self.residency}\n"
        ).encode()

    def lines(self) -> str:
        """The lines of a request's head that say it to the peer."""
        lines = f"{PEER}: {self.ingress}\r\n{KEY_ID}: {self.key_id}\r\n{CLASS}: {self.class_}\r\n"
        return lines + f"{RESIDENCY}: {self.residency}\r\n" if self.residency else lines


def shared_key(own_secret_hex: str, peer_public_hex: str, one: str, other: str) -> bytes:
    """32 bytes that only the two named sites can compute; the order of names does not matter."""
    secret = X25519PrivateKey.from_private_bytes(bytes.fromhex(own_secret_hex))
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(peer_public_hex))
    info = "isochrone peer hop v2\n" + "\n".join(sorted((one, other)))
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info.encode()).derive(
        secret.exchange(public)
    )


def tried_line(sites: Sequence[str]) -> str:
    """The line of a hop's head that says where the request was before."""
    return f"{TRIED}: {','.join(sites)}\r\n"


def sites_tried(value: bytes | None) -> frozenset[str]:
    """The inverse, of the header's value; none where it is not there."""
    if not value:
        return frozenset()
    return frozenset(each.strip() for each in value.decode("latin-1").split(","))
