"""NATS keys and JWTs: encoding, signatures, what is refused, and what the claims say."""

import base64
import json
import stat
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.nats import nkeys
from isochrone.adapters.nats.identity import (
    CONTROL_USER,
    Credentials,
    claims_of,
    control_user,
    current_account_jwt,
    load_credentials,
    load_secrets,
    new_secrets,
    new_user,
    revoking,
    site_user_jwt,
)
from isochrone.adapters.nats.server import keep_revoked, prepare
from isochrone.core.errors import InvalidInput, Untrusted
from isochrone.ports.logins import RevokedLogin

# The example pair of the NATS documentation of nkeys.
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_known_pair() -> None:
    assert nkeys.public_key(SEED) == PUBLIC
    nkeys.check_public("user", PUBLIC)
    nkeys.verify(PUBLIC, b"nonce", nkeys.sign(SEED, b"nonce"))


@pytest.mark.parametrize(
    ("role", "letter"), [("operator", "O"), ("account", "A"), ("user", "U")]
)
def test_texts_start_with_their_role(role: nkeys.Role, letter: str) -> None:
    seed = nkeys.new_seed(role)
    public = nkeys.public_key(seed)
    assert seed[:2] == f"S{letter}"
    assert public[0] == letter
    assert (len(seed), len(public)) == (58, 56)
    nkeys.check_public(role, public)


def test_every_seed_survives_its_text() -> None:
    for value in (0, 1, 0x7F, 0x80, 0xFF):
        secret = bytes([value]) * 32
        seed = nkeys.seed_text("user", secret)
        expected = Ed25519PrivateKey.from_private_bytes(secret).sign(b"nonce")
        assert nkeys.sign(seed, b"nonce") == expected


@pytest.mark.parametrize(
    "text", ["", "S", "U", PUBLIC[:-1], PUBLIC[:-1] + "A", PUBLIC.lower(), "1" * 56, PUBLIC * 2]
)
def test_damaged_keys_are_refused(text: str) -> None:
    with pytest.raises(Untrusted):
        nkeys.check_public("user", text)
    with pytest.raises(Untrusted):
        nkeys.sign(text, b"")


def test_roles_and_halves_are_not_mixed() -> None:
    with pytest.raises(Untrusted):
        nkeys.check_public("account", PUBLIC)
    with pytest.raises(Untrusted):
        nkeys.check_public("user", SEED)
    with pytest.raises(Untrusted):
        nkeys.public_key(PUBLIC)
    with pytest.raises(Untrusted):
        nkeys.verify(PUBLIC, b"other", nkeys.sign(SEED, b"nonce"))


def _verify(jwt: str, issuer: str) -> None:
    header, payload, signature = jwt.split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {
        "typ": "JWT", "alg": "ed25519-nkey",
    }
    nkeys.verify(
        issuer, f"{header}.{payload}".encode(), base64.urlsafe_b64decode(signature + "==")
    )


def test_the_chain_of_trust() -> None:
    secrets = new_secrets()
    operator = nkeys.public_key(secrets.operator_seed)
    for jwt in (secrets.operator_jwt, secrets.system_jwt, secrets.account_jwt):
        _verify(jwt, operator)
    control = control_user(secrets)
    _verify(control.jwt, secrets.account)
    assert control.user == CONTROL_USER
    public, seed = new_user()
    jwt = site_user_jwt(secrets, "sydney", public, expires_at=5_000_000_000)
    signing = nkeys.public_key(secrets.site_signing_seed)
    _verify(jwt, signing)
    claims = claims_of(jwt)
    assert (claims["name"], claims["sub"], claims["iss"], claims["exp"]) == (
        "sydney", public, signing, 5,
    )
    assert Credentials(jwt=jwt, seed=seed).user == "sydney"


def test_secrets_survive_their_file(tmp_path: Path) -> None:
    secrets = new_secrets()
    file = tmp_path / "nats.json"
    file.write_bytes(msgspec.json.encode(secrets))
    assert load_secrets(file) == secrets
    with pytest.raises(InvalidInput, match=r"nats\.json"):
        load_credentials(file)
    with pytest.raises(InvalidInput):
        load_secrets(tmp_path / "missing.json")


@pytest.mark.parametrize("text", ["", "a", "a.b.c", "a.e30.c", "a.W10.c"])
def test_what_is_no_jwt_is_refused(text: str) -> None:
    with pytest.raises(Untrusted):
        claims_of(text)


def test_the_plan_keeps_its_files_private(tmp_path: Path) -> None:
    plan = prepare(tmp_path / "nats", new_secrets(), 4222)
    again = prepare(tmp_path / "nats", new_secrets(), 4222)
    assert (plan.url, plan.store) == ("nats://127.0.0.1:4222", again.store)
    assert stat.S_IMODE(plan.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(plan.store.stat().st_mode) == 0o700
    assert "sync_interval: always" in plan.config.read_text()


def test_rights_of_an_earlier_release_are_renewed() -> None:
    secrets = new_secrets()
    assert current_account_jwt(secrets) == secrets.account_jwt
    claims = claims_of(secrets.account_jwt)
    head, body, code = secrets.account_jwt.split(".")
    text = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    assert b'"health.{{name()}}",' in text
    earlier = base64.urlsafe_b64encode(text.replace(b'"health.{{name()}}",', b"")).rstrip(b"=")
    old = replace(secrets, account_jwt=f"{head}.{earlier.decode()}.{code}")
    renewed = claims_of(current_account_jwt(old))
    assert (renewed["sub"], renewed["nats"]) == (claims["sub"], claims["nats"])


def test_what_was_revoked_stays_so_under_the_rights_of_another_release() -> None:
    secrets = new_secrets()
    at = 1_760_000_000
    login = RevokedLogin(user_key=PUBLIC, revoked_at=at * 1_000_000_000 + 5)
    held = revoking(secrets, secrets.account_jwt, [login], spared="")
    assert held is not None
    assert revoking(secrets, held, [login], spared="") is None
    _verify(held, nkeys.public_key(secrets.operator_seed))
    assert _revocations(held) == {PUBLIC: at}
    assert current_account_jwt(secrets, held) == held
    other = _public(1)
    more = RevokedLogin(user_key=other, revoked_at=at * 1_000_000_000)
    assert revoking(secrets, held, [more], spared=other) is None
    both = revoking(secrets, held, [more], spared="")
    assert both is not None
    assert _revocations(both) == {PUBLIC: at, other: at}

    payload = base64.urlsafe_b64decode(both.split(".")[1] + "==")
    earlier = base64.urlsafe_b64encode(payload.replace(b'"health.{{name()}}",', b"")).rstrip(b"=")
    assert earlier.decode() not in both, "there was something to take away"
    renewed = current_account_jwt(secrets, f"x.{earlier.decode()}.x")
    assert claims_of(renewed)["nats"] == claims_of(both)["nats"]
    _verify(renewed, nkeys.public_key(secrets.operator_seed))
    # Servers keep the newer one by its date in seconds, whatever this clock says.
    dates = [_issued_s(jwt) for jwt in (secrets.account_jwt, held, both, renewed)]
    assert all(one < later for one, later in pairwise(dates))


def test_an_account_of_somebody_else_is_not_signed() -> None:
    secrets, stranger = new_secrets(), new_secrets()
    login = RevokedLogin(user_key=PUBLIC, revoked_at=1)
    with pytest.raises(Untrusted):
        revoking(secrets, stranger.account_jwt, [login], spared="")


def test_a_server_starts_with_what_it_kept(tmp_path: Path) -> None:
    secrets = new_secrets()
    plan = prepare(tmp_path / "nats", secrets, 4222)
    assert secrets.account_jwt in plan.config.read_text()
    login = RevokedLogin(user_key=PUBLIC, revoked_at=5_000_000_000)
    held = revoking(secrets, secrets.account_jwt, [login], spared="")
    assert held is not None
    kept = plan.accounts / f"{secrets.account}.jwt"
    for text, loaded in ((held, held), (held[:99], secrets.account_jwt), ("", secrets.account_jwt),
                         (new_secrets().account_jwt, secrets.account_jwt)):
        kept.write_text(text)
        assert f"{secrets.account}: {json.dumps(loaded)}" in prepare(
            tmp_path / "nats", secrets, 4222
        ).config.read_text()


def test_what_a_server_is_to_refuse_at_its_first_start_is_not_control(tmp_path: Path) -> None:
    secrets, user = new_secrets(), Credentials(jwt="", seed=SEED)
    for revoked, left in (([PUBLIC, _public(1)], {_public(1): 5}), ([_public(2)],
                          {_public(1): 5, _public(2): 5})):
        keep_revoked(
            tmp_path, secrets, user,
            [RevokedLogin(user_key=key, revoked_at=5_000_000_000) for key in revoked],
        )
        held = (tmp_path / "accounts" / f"{secrets.account}.jwt").read_text()
        assert _revocations(held) == left
        assert json.dumps(held) in prepare(tmp_path, secrets, 4222).config.read_text()


def _revocations(jwt: str) -> object:
    nats = claims_of(jwt)["nats"]
    assert isinstance(nats, dict)
    return nats["revocations"]


def _issued_s(jwt: str) -> int:
    at_s = claims_of(jwt)["iat"]
    assert isinstance(at_s, int)
    return at_s


def _public(number: int) -> str:
    return nkeys.public_key(nkeys.seed_text("user", bytes([number]) * 32))
