"""Joins a site to a cloud: keys made here, public halves sent with the token, identity kept.

The private keys are written beside the identity file before anything is sent, so a lost reply costs
nothing: the same command sends the same public keys again and control answers the same. A site
that has joined before keeps its keys when it joins with a new token (its address has changed).
"""

from hashlib import sha256
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from isochrone.adapters.nats import nkeys
from isochrone.adapters.nats.identity import new_user
from isochrone.core.errors import InvalidInput, Unavailable, Untrusted
from isochrone.wire.identity import JoinReply, JoinRequest, SiteIdentity
from isochrone.wiring.control_api import ControlApi
from isochrone.wiring.private_file import write_private


class SiteKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The private halves of a site's keys: X25519 in hex, NATS user seed."""

    peer_secret: str
    nats_seed: str


def join_site(
    token: str, control_url: str, *, host: str, port: int, public_url: str, out: Path
) -> SiteIdentity:
    """Join with a one-time `token` and write the identity to `out` (mode 0600).

    `host`, `port` and `public_url` say where the site's gateway will listen. Safe to repeat.
    Raises Forbidden or Untrusted when control refuses the token, Unavailable when control does
    not answer, InvalidInput when `out` cannot be written or holds something else.
    """
    pending = out.with_name(out.name + ".pending")
    keys = _keys(out, pending)
    try:
        peer_key = _peer_public(keys.peer_secret)
        nats_key = nkeys.public_key(keys.nats_seed)
    except (ValueError, Untrusted) as error:
        raise InvalidInput([f"{out}: its keys are damaged: {error}"]) from error
    request = JoinRequest(
        token=token, peer_key=peer_key, nats_key=nats_key, host=host, port=port,
        public_url=public_url,
    )
    again = sha256(f"{token}\n{peer_key}\n{host}:{port}".encode()).hexdigest()
    answer = ControlApi(control_url, None).post(
        "sites/join", msgspec.to_builtins(request), idempotency_key=f"join-{again}"
    )
    try:
        reply = msgspec.convert(answer, JoinReply)
    except msgspec.ValidationError as error:
        raise Unavailable(f"{control_url} answered something else than a join: {error}") from error
    identity = SiteIdentity(
        site=reply.site, country=reply.country, nats_urls=reply.nats_urls,
        nats_jwt=reply.nats_jwt, nats_seed=keys.nats_seed, peer_key=peer_key,
        peer_secret=keys.peer_secret, control_key=reply.control_key,
        control_url=reply.control_url, host=host, port=port,
    )
    _write(out, msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n")
    pending.unlink(missing_ok=True)
    return identity


def load_identity(path: Path) -> SiteIdentity:
    """Read an identity file; raises InvalidInput with what to do."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SiteIdentity)
    except OSError as error:
        raise InvalidInput(
            [f"{path}: cannot be read: {error.strerror}; make it with `isochrone site join`"]
        ) from error
    except msgspec.MsgspecError as error:
        raise InvalidInput(
            [f"{path}: is no site identity: {error}; join again with `isochrone site join`"]
        ) from error


def _keys(out: Path, pending: Path) -> SiteKeys:
    if out.exists():
        identity = load_identity(out)
        return SiteKeys(peer_secret=identity.peer_secret, nats_seed=identity.nats_seed)
    if pending.exists():
        try:
            return msgspec.json.decode(pending.read_bytes(), type=SiteKeys)
        except (OSError, msgspec.MsgspecError) as error:
            raise InvalidInput(
                [f"{pending}: is damaged: {error}; remove it and ask for a new token"]
            ) from error
    secret = X25519PrivateKey.generate().private_bytes_raw().hex()
    keys = SiteKeys(peer_secret=secret, nats_seed=new_user()[1])
    _write(pending, msgspec.json.encode(keys))
    return keys


def _peer_public(secret_hex: str) -> str:
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(secret_hex))
    return private.public_key().public_bytes_raw().hex()


def _write(path: Path, content: bytes) -> None:
    try:
        write_private(path, content)
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be written: {error.strerror}"]) from error
