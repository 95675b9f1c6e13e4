"""Gets what the benchmark needs: its two C programs, the peers from the package index, nginx."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE = Path(__file__).resolve().parent
PROGRAMS = {"upstream": (), "load": ("-lssl", "-lcrypto")}
LOG_TAIL_CHARACTERS = 600


class Missing(Exception):
    """Something that cannot be installed here; the message says what to do."""


def compile_programs(folder: Path) -> None:
    """Compile upstream.c and load.c into `folder` where they are not up to date.

    Raises SystemExit: without them there is no measurement.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    folder.mkdir(parents=True, exist_ok=True)
    for name, libraries in PROGRAMS.items():
        source, program = HERE / f"{name}.c", folder / name
        if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
            continue
        if compiler is None:
            raise SystemExit("a C compiler is needed: install gcc (Debian: apt-get install gcc)")
        command = [compiler, "-O2", "-Wall", "-o", str(program), str(source), *libraries]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{source.name} does not compile; load.c needs OpenSSL's headers "
                f"(Debian: apt-get install libssl-dev):\n{done.stderr}"
            )


def install_package(folder: Path, requirement: str) -> Path:
    """The bin folder of a virtual environment with exactly this requirement; made when absent."""
    name, _, version = requirement.partition("==")
    venv = folder / name.partition("[")[0]
    stamp = venv / f"installed-{version}"
    if not stamp.exists():
        say(f"installing {requirement} into {venv}")
        _run([sys.executable, "-m", "venv", "--clear", str(venv)], requirement)
        pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, requirement], requirement)
        stamp.touch()
    return venv / "bin"


def install_nginx() -> Path:
    """The nginx program; as root on a Debian it is installed when absent."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = shutil.which("nginx", path=path)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        say("installing nginx-light")
        _run(["apt-get", "update", "-qq"], "nginx")
        _run(["apt-get", "install", "-y", "-qq", "nginx-light"], "nginx")
        found = shutil.which("nginx", path=path)
    if found is None:
        raise Missing("nginx is not installed (Debian: apt-get install nginx-light)")
    return Path(found)


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{what} could not be installed:\n{done.stderr[-LOG_TAIL_CHARACTERS:]}")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed P-256 certificate for loopback and its key, the same for every router."""
    chain, secret = folder / "tls.pem", folder / "tls.key"
    if chain.exists() and secret.exists():
        return chain, secret
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=name, subject_name=name, public_key=key.public_key(),
        serial_number=x509.random_serial_number(), not_valid_before=now - timedelta(days=1),
        not_valid_after=now + timedelta(days=3650),
    )
    chain.write_bytes(
        builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    secret.touch(mode=0o600)
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, secret


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(text: str) -> None:
    """Progress, apart from the tables on standard output."""
    print(text, file=sys.stderr, flush=True)
