"""What crosses NATS between control, gateways and agents: encoding, and control's signed entries.

The payloads are the frozen nouns of `core/world`; msgspec encodes them as MessagePack maps, so a
newer sender may add fields with defaults and an older reader skips them. Usage is in `wire/usage`.
Entries of the view and the desired state are wrapped in `Signed`: the signature covers the bucket
and key too, so that an entry cannot be moved, and `serial` grows, so that it cannot be replayed.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from isochrone.core.errors import Untrusted

T = TypeVar("T")

VERSION = 1
# What decoding raises for bytes that are none of ours: a text may be no UTF-8, a list too deep.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A signed entry: version of the schema, growing serial, encoded noun, Ed25519 signature."""

    version: int
    serial: int
    body: bytes
    signature: bytes


def encode(noun: object) -> bytes:
    """Encode one frozen noun as MessagePack."""
    return msgspec.msgpack.encode(noun)


def decode(body: bytes, kind: type[T]) -> T:
    """Decode one noun; raises Untrusted when the bytes are not a `kind`."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except UNREADABLE as error:
        raise Untrusted(f"not a valid {kind.__name__}: {error}") from error


def _signed_bytes(bucket: str, key: str, version: int, serial: int, body: bytes) -> bytes:
    return f"{bucket}\n{key}\n{version}\n{serial}\n".encode() + body


def sign(noun: object, *, bucket: str, key: str, serial: int, signer: Ed25519PrivateKey) -> bytes:
    """Encode `noun` as a signed entry for this bucket and key."""
    body = encode(noun)
    signature = signer.sign(_signed_bytes(bucket, key, VERSION, serial, body))
    return encode(Signed(version=VERSION, serial=serial, body=body, signature=signature))


def open_signed(
    value: bytes, kind: type[T], *, bucket: str, key: str, verifier: Ed25519PublicKey
) -> tuple[T, int]:
    """Return (noun, serial) of a signed entry; raises Untrusted when anything about it is wrong."""
    entry = decode(value, Signed)
    if entry.version > VERSION:
        raise Untrusted(f"{bucket}/{key}: schema version {entry.version} is newer than {VERSION}")
    message = _signed_bytes(bucket, key, entry.version, entry.serial, entry.body)
    try:
        verifier.verify(entry.signature, message)
    except InvalidSignature as error:
        raise Untrusted(f"{bucket}/{key}: not signed by control") from error
    return decode(entry.body, kind), entry.serial


def to_builtins(noun: object) -> Any:  # JSON-ready shape for APIs and files
    """Plain dicts, lists and scalars of a noun, for JSON columns and API answers."""
    return msgspec.to_builtins(noun)
