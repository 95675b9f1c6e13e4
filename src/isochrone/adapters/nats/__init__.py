"""The live bus on NATS: identities, the embedded server, and the Bus port over one connection."""

from isochrone.adapters.sparing import without

with without("aiohttp"):  # for NATS over WebSocket
    import nats.aio.transport  # noqa: F401
