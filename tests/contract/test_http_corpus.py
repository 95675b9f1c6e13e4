"""Every case of the corpus, however it is cut into packets and whatever came before it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random

from tests.fixtures.gateways import (
    DEADLINE_S,
    Answer,
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    get,
    post,
    until,
)
from tests.fixtures.http_corpus import MOST_BODY_BYTES, Case, cases, marked_body
from tests.fixtures.loops import RunOnLoop

MARKER, FIRST = "marker", "first"
MOST_BYTE_BY_BYTE = 700

Trial = Callable[[RunningSite, Case], Awaitable[None]]
Send = Callable[[Client, bytes], Awaitable[None]]


async def at_once(client: Client, data: bytes) -> None:
    client.send(data)


async def byte_by_byte(client: Client, data: bytes) -> None:
    for byte in data:
        client.send(bytes([byte]))
        await asyncio.sleep(0)


def cut(seed: int) -> Send:
    """Sends in a few pieces."""
    random = Random(seed)

    async def send(client: Client, data: bytes) -> None:
        marks = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 8)))
        for begin, end in zip([0, *marks], [*marks, len(data)], strict=True):
            client.send(data[begin:end])
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    return send


async def read(client: Client, *, bodiless: bool) -> Answer:
    """One answer; of one that has a head only no body is expected."""
    if not bodiless:
        return await client.answer()
    head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    lines = [line.partition(": ") for line in head.split("\r\n")[1:] if line]
    headers = {name: value for name, _, value in lines}
    assert int(headers["content-length"]) > 0
    return Answer(status=int(head.split(" ")[1]), headers=headers, body=b"", whole=True)


async def play(client: Client, case: Case, send: Send, before: tuple[int, ...] = ()) -> None:
    """Send a case and hold what comes to what was expected; `before`: answers to what was sent
    ahead of it."""
    await send(client, case.data)
    if case.later and 100 not in case.answers:
        await send(client, case.later)
    if case.ends:
        client.writer.write_eof()
    got = []
    last: Answer | None = None
    for at, _ in enumerate((*before, *case.answers)):
        last = await read(client, bodiless=case.bodiless and at >= len(before))
        while case.ends and last.status == 100:  # how the gateway finds out who still listens
            last = await read(client, bodiless=False)
        got.append(last.status)
        if last.status == 100:
            await send(client, case.later)
    assert got == [*before, *case.answers]
    if isinstance(case.closed, str):
        return
    if not case.closed:
        client.send(get("/health"))
        assert (await client.answer()).json == {"status": "ok"}
        return
    try:
        assert await client.closed()
    except ConnectionResetError:
        assert last is not None
    if last is not None and not case.ends:
        assert last.headers["connection"] == "close"
    if last is not None and last.status >= 400:
        assert last.headers["x-isochrone-reason"]


def meant(site: RunningSite, counts: dict[str, int]) -> None:
    """The engine was asked what was meant for it, this often, and nothing else."""
    asked = site.engines[0].asked
    contents = [one.json["messages"][0]["content"] for one in asked]
    assert {one.path for one in asked} <= {"/v1/chat/completions"}
    assert {word: contents.count(word) for word in set(contents)} == {
        word: count for word, count in counts.items() if count
    }
    asked.clear()


def each_case(on_loop: RunOnLoop, trial: Trial) -> None:
    """Try every case on one gateway, and name those that went wrong."""

    async def main(cloud: GatewayCloud) -> None:
        await try_all(cloud, trial)

    on_loop(main)


async def try_all(cloud: GatewayCloud, trial: Trial) -> None:
    site = await cloud.add_site("frankfurt", "DE", max_body_bytes=MOST_BODY_BYTES)
    await cloud.key("secret")
    await cloud.ready()
    await until(lambda: site.running.context.view.replicas._by_entry)
    wrong: dict[str, str] = {}
    for case in cases(MARKER):
        try:
            async with asyncio.timeout(DEADLINE_S):
                await trial(site, case)
            assert (await ask(site, get("/health"))).status == 200
        except (AssertionError, OSError, EOFError, TimeoutError) as error:
            wrong[case.name] = f"{type(error).__name__}: {error}"
            site.engines[0].asked.clear()
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    await until(lambda: not site.running.context.exchanges)
    assert site.running.server.uploads.held_bytes == 0


def test_all_at_once(on_each_loop: RunOnLoop) -> None:
    async def trial(site: RunningSite, case: Case) -> None:
        client = await Client.open(site)
        await play(client, case, at_once)
        client.close()
        meant(site, {MARKER: case.asked})

    each_case(on_each_loop, trial)


def test_byte_by_byte_or_in_pieces(on_each_loop: RunOnLoop) -> None:
    async def trial(site: RunningSite, case: Case) -> None:
        if case.whole:
            return
        ways = [cut(seed) for seed in range(4)]
        if len(case.data) <= MOST_BYTE_BY_BYTE:
            ways.append(byte_by_byte)
        for way in ways:
            client = await Client.open(site)
            await play(client, case, way)
            client.close()
            meant(site, {MARKER: case.asked})

    each_case(on_each_loop, trial)


def test_behind_a_request_on_the_same_connection(on_each_loop: RunOnLoop) -> None:
    async def trial(site: RunningSite, case: Case) -> None:
        if case.alone or case.whole:
            return
        first = post(marked_body(FIRST))
        for together in (True, False):
            client = await Client.open(site)
            if together:
                await play(
                    client, replace(case, data=first + case.data), at_once, before=(200,)
                )
            else:
                client.send(first)
                assert (await client.answer()).status == 200
                await play(client, case, at_once)
            client.close()
            meant(site, {MARKER: case.asked, FIRST: 1})

    each_case(on_each_loop, trial)


def test_again_when_heads_are_remembered(on_each_loop: RunOnLoop) -> None:
    async def trial(site: RunningSite, case: Case) -> None:
        client = await Client.open(site)
        for _ in range(3):
            if client.reader.at_eof():
                client = await Client.open(site)
            await play(client, case, at_once)
            if case.closed:
                client.close()
                client = await Client.open(site)
        client.close()
        meant(site, {MARKER: 3 * case.asked})

    each_case(on_each_loop, trial)

