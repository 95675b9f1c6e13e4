"""Keeps one NATS connection alive for ever: connects, notices loss, backs off, connects again.

Every loss takes the same path, also those that make the client library give up (an expired JWT, a
refused login): the client object is thrown away and a fresh one subscribes again. Nothing is
buffered meanwhile. A silent (half-open) connection is found by a round trip every two seconds.
"""

import asyncio
import base64
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from random import Random

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from isochrone.adapters.nats import nkeys
from isochrone.adapters.nats.identity import Credentials, inbox_prefix
from isochrone.core.errors import BusUnavailable, MessageTooLarge, Untrusted

_CONNECT_S = 5.0
_PING_EVERY_S = 2.0
_PING_WITHIN_S = 3.0
_CLOSE_S = 2.0
_STEADY_S = 2.0
_BACK_OFF_S = (0.05, 2.0)
_REFUSED = re.compile(r'permissions violation for \w+ to "([^"]+)"')

Handler = Callable[[Msg], Awaitable[None]]


class _TlsNoise(logging.Filter):
    """Drops what Python 3.11 logs at the end of healthy TLS connections."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += repr(record.exc_info[1])
        return not (
            "eof_received() has no effect" in text or "APPLICATION_DATA_AFTER_CLOSE_NOTIFY" in text
        )


_TLS_NOISE = _TlsNoise()


class Wait:
    """One bounded wait: `sent` tells that the loss of the connection should end it at once."""

    def __init__(self, limit: asyncio.Timeout, subject: str) -> None:
        self._limit = limit
        self.subject = subject.lower()  # the client library reports refusals in lower case
        self.sent = False
        self.reason = ""

    def fail(self, reason: str) -> None:
        if not self._limit.expired():
            self.reason = reason
            self._limit.reschedule(0)


async def end(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait for it; again where `wait_for` swallowed the cancellation (3.11)."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)


class Interest:
    """One subject that is subscribed on every connection until it is closed."""

    def __init__(self, connection: "Connection", subject: str, handler: Handler) -> None:
        self._connection = connection
        self.subject = subject
        self.handler = handler
        self.active: Subscription | None = None

    async def close(self) -> None:
        await self._connection.forget(self)


class Connection:
    """One login at one of `urls`, tried in turn; starts with `open`, ends with `close`.

    `refused` counts publishes and subscriptions that the server did not allow.
    """

    def __init__(
        self, urls: Sequence[str], credentials: Credentials, *, name: str, rng: Random
    ) -> None:
        self._urls = tuple(urls)
        self._credentials = credentials
        self._inbox = inbox_prefix(credentials.user)
        self._name = name
        self._rng = rng
        self._log = structlog.get_logger().bind(nats_user=credentials.user, nats_name=name)
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._answers_at = self.new_inbox()
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._interests = [Interest(self, f"{self._answers_at}.*", self._answer)]
        self._waits: list[Wait] = []
        self._last_error = "no server has answered yet"
        self._told = ""
        self._task: asyncio.Task[None] | None = None
        self.refused = 0

    @property
    def client(self) -> Client | None:
        """The live client, or None while there is no connection."""
        client = self._client
        return client if client is not None and client.is_connected else None

    async def open(self, *, wait_s: float) -> None:
        """Start connecting; return once connected or after `wait_s`, whichever is first."""
        logging.getLogger("asyncio").addFilter(_TLS_NOISE)
        self._task = asyncio.create_task(self._run(), name=f"nats {self._name}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._up.wait(), wait_s)

    async def close(self) -> None:
        """Stop for good; waits in progress raise BusUnavailable."""
        if self._task is not None:
            await end(self._task)
            self._task = None

    def new_inbox(self) -> str:
        """A fresh reply subject that only this user may subscribe to."""
        return f"{self._inbox}.{self._rng.getrandbits(96):024x}"

    async def live(self) -> Client:
        """Wait, without a deadline of its own, for a connection."""
        while True:
            await self._up.wait()
            client = self.client
            if client is not None:
                return client
            await self._down.wait()

    async def lost(self) -> str:
        """Return when the present connection is gone, with the reason."""
        await self._down.wait()
        return "the connection was lost"

    @contextlib.asynccontextmanager
    async def deadline(self, timeout_s: float, subject: str) -> AsyncIterator[Wait]:
        """Bound what is done inside. Raises BusUnavailable: late, lost, refused, nobody listens."""
        wait: Wait | None = None
        try:
            async with asyncio.timeout(timeout_s) as limit:
                wait = Wait(limit, subject)
                self._waits.append(wait)
                yield wait
        except TimeoutError as error:
            reason = wait.reason if wait is not None else ""
            if not reason and self.client is None:
                reason = f"NATS is not connected: {self._last_error}"
            raise BusUnavailable(
                f"{subject}: {reason or f'no answer within {timeout_s:.1f} s'}"
            ) from error
        except nats.errors.NoRespondersError as error:
            raise BusUnavailable(f"{subject}: no stream or service takes it") from error
        except nats.errors.MaxPayloadError as error:
            raise MessageTooLarge(f"{subject}: {error}") from error
        except nats.errors.Error as error:
            raise BusUnavailable(f"{subject}: {error}") from error
        finally:
            if wait is not None:
                self._waits.remove(wait)

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout_s: float,
        headers: dict[str, str] | None = None,
    ) -> Msg:
        """One request and its answer. Raises BusUnavailable."""
        async with self.deadline(timeout_s, subject) as wait:
            client = await self.live()
            wait.sent = True
            answer = await self._exchange(client, subject, payload, headers)
            if (answer.headers or {}).get("Status") == "503":
                raise nats.errors.NoRespondersError
            return answer

    async def _exchange(
        self, client: Client, subject: str | None, payload: bytes, headers: dict[str, str] | None
    ) -> Msg:
        """Publish with a reply subject of our own and wait for what arrives there.

        Without a subject the message goes to the reply subject itself: its return proves that the
        server has processed all that was sent before. (The library's `request` and `flush` are not
        used because a cancellation may get lost in them.)
        """
        token = f"{self._rng.getrandbits(64):016x}"
        reply = f"{self._answers_at}.{token}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._answers[token] = answer
        try:
            await client.publish(
                subject or reply, payload, reply=reply if subject else "", headers=headers
            )
            return await answer
        finally:
            del self._answers[token]

    async def _answer(self, message: Msg) -> None:
        waiting = self._answers.get(message.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    async def add(self, subject: str, handler: Handler) -> Interest:
        """Subscribe now if connected, and again after every reconnect."""
        interest = Interest(self, subject, handler)
        self._interests.append(interest)
        client = self.client
        if client is not None:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(_PING_WITHIN_S):
                    interest.active = await client.subscribe(subject, cb=handler)
                    await self._exchange(client, None, b"", None)
        return interest

    async def forget(self, interest: Interest) -> None:
        """Subscribe no more."""
        if interest in self._interests:
            self._interests.remove(interest)
        active, interest.active = interest.active, None
        if active is not None and self.client is not None:
            with contextlib.suppress(nats.errors.Error):
                await active.unsubscribe()

    async def _run(self) -> None:
        attempts = failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            await self._session(self._urls[attempts % len(self._urls)])
            attempts += 1
            failures = 0 if loop.time() - started > _STEADY_S else failures + 1
            shortest, longest = _BACK_OFF_S
            pause_s = min(shortest * 2 ** min(failures, 10), longest)
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))

    async def _session(self, url: str) -> None:
        """Log in at `url` and hold the connection until it is lost."""
        client, closed = Client(), asyncio.Event()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._login(client, url, closed)
                await self._subscribe_all(client)
            self._told = ""
            self._log.info("nats_connected", url=url)
            self._client = client
            self._down.clear()
            self._up.set()
            await self._until_lost(client, closed)
            self._log.warning("nats_lost", url=url, reason=self._last_error)
        except (OSError, nats.errors.Error, TimeoutError, ValueError, Untrusted) as error:
            # ValueError: what answers is no NATS server. Untrusted: our own seed is none.
            self._note(error)
            if self._last_error != self._told:  # once a cause, not once an attempt
                self._told = self._last_error
                self._log.warning("nats_unreachable", url=url, reason=self._last_error)
        finally:
            self._client = None
            self._up.clear()
            self._down.set()
            for wait in self._waits:
                if wait.sent:
                    wait.fail("the connection was lost before the answer")
            with contextlib.suppress(OSError, nats.errors.Error, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await client.close()

    async def _subscribe_all(self, client: Client) -> None:
        """Return once the server knows every interest, also those that came meanwhile."""
        known: set[Interest] = set()
        while missing := [each for each in self._interests if each not in known]:
            for interest in missing:
                interest.active = await client.subscribe(interest.subject, cb=interest.handler)
            known.update(missing)
            await self._exchange(client, None, b"", None)

    async def _login(self, client: Client, url: str, closed: asyncio.Event) -> None:
        async def on_closed() -> None:
            closed.set()

        def sign(nonce: str) -> bytes:
            return base64.b64encode(nkeys.sign(self._credentials.seed, nonce.encode()))

        await client.connect(
            [url],
            name=self._name,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=4,
            flush_timeout=2.0,
            error_cb=self._on_error,
            closed_cb=on_closed,
            inbox_prefix=self._inbox,
            user_jwt_cb=lambda: bytearray(self._credentials.jwt.encode()),
            signature_cb=sign,
        )

    async def _until_lost(self, client: Client, closed: asyncio.Event) -> None:
        """Return when the client closed itself or did not answer a ping."""
        while not closed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), _PING_EVERY_S)
                return
            async with asyncio.timeout(_PING_WITHIN_S):
                await self._exchange(client, None, b"", None)

    async def _on_error(self, error: Exception) -> None:
        refused = _REFUSED.search(str(error))
        if refused is None:
            self._note(error)
            return
        self.refused += 1
        self._log.warning("nats_refused", subject=refused[1], total=self.refused)
        for wait in self._waits:
            if wait.subject == refused[1]:
                wait.fail("NATS does not let this user publish or subscribe there")

    def _note(self, error: BaseException) -> None:
        if isinstance(error, nats.errors.NoServersError):
            return  # the cause of it was reported before
        self._last_error = str(error) or type(error).__name__
