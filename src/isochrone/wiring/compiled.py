"""Takes the modules on a request's path in their compiled form, where that form is there.

`tools/compile/build.py` leaves extension modules and a manifest in `isochrone/_compiled`. They are
used all or none, and only when they were made from exactly the sources that lie here: a process
whose sources were changed since runs those, interpreted.
"""

import hashlib
import json
import signal
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = PACKAGE / "_compiled"


class CompiledFinder(MetaPathFinder):
    """Finds each module of the manifest in its compiled form."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        return spec_from_file_location(
            fullname, file, loader=ExtensionFileLoader(fullname, str(file))
        )


def use_compiled(folder: Path = FOLDER) -> bool:
    """From now on imports take the compiled form; False where there is none that fits the sources.

    To be called before any of these modules is imported: the two forms must not be mixed.
    """
    files = compiled_files(folder)
    if not files or any(name in sys.modules for name in files):
        return False
    sys.meta_path.insert(0, CompiledFinder(files))
    return True


def begin_compiled(player: int) -> None:
    """What a process of a pool does first: it takes the compiled form, before anything else is
    imported. It leaves Ctrl-C to process `player`, which started it, and dies with that, however
    that ends: by itself it would wait for more to do."""
    use_compiled()
    from isochrone.adapters.child.launch import die_with

    die_with(player)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def compiled_files(folder: Path = FOLDER) -> dict[str, Path]:
    """Compiled modules by name; none when they do not belong to these sources and this Python."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        whole = hashlib.sha256()
        for source in manifest["sources"]:
            content = (PACKAGE.parent / source).read_bytes()
            whole.update(source.encode() + b"\0" + content + b"\0")
        modules = {str(name): folder / str(file) for name, file in manifest["modules"].items()}
        belongs = (manifest["digest"], manifest["suffix"]) == (
            whole.hexdigest(), sysconfig.get_config_var("EXT_SUFFIX"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return modules if belongs else {}
