"""Hashes passwords so that stealing the book does not give them away: scrypt of the library.

A hash says how it was made, `scrypt:LOG2N:R:P:SALT:KEY` in hex, so that stronger ones can come
later. Hashing takes 16 MiB and some tenths of a second of a core, on purpose; only so many at a
time.
"""

import hashlib
import hmac
from threading import BoundedSemaphore

from isochrone.core.errors import Unavailable

LOG2_N, R, P = 14, 8, 5
SALT_BYTES = KEY_BYTES = 32
AT_ONCE = 2
PATIENCE_S = 5.0

_slots = BoundedSemaphore(AT_ONCE)


def hash_password(password: str, salt: bytes) -> str:
    """The text that is kept of `password`; `salt` is SALT_BYTES of chance. Raises Unavailable when
    too many are being hashed."""
    key = _derive(password, salt, LOG2_N, R, P)
    return f"scrypt:{LOG2_N}:{R}:{P}:{salt.hex()}:{key.hex()}"


def is_password(password: str, kept: str | None) -> bool:
    """Whether `kept` was made of `password`. None, an account that does not exist, takes as long
    and is wrong. Raises Unavailable when too many are being hashed."""
    if kept is None:
        _derive(password, bytes(SALT_BYTES), LOG2_N, R, P)
        return False
    _, log2_n, r, p, salt, key = kept.split(":")
    found = _derive(password, bytes.fromhex(salt), int(log2_n), int(r), int(p))
    return hmac.compare_digest(found, bytes.fromhex(key))


def _derive(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    if not _slots.acquire(timeout=PATIENCE_S):
        raise Unavailable("too many people sign in just now; try again in a moment")
    try:
        return hashlib.scrypt(
            password.encode(), salt=salt, n=2**log2_n, r=r, p=p, dklen=KEY_BYTES,
            maxmem=256 * r * 2**log2_n,
        )
    finally:
        _slots.release()
