"""Streams that lose their engine or their serving site in the middle, against undisturbed answers.

Three sites: Madrid has no engines and takes the clients, Lisbon is near and serves, Ashburn is far
and may go on. Lisbon's processes belong to the test, so that what is killed stays dead.
"""

import asyncio
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

from isochrone.adapters.engines.llamacpp import LlamaCppDriver
from isochrone.adapters.packaged import bundled_model
from isochrone.core.errors import Unavailable
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.model import EngineSpec
from isochrone.ports.engine import EngineStart
from tests.fixtures.recorded_answers import Received
from tests.rig.cloud import Cloud, ask
from tests.rig.own_site import OwnSite
from tests.rig.streams import Ask, Client, Stream, answers, until
from tests.rig.waiting import gone, wait_until

MODEL = "tiny-fable"
GGUF = "tiny-fable-q8_0.gguf"
CONTEXT_TOKENS = 512
INGRESS, SERVING, OTHER = "madrid", "lisbon", "ashburn"
FAR_RTT_MS = 2_500.0  # so that the near site serves as long as it lives, whatever it measured
MOST_SLOTS = 256         # that llama.cpp takes
UNDISTURBED_SLOTS = 16
START_S = 60.0
BOOKED_S = 90.0
LEAST_TEXTS = 5  # a stream has received before the kill
RUN_S, HALT_S = 0.01, 0.03  # of engines whose streams have to be in their middle together
FAR_TEXTS, LONGEST_HALT_S = 10, 1.0  # as many texts as this more, and they stand twice as long
EASED = 10       # requests in a row that say that a site has all its work again
SPARE = 8.0      # more prompts than streams: some answers end early, and most nearly tie somewhere
STOP_EVERY, SILENT_EVERY, PLAIN_EVERY = 10, 7, 9

WHO = (
    "dragon", "fox", "bear", "lost dog", "queen", "miller", "sailor", "witch", "mouse", "giant",
    "robin", "shepherd", "clock maker", "ghost", "little train", "old king", "hedgehog", "whale",
    "brave girl", "tired wizard",
)
WHAT = (
    "a key", "the sea", "a lamp", "the moon", "a red boat", "a secret door", "an apple tree",
    "the winter", "a song", "a bridge", "a mirror", "seven stones", "the rain", "a feather",
    "a golden cup",
)

WORLD = """
emulate_distance = true

[[model]]
name = "{model}"
kind = "chat"
file = "bundled:{file}"
context = {context}

[[site]]
name = "madrid"
country = "ES"
latitude = 40.42
longitude = -3.70

[[site]]
name = "lisbon"
country = "PT"
latitude = 38.72
longitude = -9.14
elsewhere = true
{serving}

[[site]]
name = "ashburn"
country = "US"
latitude = 39.04
longitude = -77.49
{other}

[[link]]
between = ["madrid", "lisbon"]
rtt_ms = 8.0

[[link]]
between = ["madrid", "ashburn"]
rtt_ms = {far_rtt_ms}

[[link]]
between = ["lisbon", "ashburn"]
rtt_ms = {far_rtt_ms}
"""

ENGINES = """
  [[site.hardware]]
  kind = "cpu"
  [[site.deployment]]
  model = "{model}"
  engine = "llamacpp"
  replicas = {replicas}
  slots = {slots}
  threads = {threads}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request and the answer that an undisturbed engine gives to it."""

    ask: Ask
    undisturbed: Received

    @property
    def usage(self) -> dict[str, Any]:
        return self.undisturbed.usages[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """The three sites, running. `free` is a key for every site, `bound` one for Portugal only."""

    cloud: Cloud
    serving: OwnSite
    free: str
    bound: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A stream, what it should say, and whether its key lets another site go on with it."""

    case: Case
    stream: Stream
    bound: bool = False

    @property
    def own_id(self) -> str:
        return self.stream.ask.own_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All streams of one kill, ended. Instants are monotonic seconds."""

    sent: Sequence[Sent]
    began_at: float
    killed_at: float
    ended_at: float

    def at(self, site: str) -> list[Sent]:
        """Streams that a site served first."""
        return [
            each for each in self.sent if each.stream.headers.get("x-isochrone-site") == site
        ]

    @property
    def free(self) -> list[Sent]:
        return [each for each in self.sent if not each.bound]

    @property
    def bound(self) -> list[Sent]:
        return [each for each in self.sent if each.bound]


@contextmanager
def a_rig(folder: Path, *, streams: int) -> Iterator[Rig]:
    """Engines of Lisbon and Ashburn have a slot for every stream, and for those that are bound."""
    slots = min(2 * streams, MOST_SLOTS)
    world = folder / "world.toml"
    world.write_text(WORLD.format(
        model=MODEL, file=GGUF, context=CONTEXT_TOKENS, far_rtt_ms=FAR_RTT_MS,
        serving=ENGINES.format(model=MODEL, replicas=2, slots=slots, threads=1),
        other=ENGINES.format(model=MODEL, replicas=1, slots=slots, threads=2),
    ))
    cloud = Cloud(folder / "state", "--sites", world)
    serving: OwnSite | None = None
    try:
        cloud.start()
        serving = OwnSite(cloud, SERVING, folder / SERVING).start(replicas=2)
        bound = cloud.api.post(
            "keys", {"name": "bound", "residency": ["PT"], "transit": ["any"]},
            idempotency_key="bound",
        )["key"]
        rig = Rig(cloud=cloud, serving=serving, free=cloud.up["api_key"], bound=bound)
        wait_until_served(rig)
        yield rig
    finally:
        if serving is not None:
            serving.stop()
        cloud.stop()


def wait_until_served(rig: Rig) -> None:
    """Return once Madrid sends both keys to Lisbon, and Lisbon takes both itself: as good as all of
    them, for one that was away gets its work back step by step."""
    keys = (rig.free, rig.bound)
    wait_until(
        lambda: all(_served(rig, key) for _ in range(EASED) for key in keys),
        "Lisbon serves, and Madrid trusts it",
    )


def _served(rig: Rig, key: str) -> bool:
    """Whether both gateways have a request of the key served by Lisbon. Lisbon is asked first:
    Madrid would hold a site that is not there yet out for longer with each try, and be answered by
    the far one meanwhile."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    for endpoint in (rig.serving.endpoint, rig.cloud.endpoint(INGRESS)):
        try:
            reply = ask(endpoint, "/chat/completions", key, body)
        except OSError:
            return False
        if (reply.status, reply.headers["x-isochrone-site"]) != (200, SERVING):
            return False
    return True


# -- what an undisturbed engine says ---------------------------------------------------------------


async def undisturbed(count: int, *, max_tokens: int, logs: Path) -> list[Case]:
    """`count` cases with long answers, by an engine of this function's own: of those that it has,
    the ones in which no token was nearly another one, for those fall either way."""
    prompts = [f"Tell me a story about a {who} and {what}." for what, who in product(WHAT, WHO)]
    asks = [_ask(i, prompts[i], max_tokens) for i in range(min(int(count * SPARE) + 4, 300))]
    spec = EngineSpec(
        kind="llamacpp", source=str(bundled_model(GGUF)), slots=UNDISTURBED_SLOTS, threads=1
    )
    start = EngineStart(
        replica=ReplicaId("undisturbed/tiny/0"), site=SiteName("undisturbed"),
        model=ModelName(MODEL), generation=1, spec=spec, context_tokens=CONTEXT_TOKENS,
    )
    engine = await LlamaCppDriver(logs).start(start, deadline_s=START_S)
    try:
        margins = await _margins(
            asks, 0.75 * max_tokens, engine.base_url, engine.key or ""
        )
        assert len(margins) >= count, "too few answers are long enough"
        clear = sorted(margins, key=lambda i: -margins[i])[:count]
        long = await _cases(
            [asks[i] for i in sorted(clear)], engine.base_url, engine.key or ""
        )
        stopped = await _cases(
            [_stopping(case) for case in long[::STOP_EVERY]], engine.base_url, engine.key or ""
        )
        return [stopped[i // STOP_EVERY] if i % STOP_EVERY == 0 else case
                for i, case in enumerate(long)]
    finally:
        await engine.stop(deadline_s=5)


def _ask(number: int, prompt: str, max_tokens: int) -> Ask:
    body: dict[str, Any] = {
        "model": MODEL, "stream": True, "temperature": 0, "max_tokens": max_tokens,
        "stream_options": {"include_usage": True},
    }
    if number % PLAIN_EVERY == 0:
        return Ask(own_id="undisturbed", path="/completions", body={**body, "prompt": prompt})
    messages = [{"role": "user", "content": prompt}]
    return Ask(
        own_id="undisturbed", path="/chat/completions", body={**body, "messages": messages}
    )


def _stopping(case: Case) -> Ask:
    """The request with a stop string that comes late in its answer."""
    stop = _late_words(case.undisturbed.text)
    return case.ask if stop is None else replace(case.ask, body={**case.ask.body, "stop": [stop]})


def _late_words(text: str) -> str | None:
    """Two words behind three quarters of a text that do not stand together before."""
    words = text.split(" ")
    for at in range(3 * len(words) // 4, len(words) - 2):
        pair = " ".join(words[at : at + 2])
        if pair.isascii() and text.find(pair) >= 0.7 * len(text):
            return pair
    return None


async def _margins(
    asks: Sequence[Ask], least_tokens: float, base: str, key: str
) -> dict[int, float]:
    """By the index of each request whose answer is long enough: by how much, in nats, the first of
    two tokens was likelier, where that was least."""
    wanting = [
        replace(each, body={**each.body, **(
            {"logprobs": 2} if "prompt" in each.body else {"logprobs": True, "top_logprobs": 2}
        )})
        for each in asks
    ]
    found = {}
    for i, stream in enumerate(await answers(wanting, base, key, at_once=UNDISTURBED_SLOTS)):
        if stream.received().usages[0]["completion_tokens"] >= least_tokens:
            found[i] = _margin(stream)
    return found


def _margin(stream: Stream) -> float:
    least = float("inf")
    for event in stream.events:
        if event == b"data: [DONE]":
            continue
        for choice in json.loads(event[6:]).get("choices") or ():
            for token in (choice.get("logprobs") or {}).get("content") or ():
                first, *others = sorted(-each["logprob"] for each in token["top_logprobs"])
                least = min([least, *(other - first for other in others)])
    return least


async def _cases(asks: Sequence[Ask], base: str, key: str) -> list[Case]:
    streams = await answers(asks, base, key, at_once=UNDISTURBED_SLOTS)
    return [
        Case(ask=stream.ask, undisturbed=stream.received()) for stream in streams
    ]


# -- a kill ----------------------------------------------------------------------------------------


async def kill_in_the_middle(
    rig: Rig, name: str, cases: Sequence[Case], *, bound: int, entries: Sequence[str],
    kill: Callable[[], object],
) -> Round:
    """Open all streams at the entries in turn, the last ones `bound`, and kill once each has its
    first texts. Clients call them by `name` and their number."""
    await _open_connections(rig, len(cases), entries)
    client, sent = Client(), []
    for i, case in enumerate(cases):
        is_bound = i >= len(cases) - bound
        key = rig.bound if is_bound else rig.free
        sending = replace(case.ask, own_id=f"{name}-{i}")
        if i % SILENT_EVERY == 0:
            body = {name: each for name, each in sending.body.items() if name != "stream_options"}
            sending = replace(sending, body=body)
        stream = client.add(sending, entries[i % len(entries)], key)
        sent.append(Sent(case=case, stream=stream, bound=is_bound))
    began_at = time.monotonic()
    async with slowed(
        rig.serving.engines().values(), lambda: max(one.texts for one in client.streams)
    ):
        await client.begin()
        await until(
            lambda: all(one.ended or one.texts >= LEAST_TEXTS for one in client.streams),
            "every stream has begun",
        )
        for stream in client.streams:
            if stream.open:
                stream.texts_at_kill = stream.texts
        killed_at, second = time.monotonic(), int(time.time())
        kill()
    for stream in client.streams:
        # llama.cpp dates each event: what was on its way until then may have these seconds.
        stream.created_at_kill = {*stream.created, *range(second, int(time.time()) + 1)}
    await client.finish()
    return Round(
        sent=sent, began_at=began_at, killed_at=killed_at, ended_at=time.monotonic()
    )


@asynccontextmanager
async def slowed(engines: Iterable[int], texts: Callable[[], int]) -> AsyncIterator[None]:
    """Processes that run a quarter of the time, and less the more texts their longest stream has:
    they leave the gateways and the client the cores, and no stream has ended before the last one
    begins, however busy the machine is."""
    pids = list(engines)

    def halt_s() -> float:
        return min(HALT_S * math.exp2(texts() / FAR_TEXTS), LONGEST_HALT_S)

    async def halt_and_go() -> None:
        for sent in cycle((signal.SIGSTOP, signal.SIGCONT)):
            for pid in pids:
                if not gone(pid):
                    os.kill(pid, sent)
            await asyncio.sleep(halt_s() if sent is signal.SIGSTOP else RUN_S)

    halting = asyncio.create_task(halt_and_go())
    try:
        yield
    finally:
        halting.cancel()
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGCONT)


async def _open_connections(rig: Rig, count: int, entries: Sequence[str]) -> None:
    """As many short answers at once, so that the gateways have idle connections for the streams,
    and the first streams have not ended before the last ones begin."""
    body = {"model": MODEL, "stream": True, "prompt": "Once", "max_tokens": 2}
    ask = Ask(own_id="before", path="/completions", body=body)
    client = Client()
    for i in range(count):
        client.add(ask, entries[i % len(entries)], rig.free)
    await client.begin()
    await client.finish()


def faults(sent: Sent, *, moved: bool) -> list[str]:
    """What a client could complain of in a stream, other than a text that fell the other way.
    `moved`: everything behind the kill was written elsewhere."""
    stream, case = sent.stream, sent.case
    if not stream.error_free:
        return [f"status {stream.status}, {stream.lost}, ended with {stream.data[-300:]!r}"]
    got, found = stream.received(), []
    same_text = got.text == case.undisturbed.text
    if len(got.ids) != 1:
        found.append(f"ids {got.ids}")
    if moved and stream.texts_at_kill and not got.created <= stream.created_at_kill:
        found.append(f"created {got.created}, before the kill {stream.created_at_kill}")
    if got.roles != case.undisturbed.roles:
        found.append(f"{got.roles} role events")
    if got.done != 1 or set(got.finish) != {0}:
        found.append(f"{got.done} [DONE], finish reasons {got.finish}")
    if same_text and got.finish != case.undisturbed.finish:
        found.append(f"finish reason {got.finish}, expected {case.undisturbed.finish}")
    if len(got.usages) != stream.ask.wants_usage:
        found.append(f"{len(got.usages)} usage events")
    for usage in got.usages:
        if usage["prompt_tokens"] != case.usage["prompt_tokens"]:
            found.append(f"prompt {usage}, expected {case.usage}")
        if usage["completion_tokens"] > stream.ask.max_tokens:
            found.append(f"more than max_tokens: {usage}")
        if same_text and usage["completion_tokens"] != case.usage["completion_tokens"]:
            found.append(f"output {usage}, expected {case.usage}")
    if any(stop in got.text for stop in stream.ask.body.get("stop", ())):
        found.append("a stop string was passed on")
    return found


def tried_again(rig: Rig, sent: Sequence[Sent]) -> int:
    """How many of these streams the gateway of Lisbon sent to more than one replica."""
    ids, found = {each.own_id for each in sent}, 0
    for line in (rig.serving.folder / "gateway.log").read_text().split("\n")[:-1]:
        said = json.loads(line) if line.startswith("{") else {}
        found += said.get("client_request") in ids and said.get("attempts", 0) > 1
    return found


# -- the book --------------------------------------------------------------------------------------


def booked(cloud: Cloud, sent: Sequence[Sent]) -> dict[str, dict[str, Any]]:
    """The rows of these streams by the client's own id, once all are there; never two of one."""
    wanted = {each.own_id for each in sent}
    rows: dict[str, dict[str, Any]] = {}

    def complete() -> bool:
        try:
            found = [
                row for row in cloud.api.items("usage") if row["client_request_id"] in wanted
            ]
        except Unavailable:
            return False
        counts = Counter(row["client_request_id"] for row in found)
        assert all(count == 1 for count in counts.values()), "a request was counted twice"
        rows.update({row["client_request_id"]: row for row in found})
        return set(rows) == wanted

    wait_until(complete, "every stream is booked", deadline_s=BOOKED_S)
    return rows


def misbooked(sent: Sent, row: dict[str, Any]) -> list[str]:
    """Where the book differs from what the client of a finished stream saw."""
    got, found = sent.stream.received(), []
    seen = got.usages[0] if got.usages else sent.case.usage
    prompt = row["input_uncached"] + row["input_cached"]
    if row["id"] != sent.stream.headers["x-isochrone-request"]:
        found.append(f"booked under {row['id']}")
    if (row["outcome"], row["source"]) != ("finished", "engine"):
        found.append(f"booked as {row['outcome']}, counted by {row['source']}")
    if prompt != seen["prompt_tokens"]:
        found.append(f"booked prompt {prompt}, seen {seen}")
    if (got.usages or got.text == sent.case.undisturbed.text) and (
        row["output"] != seen["completion_tokens"]
    ):
        found.append(f"booked output {row['output']}, seen {seen}")
    return found
