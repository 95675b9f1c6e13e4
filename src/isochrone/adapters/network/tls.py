"""TLS of the sockets: a listener's certificate, followed on disk, and whom connections trust.

A changed pair of files gets a context of its own, and the listener's context passes every new
handshake on to the newest one. So a pair is used whole or not at all, connections that exist go on,
and session tickets stay valid. The private key must not be encrypted: nobody is there to be asked.
"""

import os
import ssl
from pathlib import Path

import structlog

from isochrone.core.errors import InvalidInput
from isochrone.ports.network import Certificate

PROTOCOLS = ["http/1.1"]
# TLS 1.2 only with forward secrecy and authenticated encryption; TLS 1.3 has nothing else.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

log = structlog.get_logger()

_Stamp = tuple[tuple[int, int, int], ...]


def certificate_of(chain: Path | None, key: Path | None) -> Certificate | None:
    """The pair that settings name, None when they name none. Raises InvalidInput for half a pair
    and for one that cannot be used."""
    if chain is None or key is None:
        if chain is not key:
            raise InvalidInput(["tls_certificate and tls_key belong together: only one is set"])
        return None
    certificate = Certificate(chain=chain, key=key)
    server_context(certificate)
    return certificate


class ServerTls:
    """Raises InvalidInput when the pair cannot be used. `context` is for `create_server`."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._stamp = self._read_stamp()
        self.context = self._newest = server_context(certificate)
        self.context.sni_callback = self._choose

    def refresh(self) -> None:
        """Look at the files; a changed pair serves from now on, unless it cannot be used."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._newest = server_context(self._certificate)
        except InvalidInput as error:
            log.error("certificate_refused", why=error.message, serving="the one before")
        else:
            log.info("certificate_renewed", file=str(self._certificate.chain))

    def _choose(
        self, handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext
    ) -> None:
        if context is not self._newest:
            handshake.context = self._newest

    def _read_stamp(self) -> _Stamp:
        """What changes whenever one of the files does; empty while one is missing."""
        try:
            found = [os.stat(path) for path in (self._certificate.chain, self._certificate.key)]
        except OSError:
            return ()
        return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """A context that serves this pair as it is on disk now. Raises InvalidInput."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(PROTOCOLS)
    chain, key = certificate.chain, certificate.key
    for path in (chain, key):
        if not os.access(path, os.R_OK):
            raise InvalidInput([f"{path}: cannot be read"])
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InvalidInput(
            [f"{chain} with {key}: no PEM certificate chain with its unencrypted key: {error}"]
        ) from error
    return context


def client_context(authorities: Path | None) -> ssl.SSLContext:
    """A context that verifies certificates and host names by the system's authorities and those of
    the PEM file `authorities`. Raises InvalidInput when it cannot be used."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(PROTOCOLS)
    if authorities is not None:
        try:
            context.load_verify_locations(cafile=authorities)
        except (ssl.SSLError, OSError) as error:
            raise InvalidInput([f"{authorities}: no PEM file of authorities: {error}"]) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")
