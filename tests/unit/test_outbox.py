"""The writes of a round: on record first, sealed in a row, sent in a row."""

import asyncio
from typing import cast

from isochrone.gateway.outbox import Outbox


class Transport:
    """Notes what is done to it."""

    def __init__(self, name: str, notes: list[str], *, closing: bool = False) -> None:
        self.name, self.notes, self.closing = name, notes, closing

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.notes.append(f"{self.name} writes {data.decode()}")

    def seal(self, data: bytes) -> None:
        self.notes.append(f"{self.name} seals {data.decode()}")

    def send(self) -> None:
        self.notes.append(f"{self.name} sends")


def test_what_is_sealed_is_sealed_before_anything_is_sent() -> None:
    async def main() -> list[str]:
        notes: list[str] = []
        outbox = Outbox(lambda: notes.append("on record"))
        client, other = Transport("client", notes), Transport("other", notes)
        gone = Transport("gone", notes, closing=True)
        engine = cast(asyncio.Transport, Transport("engine", notes))
        outbox.seal(client, b"1")
        outbox.write(engine, b"2")
        outbox.seal(gone, b"3")
        outbox.seal(other, b"4")
        outbox.write(cast(asyncio.Transport, gone), b"5")
        assert not notes
        await asyncio.sleep(0)
        outbox.flush()
        return notes

    assert asyncio.run(main()) == [
        "on record", "client seals 1", "other seals 4", "engine writes 2", "client sends",
        "gone sends", "other sends", "on record",
    ]
