"""A bounded load of small chat requests from threads, and what became of each."""

import http.client
import itertools
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isochrone.wiring.control_api import connection

_TEXT = re.compile(rb'"content": ?"[^"]')
_COUNTED = re.compile(rb'"completion_tokens": ?(\d+)')
_CODE = re.compile(rb'"code": ?"([^"]+)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One request: its own id, the gateway's id once a head came, and how it ended.

    `status` 0: no answer at all. `sent` is False when the connection was refused. `whole` is True
    for an answer that came to its end. `reason` is why the gateway refused, `code` that of its
    error body. `tokens` are those that came: by the usage at the end, or events with text before
    it. `told_error`: the stream ended with an error event. Instants are monotonic seconds."""

    own_id: str
    site: str
    request_id: str | None
    status: int
    served_at: str | None
    whole: bool
    sent: bool
    reason: str | None
    began_s: float
    ended_s: float
    country: str | None = None
    code: str | None = None
    tokens: int = 0
    told_error: bool = False


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
        headers: Mapping[str, str] = {}
        status, whole, sent, text, began_s = 0, False, False, b"", time.monotonic()
        body = {
            "model": "tiny-fable", "max_tokens": self._max_tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": f"Hello {own_id}!"}],
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
            headers = {name.lower(): value for name, value in answer.getheaders()}
            for piece in iter(lambda: answer.read1(), b""):
                text += piece
            whole = status != 200 or b"data: [DONE]" in text
        except (OSError, http.client.HTTPException):
            whole = False
        finally:
            link.close()
        code = _CODE.search(text) if status >= 400 else None
        return Result(
            own_id=own_id, site=site, request_id=headers.get("x-isochrone-request"), status=status,
            served_at=headers.get("x-isochrone-site"), whole=whole, sent=sent,
            reason=headers.get("x-isochrone-reason"), began_s=began_s, ended_s=time.monotonic(),
            country=headers.get("x-isochrone-country"),
            code=None if code is None else code[1].decode(), tokens=_tokens(text),
            told_error=b'data: {"error"' in text,
        )


def _tokens(text: bytes) -> int:
    counted = _COUNTED.search(text)
    return len(_TEXT.findall(text)) if counted is None else int(counted[1])
