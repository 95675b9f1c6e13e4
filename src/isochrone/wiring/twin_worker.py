"""Plays one game in a process of a Ray cluster, which has come to it as bytes.

Nothing of the twin is imported here before the compiled form is taken: this module is the first of
ours that such a process imports, and the game is unpacked after that.
"""

import pickle
import platform

from isochrone.core.errors import Unavailable
from isochrone.wiring.compiled import use_compiled


def play_sent(game: bytes, numpy_version: str) -> bytes:
    """What came of a pickled `Game`, pickled. Its files are named from this process's folder, where
    Ray lays them. Raises Unavailable where this machine lacks a package, or has another numpy than
    who asks: that may draw other numbers, and the same seed has to give the same rows."""
    use_compiled()
    try:
        import numpy

        from isochrone.wiring.twin_comparison import play

        asked = pickle.loads(game)
    except ImportError as error:
        raise Unavailable(
            f"node {platform.node()} of the cluster lacks a Python package ({error}); "
            "install isochrone[ray] there too"
        ) from error
    if numpy.__version__ != numpy_version:
        raise Unavailable(
            f"node {platform.node()} of the cluster has numpy {numpy.__version__}, this machine "
            f"{numpy_version}: the same seed may give other rows; install the same on both"
        )
    return pickle.dumps(play(asked))
