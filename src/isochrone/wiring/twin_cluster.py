"""Plays many games at once on a Ray cluster, and gives its nodes what they need for that.

Each node gets this package as it is here, compiled where it is, and every file that a scenario
names: so it plays with the same code and data as this machine, whatever is installed there. What it
must have is Ray, the packages that ours needs, and the same minor version of Python.
"""

import logging
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

import numpy

from isochrone.adapters.large_pages import from_the_start
from isochrone.core.errors import InvalidInput, IsochroneError, Unavailable
from isochrone.twin.scenario import Scenario
from isochrone.wiring.compiled import PACKAGE
from isochrone.wiring.twin_comparison import Game, Played
from isochrone.wiring.twin_files import path_of
from isochrone.wiring.twin_worker import play_sent

REACHED_S: Final = 5.0  # until a machine that does not answer is taken as not there
LEFT_BEHIND: Final = ["**/__pycache__"]


def play_on_cluster(
    work: Sequence[Game], cluster: str, on_played: Callable[[Played], None]
) -> list[Played]:
    """What came of each, in the order of `work`. `cluster`: the address of a Ray cluster of which
    this machine is a node, as `10.0.0.1:6379`, or `auto` for the one that runs here. A game whose
    process or node is lost is played again on another, three times.

    Raises InvalidInput where Ray is not installed or no such cluster there, and Unavailable where
    it was lost, or a node of it cannot play."""
    ray = _ray()
    _reach(cluster)
    with TemporaryDirectory(prefix="isochrone-twin-") as folder:
        files = Files(Path(folder))
        games = [replace(game, scenario=files.shipped(game.scenario)) for game in work]
        with _joined(ray, cluster, Path(folder)):
            return _played(ray, games, on_played)


class Files:
    """Collects the files that scenarios name in one folder, to be sent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sent: dict[Path, str] = {}

    def shipped(self, scenario: Scenario) -> Scenario:
        """The same with the names that its files have, seen from the folder."""
        workload = scenario.workload
        return replace(
            scenario,
            sites=self._sent_as(scenario.sites), rtt=self._sent_as(scenario.rtt),
            entries=self._sent_as(scenario.entries),
            workload=replace(
                workload, files=tuple(self._name_of(each) for each in workload.files)
            ),
        )

    def _sent_as(self, file: str | None) -> str | None:
        return None if file is None else self._name_of(file)

    def _name_of(self, file: str) -> str:
        path = path_of(file).resolve()
        if path not in self._sent:
            own = self._folder / f"file-{len(self._sent)}"
            own.mkdir()
            shutil.copyfile(path, own / path.name)
            self._sent[path] = str(Path(own.name) / path.name)
        return self._sent[path]


def _played(ray: Any, games: Sequence[Game], on_played: Callable[[Played], None]) -> list[Played]:
    remote = ray.remote(play_sent)
    place_of = {
        remote.remote(pickle.dumps(game), numpy.__version__): place
        for place, game in enumerate(games)
    }
    found: dict[int, Played] = {}
    waiting = list(place_of)
    while waiting:
        ready, waiting = ray.wait(waiting)
        for each in ready:
            played = found[place_of[each]] = pickle.loads(_got(ray, each))
            on_played(played)
    return [found[place] for place in range(len(games))]


def _got(ray: Any, each: Any) -> bytes:
    try:
        got: bytes = ray.get(each)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, IsochroneError):
            raise error.cause from error
        raise  # a bug of ours, with where it was
    except ray.exceptions.RayError as error:
        raise Unavailable(
            "a process or node of the cluster was lost, perhaps because memory ran out, or it "
            f"could not be made ready: {_first_line(error)}"
        ) from error
    return got


@contextmanager
def _joined(ray: Any, cluster: str, folder: Path) -> Iterator[None]:
    """While it lasts, this process is part of the cluster; what it still has there then ends."""
    try:
        ray.init(
            address=cluster, log_to_driver=False, logging_level=logging.WARNING,
            runtime_env={
                "py_modules": [str(PACKAGE)], "working_dir": str(folder), "excludes": LEFT_BEHIND,
                "env_vars": from_the_start(os.environ),
            },
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InvalidInput([
            f"--cluster {cluster}: no Ray cluster that this machine is a node of is there "
            f"({_first_line(error)}); see `ray start --help`"
        ]) from error
    try:
        if ray.cluster_resources().get("CPU", 0.0) < 1.0:
            raise InvalidInput([f"--cluster {cluster}: no node of it has a processor to offer"])
        yield
    finally:
        ray.shutdown()


def _reach(cluster: str) -> None:
    """Ray itself would try for minutes. Raises InvalidInput."""
    address = os.environ.get("RAY_ADDRESS", cluster) if cluster == "auto" else cluster
    if address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise InvalidInput([f"--cluster {address}: expected HOST:PORT, or auto"])
    try:
        socket.create_connection((host, port), REACHED_S).close()
    except OSError as error:
        raise InvalidInput([
            f"--cluster {address}: nothing answers there ({error.strerror or error})"
        ]) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InvalidInput([
            "--cluster needs Ray, which is not installed; install the extra: isochrone[ray]"
        ]) from error
    return ray
