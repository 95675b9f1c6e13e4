"""The product as a router of this benchmark: a gateway alone, and its other forms.

Every form knows 1,100 sites, 60 of which serve the model, two policies and 1,000 keys, and keeps
its usage and a line for each request in files.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Literal

import msgspec
from benchmarks.gateway import processes, tools
from benchmarks.gateway.bodies import MODEL
from benchmarks.gateway.routers import KEY, Place, Role, Router, Running, serving

from isochrone.adapters.nats import server as nats
from isochrone.adapters.nats.identity import new_secrets
from isochrone.wiring.compiled import compiled_files
from isochrone.wiring.peer_secret import new_peer_secret
from isochrone.wiring.private_file import write_private

SITES = 1_100
SERVING = 60
KEYS = 1_000
SLOTS = 1024  # of an upstream, the most that may be stated: the mock engine takes what comes
HARDWARE = "H100-SXM5-80GB"
RATES = {"prefill_tok_s": 1e6, "decode_tok_s": 1e4}  # the mock engine is fast
NEAR_MS, FAR_MS = 0.2, (100.0, 250.0)
OUT_OF_REACH_MS = (5_000.0, 10_000.0)
MOST = 0.99  # of the requests of a hop are to take it
EUROPEAN = ("DE", "FR", "NL", "SE", "PL", "IT", "ES", "FI")
OTHERS = ("US", "BR", "IN", "JP", "AU", "ZA", "CA")
POLICIES = {"anywhere": ("any",), "europe": ("EU",)}
BATCH = ("chrt", "--batch", "0")
NEAREST = 0  # the serving site where the gateway stands, or the second gateway of a hop
NOBODY = "127.0.0.1:9"
READY_S = 30.0

Form = Literal["alone", "tls", "hop", "jetstream"]
Value = str | int | float | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Isochrone:
    """`alone`: one gateway that asks the upstreams. `tls`: the same with HTTPS for clients.
    `hop`: a gateway that passes every request to a second one, both measured. `jetstream`: a
    gateway of a cloud, which gets its view and delivers its usage through NATS (not measured)."""

    name: str
    form: Form
    role: Role = "ours"
    cache_aware: bool = True
    version: str = "isochrone, this commit"

    def install(self, work: Path) -> None:
        """Nothing to get: it is run by the interpreter that runs this."""

    @contextmanager
    def running(self, place: Place) -> Iterator[Running]:
        start = {
            "alone": _alone, "tls": _alone, "hop": _hop, "jetstream": _jetstream,
        }[self.form]
        with start(place, self.form) as running:
            yield running


FORMS: tuple[Router, ...] = (
    Isochrone(name="isochrone", form="alone"),
    Isochrone(name="isochrone-tls", form="tls"),
    Isochrone(name="isochrone-hop", form="hop"),
    Isochrone(name="isochrone-jetstream", form="jetstream"),
)


@contextmanager
def _alone(place: Place, form: Form) -> Iterator[Running]:
    port, tls = tools.free_port(), form == "tls"
    process: dict[str, Value] = {"site": site_name(NEAREST), "port": port}
    if tls:
        chain, key = tools.certificate(place.work)
        process |= {"tls_certificate": str(chain), "tls_key": str(key)}
    config = write_config(place.folder / "gateway.toml", process, place.upstreams)
    with _gateway(config, place, port, name="gateway", tls=tls) as pid:
        yield Running(port=port, roots=(pid,), tls=tls)


@contextmanager
def _hop(place: Place, form: Form) -> Iterator[Running]:
    """The second gateway is that of the nearest site, and all others are so far that none of them
    is chosen in its place, however long it takes: they are asked without a hop here.

    The two share a core only here. So that neither takes it from the other with every message, they
    run as SCHED_BATCH, whose processes do not pre-empt one another when they wake.
    """
    ports = {name: tools.free_port() for name in ("ingress", "peer")}
    secrets = {name: place.folder / f"{name}.secret" for name in ports}
    public = {name: new_peer_secret(path) for name, path in secrets.items()}
    where = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    peer: dict[str, Value] = {
        "site": site_name(NEAREST), "port": ports["peer"], "peer_secret_file": str(secrets["peer"]),
    }
    ingress: dict[str, Value] = {
        "site": site_name(None), "port": ports["ingress"],
        "peer_secret_file": str(secrets["ingress"]),
    }
    asks = {"gateway": where["ingress"], "peer_key": public["ingress"]}
    serves = {"gateway": where["peer"], "peer_key": public["peer"]}
    peer_config = write_config(
        place.folder / "peer.toml", peer, place.upstreams, gateways={site_name(None): asks}
    )
    config = write_config(
        place.folder / "ingress.toml", ingress, place.upstreams,
        gateways={site_name(NEAREST): serves}, far_ms=OUT_OF_REACH_MS,
    )
    with ExitStack() as stack:
        second = stack.enter_context(
            _gateway(peer_config, place, ports["peer"], name="peer", before=BATCH)
        )
        first = stack.enter_context(
            _gateway(config, place, ports["ingress"], name="ingress", before=BATCH)
        )
        yield Running(port=ports["ingress"], roots=(first, second))
    check_hops(place.folder)


def check_hops(folder: Path) -> None:
    """Raises NotRunning where requests found another way, as what two gateways wrote down says."""
    asked, passed = (
        (folder / f"{name}-usage.jsonl").read_bytes().count(b"\n") for name in ("ingress", "peer")
    )
    if passed < MOST * asked:
        raise processes.NotRunning(f"only {passed:,} of {asked:,} requests took the hop")


@contextmanager
def _jetstream(place: Place, form: Form) -> Iterator[Running]:
    """NATS and whoever speaks for control and the agents work on the load's core."""
    port = tools.free_port()
    secrets = new_secrets()
    write_private(place.folder / "nats.json", msgspec.json.encode(secrets))
    plan = nats.prepare(place.folder / "nats", secrets, 0)
    peer_secret = place.folder / "peer.secret"
    public = new_peer_secret(peer_secret)
    process: dict[str, Value] = {
        "site": site_name(NEAREST), "port": port, "peer_secret_file": str(peer_secret),
    }
    described = write_config(
        place.folder / "described.toml", process, place.upstreams, gateways={
            site_name(number): {"gateway": NOBODY, "peer_key": public}
            for number in range(1, SERVING)
        },
    )
    speaker = [
        sys.executable, "-m", "benchmarks.gateway.cloud", str(described), plan.url,
        str(place.folder),
    ]
    aside = place.cores.load
    with ExitStack() as stack:
        stack.enter_context(
            processes.running(plan.argv, core=aside, log=place.folder / "nats.log", env=plan.env)
        )
        log = place.folder / "cloud.log"
        cloud = stack.enter_context(processes.running(speaker, core=aside, log=log))
        config = place.folder / "gateway.toml"
        processes.wait(config.exists, "the cloud is described", READY_S, cloud, log)
        pid = stack.enter_context(_gateway(config, place, port, name="gateway"))
        yield Running(port=port, roots=(pid,))


@contextmanager
def _gateway(
    config: Path, place: Place, port: int, *, name: str, tls: bool = False,
    before: Sequence[str] = (),
) -> Iterator[int]:
    argv = [*before, sys.executable, "-P", "-m", "isochrone", "gateway", "--config", str(config)]
    env = {"PYTHONPATH": str(place.source)}
    with serving(argv, place, name=name, port=port, tls=tls, env=env, ready_s=READY_S) as process:
        said = (place.folder / f"{name}.log").read_text()
        if '"compiled": true' not in said and compiled_files(place.source / "isochrone/_compiled"):
            raise processes.NotRunning(f"{name} runs as written though a compiled form is there")
        yield process.pid


def site_name(number: int | None) -> str:
    """The site of the gateway that is asked (None), or one of those that serve the model."""
    return "here" if number is None else f"serving-{number}"


def write_config(
    path: Path, process: Mapping[str, Value], upstreams: Sequence[str], *,
    gateways: Mapping[str, Mapping[str, Value]] | None = None,
    far_ms: tuple[float, float] = FAR_MS,
) -> Path:
    """Write the file of a gateway: `process` is its table [gateway], `gateways` says at which
    sites another gateway is to be asked (instead of an upstream) or may ask. All sites but the
    nearest are `far_ms` away."""
    logs = {
        "usage": f"{path.stem}-usage.jsonl", "request_log": f"{path.stem}-requests.log",
        "journal": f"{path.stem}-journal",
    }
    parts = [_table("[gateway]", {**logs, **process}), _table("[[model]]", {"name": MODEL})]
    parts += [
        _table("[[policy]]", {"name": name, "residency": terms})
        for name, terms in POLICIES.items()
    ]
    parts += [_key(number) for number in range(KEYS)]
    own = str(process["site"])
    parts += _sites(own, upstreams, gateways or {}, far_ms)
    path.write_text("\n".join(parts))
    return path


def _key(number: int) -> str:
    secret = KEY if number == 0 else f"{KEY}-{number}"
    policy = tuple(POLICIES)[number % len(POLICIES)]
    digest = sha256(secret.encode()).hexdigest()
    return _table("[[key]]", {"name": f"key-{number}", "secret_sha256": digest, "policy": policy})


def _sites(
    own: str, upstreams: Sequence[str], gateways: Mapping[str, Mapping[str, Value]],
    far_ms: tuple[float, float],
) -> list[str]:
    """Countries and round trips are the same in every run."""
    rng = Random(11)
    names = [site_name(None), *map(site_name, range(SERVING))]
    names += [f"far-{number}" for number in range(SITES - len(names))]
    parts = []
    for number, name in enumerate(names):
        country = (*EUROPEAN, *OTHERS)[number % (len(EUROPEAN) + len(OTHERS))]
        near = name == site_name(NEAREST) or name == own
        entry: dict[str, Value] = {
            "name": name, "country": country,
            "rtt_ms": NEAR_MS if near else round(rng.uniform(*far_ms), 1),
        }
        if name == own:
            del entry["rtt_ms"]
        serves = name.startswith("serving-")
        if serves:
            entry["hardware"] = HARDWARE
        if name in gateways:
            entry |= gateways[name]
            if serves:
                entry |= {"serving": [MODEL], "slots": len(upstreams) * SLOTS}
        parts.append(_table("[[site]]", entry))
        if serves and name not in gateways:
            asked = upstreams if near else [upstreams[number % len(upstreams)]]
            parts += [_upstream(url) for url in asked]
    return parts


def _upstream(url: str) -> str:
    entry: dict[str, Value] = {"model": MODEL, "url": f"{url}/v1", "slots": SLOTS, **RATES}
    return _table("[[site.upstream]]", entry)


def _table(head: str, values: Mapping[str, Value]) -> str:
    """A TOML table; JSON's strings, numbers and lists are TOML's."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    return f"{head}\n{lines}"
