"""A bounded load of small chat requests from threads, and what became of each."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from isochrone.wiring.control_api import connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One request: its own id, the gateway's id once a head came, and how it ended.

    `status` 0: no answer at all. `sent` is False when the connection was refused. `whole` is True
    for an answer that came to its end. `reason` is why the gateway refused."""

    own_id: str
    site: str
    request_id: str | None
    status: int
    served_at: str | None
    whole: bool
    sent: bool
    reason: str | None


class Load:
    """`threads` clients ask the given endpoints in turn until `stop`, at most `most` requests."""

    def __init__(
        self, endpoints: Sequence[tuple[str, str]], key: str, *, name: str, threads: int = 4,
        most: int = 5000, max_tokens: int = 24,
    ) -> None:
        self.results: list[Result] = []
        self._endpoints = list(endpoints)
        self._key = key
        self._name = name
        self._max_tokens = max_tokens
        self._numbers = itertools.count()
        self._most = most
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]

    def start(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> list[Result]:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)
            assert not thread.is_alive(), "a client hangs"
        return self.results

    def _work(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            if number >= self._most:
                return
            site, endpoint = self._endpoints[number % len(self._endpoints)]
            result = self._ask(f"{self._name}-{number}", site, endpoint)
            self.results.append(result)
            if not result.whole:
                time.sleep(0.05)  # a site that is down would be asked thousands of times

    def _ask(self, own_id: str, site: str, endpoint: str) -> Result:
        link, prefix = connection(endpoint, timeout_s=60.0)
        request_id: str | None = None
        served_at: str | None = None
        reason: str | None = None
        status, whole, sent = 0, False, False
        body = {
            "model": "tiny-fable", "max_tokens": self._max_tokens, "temperature": 0,
            "stream": True, "messages": [{"role": "user", "content": f"Hello {own_id}!"}],
        }
        try:
            link.connect()
            sent = True
            link.request(
                "POST", prefix + "/chat/completions", json.dumps(body),
                {
                    "authorization": f"Bearer {self._key}", "content-type": "application/json",
                    "x-request-id": own_id,
                },
            )
            answer = link.getresponse()
            status = answer.status
            request_id = answer.getheader("x-isochrone-request")
            served_at = answer.getheader("x-isochrone-site")
            reason = answer.getheader("x-isochrone-reason")
            text = answer.read()
            whole = status != 200 or b"data: [DONE]" in text
        except (OSError, http.client.HTTPException):
            whole = False
        finally:
            link.close()
        return Result(
            own_id=own_id, site=site, request_id=request_id, status=status, served_at=served_at,
            whole=whole, sent=sent, reason=reason,
        )
