"""Whether hops to a site are encrypted, and the name that its certificate must carry.

A site says so by its public URL: where that is https on the very port at which its gateway takes
peers, the gateway itself ends TLS there. An https URL on another port belongs to something in front
of the gateway, and peers that go past it find plain HTTP.
"""

from functools import lru_cache
from urllib.parse import urlsplit

HTTPS_PORT = 443


@lru_cache(maxsize=4096)
def hop_tls_name(public_url: str, port: int) -> str | None:
    """The host name to verify on the way to `port` of that site; None where there is no TLS."""
    try:
        parts = urlsplit(public_url)
        own_port = parts.port or HTTPS_PORT
    except ValueError:
        return None
    if parts.scheme != "https" or own_port != port:
        return None
    return parts.hostname
