"""Engines that answer before they have read a request, and go on to read it, or do not."""

import asyncio
import contextlib

from tests.contract.test_bad_answers import LENGTH, OK, WHOLE, a_site
from tests.fixtures.gateways import GatewayCloud, ask, chat_body, post
from tests.fixtures.loops import RunOnLoop

MOST_BYTES = 100_000
TOO_LARGE = b'HTTP/1.1 413 Too large\r\ncontent-length: 25\r\n\r\n{"error":{"message":"."}}'


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if length > MOST_BYTES:
                writer.write(TOO_LARGE)
                await writer.drain()
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                await writer.wait_closed()
                break
            await reader.readexactly(length)
            writer.write(OK + LENGTH + b"\r\n" + WHOLE)
    writer.close()


def test_nobody_waits_behind_what_an_engine_does_not_read(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        site = await a_site(cloud, f"http://127.0.0.1:{port}/v1", first_byte_timeout_s=2.0)
        large = post(chat_body(x="y" * 12_000_000))
        for raw, status in ((large, 413), (post(chat_body()), 200), (post(chat_body()), 200)):
            assert (await ask(site, raw)).status == status
        server.close()

    on_each_loop(main)
