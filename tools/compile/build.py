"""Compiles the modules on every request's path to C with mypyc, beside their sources.

Run by `make install`, `make up` and `make test`; does nothing when what is there is up to date. The
Python stays the only source and runs as it is where there is no C compiler: then nothing is
compiled, and this says so. What cannot be compiled fails with --strict only. What comes out lies in
`src/isochrone/_compiled` with a manifest that names the digest of the sources, so that no process
ever runs what does not belong to them (see `isochrone.wiring.compiled`).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
OUT = SOURCE / "isochrone" / "_compiled"
MANIFEST = OUT / "manifest.json"
NAME = "isochrone_hot"  # of the library that all compiled modules share
OPTIMISE = "2"


def module_files() -> list[str]:
    """Paths below `src` of what is compiled, as pyproject.toml lists it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["isochrone"]["compiled"]
    files = sorted(settings["modules"])
    missing = [file for file in files if not (SOURCE / file).is_file()]
    if missing:
        sys.exit(f"pyproject.toml lists modules that are not there: {', '.join(missing)}")
    return files


def digest_of(files: list[str]) -> str:
    """Of the sources as they are, in order; `isochrone.wiring.compiled` computes the same."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.encode() + b"\0" + (SOURCE / file).read_bytes() + b"\0")
    return whole.hexdigest()


def is_current(files: list[str], digest: str) -> bool:
    try:
        known = json.loads(MANIFEST.read_text())
    except (OSError, ValueError):
        return False
    belongs = {"digest": digest, "suffix": _suffix(), "sources": files}
    return all(known.get(name) == value for name, value in belongs.items())


def compiler() -> str | None:
    """The C compiler that this Python would use, if it and Python's headers are there."""
    name = os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "cc")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found = shutil.which(name.split()[0]) or shutil.which("cc") or shutil.which("gcc")
    return found if header.is_file() else None


def compile_into(folder: Path, files: list[str]) -> None:
    """Build the extension modules of `files` below `folder`; raises CalledProcessError."""
    work = folder / "work"
    for path in sorted((SOURCE / "isochrone").rglob("*.py")):
        target = work / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (work / "py.typed").touch()
    (work / "setup.py").write_text(_SETUP)
    (work / "mypy.ini").write_text(_MYPY)
    (work / "rarely.h").write_text(_RARELY)
    environment = {
        **os.environ, "MYPYPATH": str(work), "CC": compiler() or "cc",
        "ISOCHRONE_FILES": "\n".join(files), "ISOCHRONE_NAME": NAME,
        "ISOCHRONE_OPTIMISE": OPTIMISE,
    }
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib"),
         "--build-temp", str(folder / "temp")],
        cwd=work, env=environment, check=True, capture_output=True, text=True,
    )


# Of mypyc's run time: called where something has failed.
_RARELY = """#include <Python.h>
#define RARELY __attribute__((cold))
void CPy_AddTraceback(const char *, const char *, int, PyObject *) RARELY;
void CPy_TypeErrorTraceback(
    const char *, const char *, int, PyObject *, const char *, PyObject *) RARELY;
void CPy_TypeError(const char *, PyObject *) RARELY;
void CPy_AttributeError(
    const char *, const char *, const char *, const char *, int, PyObject *) RARELY;
void CPyError_OutOfMemory(void) RARELY;
static void CPy_DecRef(PyObject *) RARELY;
"""
_MYPY = "[mypy]\nignore_missing_imports = true\nexplicit_package_bases = true\n"
_SETUP = '''"""Written by tools/compile/build.py."""
import os
from mypyc.build import mypycify
from setuptools import setup

extensions = mypycify(
    ["--config-file=mypy.ini", *os.environ["ISOCHRONE_FILES"].split("\\n")],
    opt_level=os.environ["ISOCHRONE_OPTIMISE"], debug_level="0",
    group_name=os.environ["ISOCHRONE_NAME"],
)
for extension in extensions:
    # Nobody but this library calls its functions by name: so the compiler may put small ones into
    # their callers, and the others are called without a look into the table of what is exported.
    extension.extra_compile_args += ["-fvisibility=hidden", "-fno-plt"]
    # What hardly ever runs stands apart from what always does, which then fills less of the
    # processor's caches; so does code that is not moved to even addresses.
    extension.extra_compile_args += [
        "-include", os.path.abspath("rarely.h"),
        "-fno-align-jumps", "-fno-align-loops", "-fno-align-labels",
    ]
    # Python's own flags ask for warnings. Of one file this large they take GCC as long as all the
    # rest, and say nothing of the sources, only of what a generator wrote.
    extension.extra_compile_args.append("-Wno-all")
setup(name=os.environ["ISOCHRONE_NAME"], packages=[], ext_modules=extensions)
'''


def install(folder: Path, files: list[str], digest: str) -> None:
    """Put what was built in its place; the manifest comes last."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    modules: dict[str, str] = {}
    for built in sorted((folder / "lib").rglob(f"*{_suffix()}")):
        module = built.relative_to(folder / "lib").as_posix().removesuffix(_suffix())
        name = module.replace("/", ".")
        modules[name] = f"{name}{_suffix()}"
        shutil.copyfile(built, OUT / modules[name])
    MANIFEST.write_text(json.dumps(
        {"digest": digest, "suffix": _suffix(), "sources": files, "modules": modules}, indent=1,
    ))


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def main() -> None:
    files = module_files()
    digest = digest_of(files)
    if is_current(files, digest):
        return
    if compiler() is None:
        shutil.rmtree(OUT, ignore_errors=True)
        print("no C compiler with Python's headers here: the gateway runs interpreted, which works "
              "and takes about half as much CPU again", file=sys.stderr)
        return
    print(f"compiling {len(files)} modules of the gateway (one to three minutes, once)", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="isochrone-compile-") as folder:
        try:
            compile_into(Path(folder), files)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(OUT, ignore_errors=True)
            tail = "\n".join((error.stdout + error.stderr).splitlines()[-30:])
            print(f"{tail}\ncompiling failed; the gateway runs interpreted without it",
                  file=sys.stderr)
            sys.exit("--strict" in sys.argv[1:])
        install(Path(folder), files, digest)
    print(f"compiled in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
