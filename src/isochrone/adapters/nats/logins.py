"""The Logins port on NATS: revokes users in the JWT of our account, at the server that runs.

The server is asked which JWT is in force there, and told a newer one where that lets in what was
revoked: it cuts connections at once and, with a full resolver, keeps the JWT on its disk. Nothing
that is revoked there is taken back, and of the account nothing else is changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from isochrone.adapters.nats.connection import Connection
from isochrone.adapters.nats.identity import (
    Credentials,
    NatsSecrets,
    account_info,
    account_kept,
    account_update,
    claims_of,
    revoking,
    revoking_user,
)
from isochrone.core.errors import BusUnavailable, Untrusted
from isochrone.ports.logins import RevokedLogin

_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    description: str = ""


@dataclass(frozen=True, slots=True)
class _Account:
    """What we read of an account: `jwt` is the one in force."""

    jwt: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    data: _Account | None = None
    error: _Refusal | None = None


class NatsLogins:
    """Implements ports.logins.Logins; made by `open_logins`. `spared` is never revoked."""

    def __init__(self, connection: Connection, secrets: NatsSecrets, *, spared: str) -> None:
        self._connection = connection
        self._secrets = secrets
        self._spared = spared

    async def refuse(self, revoked: Sequence[RevokedLogin]) -> int:
        account = self._secrets.account
        before = await self._present(account)
        try:
            after = revoking(self._secrets, before, revoked, spared=self._spared)
        except Untrusted as error:
            raise BusUnavailable(f"the NATS account {account}: {error.message}") from error
        if after is None:
            return 0
        told = await self._ask(account_update(account), after.encode())
        if told.error is not None:
            raise BusUnavailable(f"NATS refuses to revoke: {told.error.description}")
        return len(_revocations(after).items() - _revocations(before).items())

    async def close(self) -> None:
        await self._connection.close()

    async def _present(self, account: str) -> str:
        told = await self._ask(account_info(account), b"")
        if told.data is not None and told.data.jwt:
            return told.data.jwt
        # This server of a cluster has no client of the account.
        kept = await self._connection.request(account_kept(account), b"", timeout_s=_ANSWER_S)
        return kept.data.decode(errors="replace")

    async def _ask(self, subject: str, payload: bytes) -> _Answer:
        message = await self._connection.request(subject, payload, timeout_s=_ANSWER_S)
        try:
            return msgspec.json.decode(message.data, type=_Answer)
        except msgspec.MsgspecError as error:
            raise BusUnavailable(f"{subject}: not an answer of NATS: {error}") from error


def _revocations(jwt: str) -> dict[str, int]:
    nats = claims_of(jwt).get("nats")
    found = nats.get("revocations") if isinstance(nats, dict) else None
    return found if isinstance(found, dict) else {}


async def open_logins(
    urls: Sequence[str], secrets: NatsSecrets, own: Credentials, *, rng: Random, wait_s: float
) -> NatsLogins:
    """Log in as a user of the system's account, in the background if that takes more than `wait_s`.
    `own` is the login of control itself, which is never revoked."""
    connection = Connection(urls, revoking_user(secrets), name="revoking", rng=rng)
    await connection.open(wait_s=wait_s)
    return NatsLogins(connection, secrets, spared=own.user_key)
