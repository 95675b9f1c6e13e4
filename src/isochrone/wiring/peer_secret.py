"""The secret by which a gateway that runs alone proves itself to the gateways of other sites."""

import contextlib
from pathlib import Path
from secrets import token_hex

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from isochrone.core.errors import InvalidInput
from isochrone.wiring.private_file import write_private

MAKE_IT = "make it with `isochrone gateway --new-peer-secret FILE`"


def new_peer_secret(path: Path) -> str:
    """Write a new secret to `path` (mode 0600) and return its public key, hex.

    Raises InvalidInput when there is a file already: others may know its public key.
    """
    if path.exists():
        raise InvalidInput([f"{path}: exists already; remove it first if nobody relies on it"])
    secret = X25519PrivateKey.generate()
    try:
        write_private(path, secret.private_bytes_raw().hex().encode() + b"\n")
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be written: {error.strerror}"]) from error
    return secret.public_key().public_bytes_raw().hex()


def read_peer_secret(path: Path) -> str:
    """The secret in hex. Raises InvalidInput."""
    try:
        text = path.read_text(encoding="ascii").strip()
        X25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    except OSError as error:
        raise InvalidInput([f"{path}: cannot be read: {error.strerror}; {MAKE_IT}"]) from error
    except ValueError as error:
        raise InvalidInput([f"{path}: is no peer secret; {MAKE_IT}"]) from error
    return text


def kept_peer_secret(path: Path) -> str:
    """The secret of a gateway without peers, made when it is first asked for: nobody is ever shown
    its public key, but all workers, and their next lives, salt engines' caches by it. Raises
    InvalidInput."""
    if not path.exists():
        made = X25519PrivateKey.generate().private_bytes_raw().hex()
        own = path.with_name(f".{path.name}.{token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(own, made.encode() + b"\n")
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(own)  # the first of several workers wins
            own.unlink()
        except OSError as error:
            raise InvalidInput([f"{path}: cannot be written: {error.strerror}"]) from error
    return read_peer_secret(path)


def peer_public(secret_hex: str) -> str:
    """The public key that belongs to a secret, hex."""
    secret = X25519PrivateKey.from_private_bytes(bytes.fromhex(secret_hex))
    return secret.public_key().public_bytes_raw().hex()
