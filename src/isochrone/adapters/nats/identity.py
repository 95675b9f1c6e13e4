"""Decides what each process may do on NATS: makes the keys and the JWTs that say so.

One operator signs two accounts: the system's and ours. Ours names a *scoped* signing key: its
template gives a site rights by the site's name alone, so a new site needs a JWT and no change of
the server. Control's user is signed by the account itself and may do everything within it.

A login is revoked in the account's JWT: by user key, with the second until which what was issued to
it is refused. What was revoked once stays so in every JWT of the account that is signed later.

A limit of NATS: reply subjects are not checked, so a joined site can make the server send one of
its own acknowledgements (fixed JSON) to any subject. It can thus spoil an entry or a message, but
forge none: readers must skip what is not signed by control or is no usage batch.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from isochrone.adapters.nats import nkeys
from isochrone.core.errors import InvalidInput, Untrusted
from isochrone.ports.logins import RevokedLogin

CONTROL_USER = "_control"
REVOKING_USER = "_revoking"
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")

T = TypeVar("T")

_UNLIMITED = -1
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSecrets:
    """Seeds and JWTs of a cloud's NATS; the JSON of it is secrets/nats.json, mode 0600."""

    operator_seed: str
    system_seed: str
    account_seed: str
    site_signing_seed: str
    operator_jwt: str
    system_jwt: str
    account_jwt: str

    @property
    def account(self) -> str:
        """Public key of the account that all our processes use."""
        return nkeys.public_key(self.account_seed)

    @property
    def system_account(self) -> str:
        return nkeys.public_key(self.system_seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a process logs in with: its user JWT and the seed that proves it is its own."""

    jwt: str
    seed: str

    @property
    def user(self) -> str:
        """The name inside the JWT: a site, or control."""
        return str(claims_of(self.jwt)["name"])

    @property
    def user_key(self) -> str:
        """The public half of the seed, by which it is revoked."""
        return nkeys.public_key(self.seed)


def inbox_prefix(user: str) -> str:
    """Prefix of the reply subjects of one user; nobody else may subscribe there."""
    return f"_INBOX_{user}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _now_s() -> int:
    return time.time_ns() // _NS_PER_S


def _jwt(issuer_seed: str, claims: Mapping[str, object], issued_at_s: int | None = None) -> str:
    """Sign claims the way NATS does: ed25519-nkey over header.payload."""
    at_s = _now_s() if issued_at_s is None else issued_at_s
    full = {**claims, "iss": nkeys.public_key(issuer_seed), "iat": at_s}
    full.pop("jti", None)
    digest = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).digest()
    full["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    header = _b64(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    body = f"{header}.{_b64(json.dumps(full, separators=(',', ':')).encode())}"
    return f"{body}.{_b64(nkeys.sign(issuer_seed, body.encode()))}"


def claims_of(jwt: str) -> dict[str, object]:
    """The claims of a JWT, *unverified*; raises Untrusted when it is no JWT at all."""
    try:
        payload = jwt.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError) as error:
        raise Untrusted("not a JWT") from error
    if not isinstance(claims, dict) or not isinstance(claims.get("name"), str):
        raise Untrusted("not a NATS JWT: no name among its claims")
    return claims


def _site_template() -> dict[str, object]:
    """Rights of a site; the server puts the user's name and tags for what is in double braces.

    A site may make and delete consumers of the buckets that it may read. Consumer names are random
    and cannot be listed by a site, so it can neither find nor disturb another's.
    """
    site = "{{name()}}"
    own = "{{tag(bucket)}}"
    publish = [
        f"digest.{site}",
        f"usage.{site}",
        f"evidence.{site}",
        f"health.{site}",
        f"queued.{site}",
        f"limits.{site}",
        f"$KV.{own}.replica.>",
        "{{tag(inbox)}}.>",
    ]
    for stream in ("KV_view", "{{tag(stream)}}"):
        publish += [
            f"$JS.API.CONSUMER.CREATE.{stream}.>",
            f"$JS.API.CONSUMER.DELETE.{stream}.*",
            f"$JS.FC.{stream}.>",
        ]
    return {
        "pub": {"allow": publish},
        "sub": {"allow": ["digest.*", f"queued.{site}", "{{tag(inbox)}}.>"]},
        "subs": _UNLIMITED,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
    }


def _account_claims(
    name: str, seed: str, *, storage: bool, scoped: str | None
) -> dict[str, object]:
    room = _UNLIMITED if storage else 0
    limits: dict[str, object] = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED
    )
    limits["wildcards"] = True
    limits.update(dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), room))
    nats: dict[str, object] = {"type": "account", "version": 2, "limits": limits}
    if scoped is not None:
        scope = {"kind": "user_scope", "key": nkeys.public_key(scoped), "role": "site"}
        nats["signing_keys"] = [{**scope, "template": _site_template()}]
    return {"name": name, "sub": nkeys.public_key(seed), "nats": nats}


def current_account_jwt(secrets: NatsSecrets, held: str | None = None) -> str:
    """The JWT of our account with the rights of sites as they are in this release: signed anew
    where it was made by another one. `held` is the one that a server kept, with what was revoked.
    """
    present = secrets.account_jwt if held is None else held
    nats = _nats_claims(present)
    account = _account_claims(
        "ISOCHRONE", secrets.account_seed, storage=True, scoped=secrets.site_signing_seed
    )
    wanted = account["nats"]
    assert isinstance(wanted, dict)
    if revocations := nats.get("revocations"):
        wanted["revocations"] = revocations
    if nats == wanted:
        return present
    return _jwt(secrets.operator_seed, account, _after(present))


def revoking(
    secrets: NatsSecrets, present: str, logins: Iterable[RevokedLogin], *, spared: str
) -> str | None:
    """The account's JWT `present` with these logins revoked as well; None where they all are.

    `spared` is the user key of control: no site can have it revoked by stating it as its own.
    Raises Untrusted when `present` is none of our account.
    """
    claims, nats = claims_of(present), _nats_claims(present)
    if claims.get("sub") != secrets.account:
        raise Untrusted("not the JWT of this cloud's account")
    held = nats.get("revocations")
    revoked: dict[str, int] = dict(held) if isinstance(held, dict) else {}
    until_s = {
        login.user_key: login.revoked_at // _NS_PER_S
        for login in logins if login.user_key != spared and _is_user(login)
    }
    lacking = {key: at_s for key, at_s in until_s.items() if revoked.get(key, 0) < at_s}
    if not lacking:
        return None
    full = {**claims, "nats": {**nats, "revocations": {**revoked, **lacking}}}
    return _jwt(secrets.operator_seed, full, _after(present))


def _is_user(login: RevokedLogin) -> bool:
    """Whether anybody could log in with it; a server refuses the whole JWT for one that is none."""
    try:
        nkeys.check_public("user", login.user_key)
    except Untrusted:
        return False
    return True


def _after(present: str) -> int:
    """When to date a JWT that a server is to take for newer than `present`, whatever clocks say."""
    issued_at_s = claims_of(present).get("iat")
    return max(_now_s(), issued_at_s + 1 if isinstance(issued_at_s, int) else 0)


def _nats_claims(jwt: str) -> dict[str, object]:
    nats = claims_of(jwt).get("nats")
    return nats if isinstance(nats, dict) else {}


def new_secrets() -> NatsSecrets:
    """Fresh keys for one cloud: operator, system account, our account, its scoped signing key."""
    operator, system = nkeys.new_seed("operator"), nkeys.new_seed("account")
    account, signing = nkeys.new_seed("account"), nkeys.new_seed("account")
    operator_claims = {
        "name": "isochrone",
        "sub": nkeys.public_key(operator),
        "nats": {"type": "operator", "version": 2, "system_account": nkeys.public_key(system)},
    }
    system_claims = _account_claims("SYS", system, storage=False, scoped=None)
    account_claims = _account_claims("ISOCHRONE", account, storage=True, scoped=signing)
    return NatsSecrets(
        operator_seed=operator,
        system_seed=system,
        account_seed=account,
        site_signing_seed=signing,
        operator_jwt=_jwt(operator, operator_claims),
        system_jwt=_jwt(operator, system_claims),
        account_jwt=_jwt(operator, account_claims),
    )


def new_user() -> tuple[str, str]:
    """A user's (public nkey, seed); only the public half ever leaves its owner."""
    seed = nkeys.new_seed("user")
    return nkeys.public_key(seed), seed


def site_user_jwt(
    secrets: NatsSecrets, site: str, user_public_nkey: str, *, issued_at: int | None = None,
    expires_at: int | None = None,
) -> str:
    """The JWT that lets the owner of `user_public_nkey` act as `site`; instants are in wall ns.

    Revoking goes by `issued_at`, which is now where it is not stated. Raises InvalidInput for a
    name that could reach beyond one subject token, Untrusted for a key that is not a user's.
    """
    if not SITE_NAME.fullmatch(site):
        raise InvalidInput([f"site name {site!r}: expected letters a-z, digits and hyphens"])
    nkeys.check_public("user", user_public_nkey)
    bucket = f"site_{site}"
    tags = [f"bucket:{bucket}", f"stream:KV_{bucket}", f"inbox:{inbox_prefix(site)}"]
    claims: dict[str, object] = {
        "name": site,
        "sub": user_public_nkey,
        "nats": {"type": "user", "version": 2, "issuer_account": secrets.account, "tags": tags},
    }
    if expires_at is not None:
        claims["exp"] = expires_at // _NS_PER_S
    issued_at_s = None if issued_at is None else issued_at // _NS_PER_S
    return _jwt(secrets.site_signing_seed, claims, issued_at_s)


def control_user(secrets: NatsSecrets) -> Credentials:
    """A new user with every right inside the account, for control alone."""
    public, seed = new_user()
    limits = dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)
    claims = {
        "name": CONTROL_USER,
        "sub": public,
        "nats": {"type": "user", "version": 2, "pub": {}, "sub": {}, **limits},
    }
    return Credentials(jwt=_jwt(secrets.account_seed, claims), seed=seed)


def revoking_user(secrets: NatsSecrets) -> Credentials:
    """A new user of the system's account, who may read and renew the JWT of ours and nothing else.
    """
    public, seed = new_user()
    inbox = f"{inbox_prefix(REVOKING_USER)}.>"
    asked = [
        account_info(secrets.account), account_kept(secrets.account),
        account_update(secrets.account),
    ]
    limits = dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)
    nats = {
        "type": "user", "version": 2, "pub": {"allow": [*asked, inbox]},
        "sub": {"allow": [inbox]}, **limits,
    }
    claims = {"name": REVOKING_USER, "sub": public, "nats": nats}
    return Credentials(jwt=_jwt(secrets.system_seed, claims), seed=seed)


def account_info(account: str) -> str:
    """The subject at which a server tells the JWT of an account that is in force there; one that
    has no client of the account does not know it."""
    return f"$SYS.REQ.ACCOUNT.{account}.INFO"


def account_kept(account: str) -> str:
    """The subject at which a server tells the JWT of an account that it keeps on its disk."""
    return f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP"


def account_update(account: str) -> str:
    """The subject at which every server takes a newer JWT of an account."""
    return f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.UPDATE"


def load_credentials(path: Path) -> Credentials:
    """Read a credentials file (JSON with jwt and seed). Raises InvalidInput."""
    return _load(path, Credentials)


def load_secrets(path: Path) -> NatsSecrets:
    """Read secrets/nats.json. Raises InvalidInput."""
    return _load(path, NatsSecrets)


def _load(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidInput([f"{path}: not readable as {kind.__name__}: {error}"]) from error
