"""Following the file of a gateway that runs alone: one bad reload is not the last."""

import asyncio
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.alone.bus import AloneBus, NoStore
from isochrone.adapters.clock import SystemClock
from isochrone.wiring.alone_entries import Teller, Told, told_by
from isochrone.wiring.alone_file import AloneFile, load_alone
from isochrone.wiring.alone_reload import Reloader
from isochrone.wiring.watched import watched
from tests.fixtures.alone_files import SMALL


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
