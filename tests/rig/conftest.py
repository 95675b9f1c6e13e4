"""One real cloud for all rig tests of a session: starting it takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.cloud import Cloud


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The default world, running. Tests may kill its processes if they wait until it healed."""
    state: Path = tmp_path_factory.mktemp("cloud") / "state"
    running = Cloud(state)
    try:
        yield running.start()
    finally:
        running.stop()
