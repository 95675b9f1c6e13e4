"""The processes of a local cloud: what each is started with, in which order, and what they say.

First start: PostgreSQL and NATS side by side, then control, then every site joins through the
Control API with a one-time token, then all gateways and agents at once. Sites that joined in an
earlier start, at the same addresses, do not wait for control.
"""

import asyncio
import secrets
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from isochrone.adapters.nats import server as nats
from isochrone.adapters.nats.identity import load_secrets
from isochrone.adapters.packaged import DATA
from isochrone.adapters.postgres import server as postgres
from isochrone.agent.settings import AgentSettings
from isochrone.console.settings import ConsoleSettings
from isochrone.control.settings import ControlSettings
from isochrone.core.errors import Forbidden, InvalidInput, Unavailable
from isochrone.core.world.world import World
from isochrone.gateway.settings import GatewaySettings
from isochrone.wiring.control_api import ControlApi
from isochrone.wiring.joining import join_site, load_identity
from isochrone.wiring.local.ports import HOST, Ports
from isochrone.wiring.local.ready import http_status
from isochrone.wiring.local.state import State
from isochrone.wiring.local.supervise import ChildSpec, Note, Ready, Supervisor
from isochrone.wiring.private_file import write_private
from isochrone.wiring.settings import render
from isochrone.wiring.world_text import render_world

# Together below ten seconds, which is what stopping the whole cloud may take.
STOP_GATEWAY_S, STOP_AGENT_S, STOP_CONTROL_S, STOP_NATS_S, STOP_POSTGRES_S = 3, 2, 1.5, 1, 1.5
DRAIN_S = 2.0  # what open requests get of a gateway's share
API_TIMEOUT_S = 5.0
JOIN_TRIES = 5
JOIN_PAUSE_S = 0.5
OPERATOR_LOGIN = "operator"

Tell = Callable[[str, str], None]
T = TypeVar("T")


class LocalCloud:
    """All children of one `up`. `note` writes to up.log; `tell` reports progress to people."""

    def __init__(
        self, state: State, world: World, ports: Ports, *, supervisor: Supervisor, note: Note,
        tell: Tell, host: str = HOST,
    ) -> None:
        self.state = state
        self.world = world
        self.host = host
        self.here = tuple(site for site in world.sites if not site.elsewhere)
        self.ports = ports
        self.supervisor = supervisor
        self.note = note
        self.tell = tell
        self.control_url = f"http://{host}:{ports.control}"
        self.console_url = f"http://{host}:{ports.console}"
        self.nats_url = f"nats://{host}:{ports.nats}"
        self.api = ControlApi(self.control_url, state.admin_key, timeout_s=API_TIMEOUT_S)
        self.postgres: postgres.PostgresPlan | None = None
        self.sites: dict[str, int] = {
            site.name: port for site, port in zip(self.here, ports.gateways, strict=True)
        }

    async def start(self) -> None:
        """Start everything; returns when control answers and every site's processes are started.

        Raises InvalidInput or Unavailable with what to do.
        """
        await together(self._start_nats(), self._start_postgres())
        early = [name for name in self.sites if self._joined_here(name)]
        for name in early:
            self._start_site(name)
        self._start_console()  # it needs control no sooner than somebody looks
        await self._start_control()
        joined = {
            site["name"] for site in await asyncio.to_thread(self._sites) if site["joined"]
        }
        # What an early one logs in with is refused if it was removed or revoked since.
        late = [name for name in self.sites if name not in early or name not in joined]
        await self.supervisor.stop([gateway_child(name) for name in late])
        await self.supervisor.stop([agent_child(name) for name in late])
        await together(*(self._join(name) for name in late))
        for name in late:
            self._start_site(name)

    async def stop(self) -> None:
        """Stop in the reverse order of starting: what depends on others goes first."""
        await self.supervisor.stop([gateway_child(name) for name in self.sites])
        await self.supervisor.stop([agent_child(name) for name in self.sites])
        await self.supervisor.stop(["control", "console"])
        await self.supervisor.stop(["nats"])
        await self.supervisor.stop(["postgres"])

    def customer_key(self) -> str:
        """The API key that `up` prints and keeps in secrets/api.key.

        A new one is made the first time, and when the book does not take the kept one any more
        (it was revoked, or the book is a new one).
        """
        kept = self.state.api_key
        if kept is not None and self._accepted(kept):
            return kept
        # The same idempotency key gives the same secret, so a lost reply leaves no stray key.
        after = sha256((kept or "none").encode()).hexdigest()[:16]
        made = self.api.post(
            "keys", {"name": "made by isochrone up", "residency": ["any"], "transit": ["any"]},
            idempotency_key=f"isochrone-up-after-{after}",
        )
        write_private(self.state.secret("api.key"), f"{made['key']}\n".encode())
        return str(made["key"])

    def give_first_password(self) -> None:
        """Make the operator's account the first time, or when the book is a new one, and keep its
        password in secrets/console.password."""
        me = self.api.get("me")
        if me["login"] is not None:
            return
        # Kept before it is set: a start that is cut short in between sets it the next time.
        password = self.state.console_password or secrets.token_urlsafe(15)
        write_private(self.state.secret("console.password"), f"{password}\n".encode())
        body = {"login": OPERATOR_LOGIN, "password": password}
        self.api.put(f"principals/{me['id']}/password", body)

    def _accepted(self, key: str) -> bool:
        try:
            ControlApi(self.control_url, key, timeout_s=API_TIMEOUT_S).get("usage", {"limit": 1})
        except Forbidden:
            return False
        return True

    async def _start_postgres(self) -> None:
        """Start PostgreSQL."""
        self.tell("postgres", "starting")
        root, run = self.state.root, self.state.path("run")
        plan = self.postgres = await asyncio.to_thread(postgres.prepare, root, run)

        async def answers() -> bool:
            return await asyncio.to_thread(postgres.ready, plan)

        spec = ChildSpec(
            name="postgres", argv=plan.argv, env=plan.env, ready=answers,
            log=self._log("postgres"), prepare=lambda: postgres.prepare(root, run),
            stop_signal=plan.stop_signals[0], stop_s=STOP_POSTGRES_S, start_s=60.0,
        )
        await self._start_store(spec)

    async def _start_nats(self) -> str:
        """Start NATS and return its URL."""
        self.tell("nats", "starting")
        logins = load_secrets(self.state.secret("nats.json"))
        plan = nats.prepare(self.state.path("nats"), logins, self.ports.nats, host=self.host)

        async def answers() -> bool:
            return await http_status(plan.host, plan.monitor_port, "/healthz") == 200

        await self._start_store(
            ChildSpec(
                name="nats", argv=plan.argv, env=plan.env, ready=answers, log=self._log("nats"),
                stop_s=STOP_NATS_S,
            )
        )
        return plan.url

    async def _start_store(self, spec: ChildSpec) -> None:
        """Start a child whose data lives in the state folder: if it fails, the folder is to
        blame."""
        try:
            await self.supervisor.start(spec).wait_ready()
        except Unavailable as error:
            raise InvalidInput(
                [f"{error.message}; if {self.state.path(spec.name)} is damaged, restore it from a "
                 "backup, or choose another folder with --state"]
            ) from error
        self.tell(spec.name, "ready")

    async def _start_control(self) -> None:
        book = self.postgres
        assert book is not None, "PostgreSQL is started first"
        self.tell("control", "starting")
        folder = self.state.path("control")
        write_private(folder / "world.toml", render_world(self.world).encode())
        settings = ControlSettings(
            host=self.host, port=self.ports.control, database=book.application_conninfo,
            owner_database=book.conninfo, nats_urls=(self.nats_url,),
            nats_credentials=self.state.secret("control.nats.json"),
            nats_secrets=self.state.secret("nats.json"),
            signing_key=self.state.secret("control.key"),
            admin_key=self.state.secret("admin.key"), world=folder / "world.toml",
            prices=DATA / "prices" / "standard.toml", public_url=self.control_url,
            archive=self.state.path("archive"), experiments=self.state.path("experiments"),
        )
        write_private(folder / "control.toml", render(settings).encode())
        child = self.supervisor.start(
            ChildSpec(
                name="control", argv=_own("control", folder / "control.toml"),
                log=self._log("control"), stop_s=STOP_CONTROL_S,
                ready=self._answers(self.ports.control, "/api/v1/health"),
            )
        )
        await child.wait_ready()
        self.tell("control", "ready")

    def _start_console(self) -> None:
        self.tell("console", "starting")
        folder = self.state.path("console")
        settings = ConsoleSettings(
            host=self.host, port=self.ports.console, control_url=self.control_url,
            public_url=self.console_url, state=folder,
        )
        write_private(folder / "console.toml", render(settings).encode())
        self.supervisor.start(
            ChildSpec(
                name="console", argv=_own("console", folder / "console.toml"),
                log=self._log("console"), stop_s=STOP_CONTROL_S,
                ready=self._answers(self.ports.console, "/health"),
            )
        )

    def _sites(self) -> list[Mapping[str, Any]]:
        return list(self.api.items("sites"))

    def _joined_here(self, name: str) -> bool:
        """True when the site's identity was made for the addresses of this start."""
        path = self.state.site(name) / "identity.json"
        if not path.exists():
            return False
        identity = load_identity(path)
        return (
            (identity.host, identity.port) == (self.host, self.sites[name])
            and identity.nats_urls == (self.nats_url,)
            and identity.control_url == self.control_url
        )

    async def _join(self, name: str) -> None:
        self.tell(name, "joining")
        for attempt in range(JOIN_TRIES):
            try:
                await asyncio.to_thread(self._join_once, name)
                return
            except Unavailable as error:
                self.note("join_again", site=name, reason=error.message)
                if attempt == JOIN_TRIES - 1:
                    raise
            await asyncio.sleep(JOIN_PAUSE_S)

    def _join_once(self, name: str) -> None:
        port = self.sites[name]
        token = self.api.post(f"sites/{name}/token", {})["token"]
        join_site(
            token, self.control_url, host=self.host, port=port, public_url=self.endpoint(name),
            out=self.state.site(name) / "identity.json",
        )

    def _start_site(self, name: str) -> None:
        self.tell(name, "starting")
        folder = self.state.site(name)
        identity = folder / "identity.json"
        gateway = GatewaySettings(
            identity=identity, host=self.host, port=self.sites[name], journal=folder / "journal",
            drain_timeout_s=DRAIN_S, metrics_port=0,
        )
        agent = AgentSettings(identity=identity, logs=folder / "logs")
        write_private(folder / "gateway.toml", render(gateway).encode())
        write_private(folder / "agent.toml", render(agent).encode())
        self.supervisor.start(
            ChildSpec(
                name=agent_child(name), argv=_own("agent", folder / "agent.toml"),
                log=self._log(agent_child(name)), ready=_started, stop_s=STOP_AGENT_S,
            )
        )
        self.supervisor.start(
            ChildSpec(
                name=gateway_child(name), argv=_own("gateway", folder / "gateway.toml"),
                log=self._log(gateway_child(name)), stop_s=STOP_GATEWAY_S,
                ready=self._answers(self.sites[name], "/health"),
            )
        )

    def endpoint(self, site: str) -> str:
        """What clients of this site use as base URL."""
        return f"http://{self.host}:{self.sites[site]}/v1"

    def _answers(self, port: int, path: str) -> Ready:
        async def ready() -> bool:
            return await http_status(self.host, port, path) == 200

        return ready

    def _log(self, name: str) -> Path:
        return self.state.path("logs", f"{name}.log")


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Results of work done side by side; the first failure ends the rest and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def gateway_child(site: str) -> str:
    return f"gateway-{site}"


def agent_child(site: str) -> str:
    return f"agent-{site}"


def _own(process: str, config: Path) -> Sequence[str]:
    """The command line of one of our own processes, by the interpreter that runs this one; -P
    keeps modules of the present folder from being taken for libraries."""
    return (sys.executable, "-P", "-m", "isochrone", process, "--config", str(config))


async def _started() -> bool:
    """Agents listen nowhere; that one works shows in its digests."""
    return True
