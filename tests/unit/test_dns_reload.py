"""Following the file of a name server and the files of subnets that it names."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from structlog.testing import capture_logs

from isochrone.dns.process import Told
from isochrone.wiring.dns_file import load_dns
from isochrone.wiring.dns_reload import DnsReloader, stamps_of

FILE = """
[dns]
zone = "api.example.net"
subnet_files = [{files}]
[[name_server]]
name = "ns1.example.net"
[[site]]
name = "here"
latitude = 50
longitude = 8
country = "DE"
addresses = ["192.0.2.1"]
"""
ONE, TWO = "192.0.2.0/24,DE\n", "192.0.2.0/24,DE\n198.51.100.0/24,FR\n"


class Followed:
    """A name server's folder. `told` has how many subnets each reload knew; `meanwhile` is written
    to the table while the first one is going on."""

    def __init__(self, folder: Path, meanwhile: str | None = None) -> None:
        self.config = folder / "dns.toml"
        self.table = folder / "one.csv"
        self.told: asyncio.Queue[int] = asyncio.Queue()
        self._meanwhile = meanwhile
        self.table.write_text(ONE)
        self.name("one.csv")

    def name(self, *tables: str) -> None:
        names = ", ".join(f'"{each}"' for each in tables)
        self.config.write_text(FILE.format(files=names))

    def tell(self, told: Told) -> None:
        if self._meanwhile is not None:
            self.table.write_text(self._meanwhile)
            self._meanwhile = None
        self.told.put_nowait(told.zone.places.count)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DnsReloader]:
        taken = stamps_of(self.config)
        file = load_dns(self.config, serial=1)
        reloader = DnsReloader(self.config, file, taken, self.tell, lambda: 2)
        task = asyncio.ensure_future(reloader.run())
        try:
            async with asyncio.timeout(10):
                yield reloader
        finally:
            task.cancel()


def test_what_changes_during_a_reload_is_not_missed(tmp_path: Path) -> None:
    async def main() -> None:
        followed = Followed(tmp_path, meanwhile=TWO)
        async with followed.running() as reloader:
            reloader.ask()
            assert await followed.told.get() == 1
            assert await followed.told.get() == 2

    asyncio.run(main())


def test_what_changes_while_it_starts_is_not_missed(tmp_path: Path) -> None:
    async def main() -> None:
        followed = Followed(tmp_path)
        taken = stamps_of(followed.config)
        file = load_dns(followed.config, serial=1)
        followed.table.write_text(TWO)
        reloader = DnsReloader(followed.config, file, taken, followed.tell, lambda: 2)
        task = asyncio.ensure_future(reloader.run())
        async with asyncio.timeout(10):
            assert await followed.told.get() == 2
        task.cancel()

    asyncio.run(main())


def test_a_table_that_was_refused_is_taken_once_it_is_mended(tmp_path: Path) -> None:
    async def main() -> None:
        followed = Followed(tmp_path)
        other = tmp_path / "other.csv"
        other.write_text("network,country\nnonsense,DE\n")
        async with followed.running() as reloader:
            with capture_logs() as logs:
                followed.name("other.csv")
                reloader.ask()
                while not any(each["event"] == "reload_refused" for each in logs):
                    await asyncio.sleep(0.02)
            other.write_text(TWO)
            assert await followed.told.get() == 2

    asyncio.run(main())


def test_a_table_that_is_gone_and_named_no_more_holds_nothing_up(tmp_path: Path) -> None:
    async def main() -> None:
        followed = Followed(tmp_path)
        async with followed.running():
            followed.table.unlink()
            followed.name()
            assert await followed.told.get() == 0

    asyncio.run(main())
