"""Encodes NATS keys: Ed25519 seeds and public keys as base32 text with a role prefix and a CRC.

A public key is `prefix byte, 32 bytes, CRC-16`; a seed packs the seed prefix and the role prefix
into two bytes before its 32. The text starts with the role's letter (U, A, O) or S for a seed.
Source: the nkeys specification of the NATS project.
"""

import base64
import binascii
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from isochrone.core.errors import Untrusted

Role = Literal["operator", "account", "user"]

_PREFIX: dict[Role, int] = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_SEED_PREFIX = 18 << 3
_KEY_BYTES = 32


def _text(raw: bytes) -> str:
    """Base32 of `raw` and its CRC-16 (XMODEM, little endian), without padding."""
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    """Inverse of `_text`; raises Untrusted for anything that is not canonical."""
    try:
        checked = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise Untrusted("not a NATS key: it is no base32 text") from error
    raw, crc = checked[:-2], checked[-2:]
    if len(checked) < 3 or binascii.crc_hqx(raw, 0).to_bytes(2, "little") != crc:
        raise Untrusted("not a NATS key: its check sum is wrong")
    return raw


def new_seed(role: Role) -> str:
    """A fresh seed, text starting with S and the role's letter."""
    return seed_text(role, Ed25519PrivateKey.generate().private_bytes_raw())


def seed_text(role: Role, secret: bytes) -> str:
    """The seed text of 32 secret bytes."""
    prefix = _PREFIX[role]
    return _text(bytes([_SEED_PREFIX | prefix >> 5, (prefix & 31) << 3]) + secret)


def _open_seed(seed: str) -> tuple[int, Ed25519PrivateKey]:
    raw = _raw(seed)
    if len(raw) != _KEY_BYTES + 2 or raw[0] & 0xF8 != _SEED_PREFIX:
        raise Untrusted("not a NATS seed")
    prefix = (raw[0] & 7) << 5 | raw[1] >> 3
    if prefix not in _PREFIX.values():
        raise Untrusted("not the seed of an operator, account or user")
    return prefix, Ed25519PrivateKey.from_private_bytes(raw[2:])


def public_key(seed: str) -> str:
    """The public key text that belongs to a seed; raises Untrusted."""
    prefix, private = _open_seed(seed)
    return _text(bytes([prefix]) + private.public_key().public_bytes_raw())


def sign(seed: str, message: bytes) -> bytes:
    """64 signature bytes; raises Untrusted when `seed` is none."""
    return _open_seed(seed)[1].sign(message)


def verify(public: str, message: bytes, signature: bytes) -> None:
    """Raises Untrusted when the signature is not by `public`."""
    raw = _raw(public)
    if len(raw) != _KEY_BYTES + 1:
        raise Untrusted("not a NATS public key")
    try:
        Ed25519PublicKey.from_public_bytes(raw[1:]).verify(signature, message)
    except InvalidSignature as error:
        raise Untrusted("not signed by the named NATS key") from error


def check_public(role: Role, public: str) -> None:
    """Raises Untrusted unless `public` is the public key of a `role`."""
    raw = _raw(public)
    if len(raw) != _KEY_BYTES + 1 or raw[0] != _PREFIX[role]:
        raise Untrusted(f"not the public NATS key of a {role}")
