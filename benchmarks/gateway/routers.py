"""What a router is to this benchmark, and the peers: how each is got and started."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.gateway import processes, tools
from benchmarks.gateway.bodies import MODEL
from benchmarks.gateway.machine import Cores

KEY = "sk-1234"

# upstream: no router at all; floor: a proxy that decides nothing; rust: the peers to beat;
# record: measured, not compared with.
Role = Literal["upstream", "floor", "rust", "ours", "record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a router runs. `folder` is its own and empty; `work` is kept between runs. `source`
    is the folder of the product's package."""

    work: Path
    folder: Path
    source: Path
    cores: Cores
    upstream_ports: tuple[int, ...]
    upstream_pid: int
    probe: bytes  # a request body: who answers it with 200 is ready

    @property
    def upstreams(self) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{port}" for port in self.upstream_ports)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A router that answers. `roots`: the processes whose trees are measured."""

    port: int
    roots: tuple[int, ...]
    tls: bool = False


class Router(Protocol):
    """`version` is what stands in the results; `install` raises tools.Missing."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def cache_aware(self) -> bool: ...
    @property
    def version(self) -> str: ...
    def install(self, work: Path) -> None: ...
    def running(self, place: Place) -> AbstractContextManager[Running]: ...


@contextmanager
def serving(
    argv: Sequence[str], place: Place, *, name: str, port: int, tls: bool = False,
    env: Mapping[str, str] | None = None, ready_s: float = 60.0,
) -> Iterator[processes.Process]:
    """A program on the router's core that answers the probe by now."""
    log = place.folder / f"{name}.log"
    with processes.running(
        argv, core=place.cores.router, log=log, env=env, cwd=place.folder
    ) as process:
        processes.wait(
            lambda: processes.answers(port, place.probe, tls=tls, key=KEY),
            f"{name} answers", ready_s, process, log,
        )
        yield process


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """No router: what upstream and load cost and bear themselves."""

    name: str = "direct"
    role: Role = "upstream"
    cache_aware: bool = False
    version: str = "upstream.c"

    def install(self, work: Path) -> None:
        """Nothing to get."""

    @contextmanager
    def running(self, place: Place) -> Iterator[Running]:
        yield Running(port=place.upstream_ports[0], roots=(place.upstream_pid,))


NGINX_CONFIG = """\
daemon off; master_process on; worker_processes 1; worker_rlimit_nofile 65536;
pid nginx.pid; error_log stderr warn;
events {{ worker_connections 32768; }}
http {{
  access_log off; keepalive_requests 100000000; tcp_nodelay on; client_body_buffer_size 64k;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4;
  scgi_temp_path t5;
  upstream engines {{ {servers} keepalive 8192; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port}{ssl} backlog=8192;
    {certificate}
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """A plain reverse proxy with one worker: what the kernel's part alone costs."""

    name: str = "nginx"
    role: Role = "floor"
    cache_aware: bool = False
    version: str = "nginx"
    tls: bool = False

    def install(self, work: Path) -> None:
        tools.install_nginx()

    @contextmanager
    def running(self, place: Place) -> Iterator[Running]:
        port = tools.free_port()
        chain, key = tools.certificate(place.work)
        config = place.folder / "nginx.conf"
        config.write_text(
            NGINX_CONFIG.format(
                port=port, ssl=" ssl" if self.tls else "",
                servers=" ".join(f"server 127.0.0.1:{each};" for each in place.upstream_ports),
                certificate=f"ssl_certificate {chain}; ssl_certificate_key {key};",
            )
        )
        argv = [str(tools.install_nginx()), "-p", f"{place.folder}/", "-c", str(config)]
        with serving(argv, place, name="nginx", port=port, tls=self.tls) as process:
            yield Running(port=port, roots=(process.pid,), tls=self.tls)


Arguments = Callable[[Path, Place, int], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A router of others from the package index. `arguments`: (bin folder, place, port)."""

    name: str
    role: Role
    requirement: str
    arguments: Arguments
    cache_aware: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    ready_s: float = 60.0

    @property
    def version(self) -> str:
        return self.requirement

    def install(self, work: Path) -> None:
        tools.install_package(work, self.requirement)

    @contextmanager
    def running(self, place: Place) -> Iterator[Running]:
        port = tools.free_port()
        programs = tools.install_package(place.work, self.requirement)
        argv = self.arguments(programs, place, port)
        with serving(
            argv, place, name=self.name, port=port, env=self.env, ready_s=self.ready_s
        ) as process:
            yield Running(port=port, roots=(process.pid,))


def _sglang(policy: str) -> Peer:
    def arguments(programs: Path, place: Place, port: int) -> Sequence[str]:
        return (
            str(programs / "python"), "-m", "sglang_router.launch_router",
            "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *place.upstreams,
            "--policy", policy, "--max-concurrent-requests", "8192", "--log-level", "warn",
            "--prometheus-port", str(tools.free_port()),
        )

    return Peer(
        name=f"sglang-{policy}", role="rust", requirement="sglang-router==0.3.2",
        arguments=arguments, cache_aware=policy == "cache_aware",
    )


def _vllm(policy: str) -> Peer:
    def arguments(programs: Path, place: Place, port: int) -> Sequence[str]:
        return (
            str(programs / "vllm-router"), "--host", "127.0.0.1", "--port", str(port),
            "--worker-urls", *place.upstreams, "--policy", policy,
            "--max-concurrent-requests", "8192", "--log-level", "warning",
            "--prometheus-port", str(tools.free_port()),
        )

    return Peer(
        name=f"vllm-{policy}", role="rust", requirement="vllm-router==0.1.17",
        arguments=arguments, cache_aware=policy == "cache_aware",
    )


def _litellm(programs: Path, place: Place, port: int) -> Sequence[str]:
    config = place.folder / "litellm.yaml"
    entries = "".join(
        f"  - model_name: {MODEL}\n    litellm_params: {{model: openai/{MODEL}, "
        f'api_base: "{url}/v1", api_key: sk-x}}\n'
        for url in place.upstreams
    )
    config.write_text(
        f"model_list:\n{entries}"
        "general_settings: {dangerously_permit_weak_or_unset_master_key: true}\n"
        "litellm_settings: {telemetry: false, set_verbose: false}\n"
    )
    return (
        str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1",
        "--port", str(port), "--num_workers", "1", "--telemetry", "False",
    )


PEERS: tuple[Router, ...] = (
    Direct(),
    Nginx(),
    _sglang("cache_aware"),
    _sglang("round_robin"),
    _vllm("cache_aware"),
    _vllm("round_robin"),
    Peer(
        name="litellm", role="record", requirement="litellm[proxy]==1.106.2", arguments=_litellm,
        env={
            "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        ready_s=120.0,
    ),
    Nginx(name="nginx-tls", tls=True),
)
