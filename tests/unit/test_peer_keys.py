"""The keys that a gateway shares with others: each site's is of its name, whatever it claims."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from isochrone.gateway.peer_hop import PeerHops
from isochrone.wire import peer
from isochrone.wire.identity import SiteIdentity
from tests.builders import a_site
from tests.fixtures.stepped_clock import SteppedClock

OWN, VICTIM = (X25519PrivateKey.from_private_bytes(bytes([digit]) * 32) for digit in (1, 2))


def test_who_states_the_public_key_of_another_site_does_not_cut_that_one_off() -> None:
    identity = SiteIdentity(
        site="sydney", country="AU", nats_urls=(), nats_jwt="", nats_seed="", control_key="",
        peer_key=OWN.public_key().public_bytes_raw().hex(),
        peer_secret=OWN.private_bytes_raw().hex(), control_url="", host="", port=1,
    )
    peers = PeerHops(identity, SteppedClock())
    stated = VICTIM.public_key().public_bytes_raw().hex()
    thief, victim = a_site("thief", peer_key=stated), a_site("victim", peer_key=stated)
    assert peers.key_for(thief) != peers.key_for(victim)
    own = peer.shared_key(VICTIM.private_bytes_raw().hex(), identity.peer_key, "victim", "sydney")
    assert peers.key_for(victim) == own
    assert peers.key_for(a_site("victim", peer_key=identity.peer_key)) != own, "it joined anew"
