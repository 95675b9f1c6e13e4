"""Speaks for control and for the agents of a cloud whose only real gateway is the measured one.

Usage: python -m benchmarks.gateway.cloud DESCRIBED NATS_URL FOLDER. It publishes what the file of a
gateway alone describes, writes that gateway's identity and settings into FOLDER once NATS has it
all, and says every site's load once a second until it is stopped.
"""

import asyncio
import sys
from pathlib import Path
from random import Random

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.nats.bus import NatsBus, open_bus
from isochrone.adapters.nats.identity import control_user, load_secrets, new_user, site_user_jwt
from isochrone.core.world.digest import SiteDigest
from isochrone.wire import fleet, subjects
from isochrone.wire.identity import SiteIdentity
from isochrone.wiring.alone_entries import Told, told_by
from isochrone.wiring.alone_file import AloneFile, load_alone
from isochrone.wiring.private_file import write_private

DIGEST_EVERY_S = 1.0


async def main(described: Path, nats_url: str, folder: Path) -> None:
    """Runs until it is killed."""
    file = load_alone(described)
    secrets = load_secrets(folder / "nats.json")
    signer, peer = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    peer_key = peer.public_key().public_bytes_raw().hex()
    told = told_by(file, peer_key)
    bus = await open_bus(
        [nats_url], control_user(secrets), name="control", clock=SystemClock(), rng=Random(1)
    )
    await publish(bus, file, told, signer)
    user, seed = new_user()
    identity = SiteIdentity(
        site=file.site, country=None, nats_urls=(nats_url,),
        nats_jwt=site_user_jwt(secrets, file.site, user), nats_seed=seed, peer_key=peer_key,
        peer_secret=peer.private_bytes_raw().hex(), host="127.0.0.1", port=file.settings.port,
        control_key=signer.public_key().public_bytes_raw().hex(), control_url="",
    )
    write_private(folder / "identity.json", msgspec.json.encode(identity))
    settings = f'identity = "identity.json"\nport = {identity.port}\njournal = "journal"\n'
    write_private(folder / "gateway.toml", settings.encode())
    for sequence in range(1, sys.maxsize):
        for site, loads in told.loads.items():
            digest = SiteDigest(site=site, epoch=1, sequence=sequence, at=0, loads=loads)
            await bus.publish(subjects.digest_subject(site), fleet.encode(digest))
        await asyncio.sleep(DIGEST_EVERY_S)


async def publish(bus: NatsBus, file: AloneFile, told: Told, signer: Ed25519PrivateKey) -> None:
    """The signed view, the replicas of the gateway's site, and the stream for its usage."""
    own = subjects.site_bucket(file.site)
    for bucket in (subjects.VIEW_BUCKET, own):
        await bus.ensure_bucket(bucket)
    await bus.ensure_stream(
        subjects.USAGE_STREAM, subjects.USAGE_SUBJECTS, subjects.BOOK_CONSUMER
    )
    for key, replica in told.replicas.items():
        await bus.put(own, key, fleet.encode(replica))
    for key, noun in told.view.items():
        value = fleet.sign(noun, bucket=subjects.VIEW_BUCKET, key=key, serial=1, signer=signer)
        await bus.put(subjects.VIEW_BUCKET, key, value)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
