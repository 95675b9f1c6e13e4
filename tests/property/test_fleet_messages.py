"""What crosses NATS comes back as it was sent, and a signed entry only where it was meant for."""

from collections.abc import Iterator
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.errors import Untrusted
from isochrone.core.metering.event import Tokens, UsageEvent
from isochrone.core.routing.choice import Decision, Ground, Refused
from isochrone.core.world.digest import (
    DeploymentLoad,
    ProbedRtt,
    ReplicaLoad,
    SiteDigest,
)
from isochrone.core.world.model import Deployment, Desired, EngineSpec, Model, Replica
from isochrone.core.world.site import Hardware, Link, Site, SiteLinks
from isochrone.core.world.tenant import ApiKey, KeyShard, Policy
from isochrone.gateway.journal_notes import Progress, Shipped
from isochrone.wire.fleet import Signed, decode, encode, open_signed, sign
from isochrone.wire.usage import Opening, UsageBatch, UsageRecord, decode_batch, encode_batch
from tests.unit.build_usage import a_record

T = TypeVar("T")

QUICK = settings(max_examples=20)
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))

NOUNS = (
    Decision, Deployment, DeploymentLoad, Desired, EngineSpec, Ground, Hardware, KeyShard, ApiKey,
    Link, Model, Opening, Policy, ProbedRtt, Progress, Refused, Replica, ReplicaLoad, Shipped, Site,
    SiteDigest, SiteLinks, Signed, Tokens, UsageBatch, UsageEvent, UsageRecord,
)


@pytest.fixture
def numbers_that_fit() -> Iterator[None]:
    """MessagePack holds 64 bits, and NaN equals nothing, itself included."""
    st.register_type_strategy(int, st.integers(-(2**62), 2**62))
    st.register_type_strategy(float, st.floats(allow_nan=False))
    yield
    st.register_type_strategy(int, st.integers())
    st.register_type_strategy(float, st.floats())


@pytest.mark.usefixtures("numbers_that_fit")
@pytest.mark.parametrize("kind", NOUNS, ids=lambda kind: kind.__name__)
def test_a_noun_survives_the_wire(kind: type[T]) -> None:
    @QUICK
    @given(st.from_type(kind))
    def there_and_back(noun: T) -> None:
        assert decode(encode(noun), kind) == noun

    there_and_back()


@QUICK
@given(st.from_type(Policy), st.integers(0, 2**40), st.text(max_size=9), st.text(max_size=9))
def test_a_signed_entry_opens_only_where_it_was_meant_for(
    policy: Policy, serial: int, bucket: str, key: str
) -> None:
    value = sign(policy, bucket=bucket, key=key, serial=serial, signer=SIGNER)
    opened = open_signed(value, Policy, bucket=bucket, key=key, verifier=SIGNER.public_key())
    assert opened == (policy, serial)
    for other_bucket, other_key, verifier in (
        (bucket + "x", key, SIGNER), (bucket, key + "x", SIGNER), (bucket, key, STRANGER)
    ):
        with pytest.raises(Untrusted):
            open_signed(
                value, Policy, bucket=other_bucket, key=other_key, verifier=verifier.public_key()
            )


@QUICK
@given(st.from_type(Policy), st.data())
def test_a_changed_entry_is_not_trusted(policy: Policy, data: st.DataObject) -> None:
    value = sign(policy, bucket="view", key="policy.p", serial=3, signer=SIGNER)
    entry = decode(value, Signed)
    changed = data.draw(
        st.sampled_from(
            [
                Signed(version=1, serial=4, body=entry.body, signature=entry.signature),
                Signed(version=0, serial=3, body=entry.body, signature=entry.signature),
                Signed(version=1, serial=3, body=entry.body + b"\x00", signature=entry.signature),
                Signed(version=1, serial=3, body=entry.body, signature=entry.signature[:-1]),
                Signed(version=9, serial=3, body=entry.body, signature=entry.signature),
            ]
        )
    )
    with pytest.raises(Untrusted):
        open_signed(
            encode(changed), Policy, bucket="view", key="policy.p", verifier=SIGNER.public_key()
        )


@QUICK
@given(st.binary(max_size=60))
def test_bytes_from_nowhere_are_refused_not_crashed_on(junk: bytes) -> None:
    for kind in (SiteDigest, UsageBatch, Signed):
        with pytest.raises(Untrusted):
            decode(junk, kind)
    for payload in (junk, b"\x83" + junk):
        with pytest.raises(Untrusted):
            decode_batch(payload)


@pytest.mark.parametrize(
    "junk", [b"\xa2\xff\xfe", b"\x91" * 100_000], ids=["no UTF-8", "nested too deeply"]
)
def test_texts_that_are_none_and_endless_lists_are_refused_not_crashed_on(junk: bytes) -> None:
    for payload in (
        b"\x94\x02" + junk, b"\x94\x02\xa1b\x90" + junk, b"\x83\xa6events\x91\x81\xa1x" + junk,
    ):
        with pytest.raises(Untrusted):
            decode_batch(payload)
    for kind in (SiteDigest, Signed):
        with pytest.raises(Untrusted):
            decode(b"\x81\xa4site" + junk, kind)
        with pytest.raises(Untrusted):
            decode(b"\x81\xa4body" + junk, kind)


@pytest.mark.usefixtures("numbers_that_fit")
def test_a_batch_of_what_is_encoded_already_reads_as_what_it_was() -> None:
    @QUICK
    @given(st.from_type(UsageBatch))
    def there_and_back(batch: UsageBatch) -> None:
        payload = encode_batch(
            batch.batch_id, map(encode, batch.grounds), map(encode, batch.events)
        )
        assert decode(payload, UsageBatch).events == batch.events
        grounds, events = decode_batch(payload)
        assert tuple(grounds) == batch.grounds
        assert [a_record(event) for event in events] == list(batch.events)

    there_and_back()
