"""Following the file of a gateway that runs alone: one bad reload is not the last."""

import asyncio
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.alone.bus import AloneBus, NoStore
from isochrone.adapters.clock import SystemClock
from isochrone.ports.bus import Entry
from isochrone.wire import subjects
from isochrone.wiring.alone_entries import Teller, Told, told_by
from isochrone.wiring.alone_file import AloneFile, load_alone
from isochrone.wiring.alone_reload import Reloader
from isochrone.wiring.watched import watched
from tests.fixtures.alone_files import SMALL


def no_files() -> None:
    """Nothing is to be opened again."""


def test_a_reload_that_fails_unexpectedly_is_not_the_last(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(SMALL)
    taken: list[AloneFile] = []
    failures = [OverflowError("nobody thought of this")]

    async def main() -> None:
        failed, reloaded = asyncio.Event(), asyncio.Event()

        def told(file: AloneFile) -> Told:
            if failures:
                failed.set()
                raise failures.pop()
            taken.append(file)
            return told_by(file, peer_key="ab" * 32)

        teller = Teller(AloneBus(SystemClock(), NoStore()), "here", Ed25519PrivateKey.generate())
        reloader = Reloader(config, load_alone(config), teller, told, reloaded.set)
        running = asyncio.ensure_future(watched("reload", reloader.run, first_wait_s=0.0))
        async with asyncio.timeout(20):
            reloader.ask()
            await failed.wait()
            reloader.ask()
            await reloaded.wait()
        running.cancel()

    asyncio.run(main())
    assert [key.id for key in taken[0].keys] == ["laptop"]


def test_what_was_not_told_is_told_by_the_next_reload(tmp_path: Path) -> None:
    """A file of which something cannot be told is taken back: a key that it no longer had must not
    stay good because it counts as told."""
    config = tmp_path / "gateway.toml"
    other = sha256(b"other").hexdigest()
    both = f'{SMALL}\n[[key]]\nname = "phone"\nsecret_sha256 = "{other}"\n'

    async def main() -> None:
        bus = AloneBus(SystemClock(), NoStore())
        teller = Teller(bus, "here", Ed25519PrivateKey.generate())

        async def tell(text: str, *, breaks: bool = False) -> None:
            config.write_text(text)
            told = told_by(load_alone(config), peer_key="ab" * 32)
            if breaks:
                told = replace(told, view={"policy.broken": 2**70, **told.view})
            await teller.tell(told)

        await tell(both)
        with pytest.raises(OverflowError):
            await tell(SMALL, breaks=True)
        assert subjects.keys_key(other[:2]) in await bus.keys(subjects.VIEW_BUCKET)
        await tell(SMALL)
        assert subjects.keys_key(other[:2]) not in await bus.keys(subjects.VIEW_BUCKET)

    asyncio.run(main())


def test_a_site_that_was_renamed_stays_where_it_is_until_a_restart(tmp_path: Path) -> None:
    """The gateway does not know itself by the new name: it would have no link, and nothing sold."""
    config = tmp_path / "gateway.toml"
    sold = '[[entitlement]]\nname = "gold"\ntok_s = 20\n'
    text = SMALL.replace('"here"', '"here"\nrtt_ms = 1') + (
        '\n[[site]]\nname = "far"\nrtt_ms = 9\nvia = ["FR"]\n[[site.upstream]]\n'
        f'url = "http://127.0.0.1:8081/v1"\n{sold}'
    )
    config.write_text(text.replace('name = "laptop"', 'name = "laptop"\nclasses = ["reserved"]'))

    async def main() -> None:
        bus = AloneBus(SystemClock(), NoStore())
        teller, file = Teller(bus, "here", Ed25519PrivateKey.generate()), load_alone(config)
        reloader = Reloader(config, file, teller, partial(told_by, peer_key="ab" * 32), no_files)
        heard: dict[str, bytes | None] = {}

        def hear(entry: Entry) -> None:
            heard[entry.key] = entry.value

        await teller.tell(told_by(file, peer_key="ab" * 32))
        await bus.watch(subjects.VIEW_BUCKET, "", hear)
        before = dict(heard)
        config.write_text('[gateway]\nsite = "far"\nport = 4001\n' + config.read_text())
        await reloader.reload()
        assert heard == before

    asyncio.run(main())
