"""`make run`: substations, a balancer and a gateway on loopback, kept alive until Ctrl-C.

Everything can be set by flags or MESH_* variables; `python -m deploy.local --help` lists them.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from deploy import parts, supervisor
from deploy.parts import LETTERS, LOOPBACK, Part, Station
from deploy.supervisor import ROOT, Command
from deploy.terminal import Terminal, foreground
from mesh.clock import seconds
from mesh.process import EXIT_STARTUP
from mesh.settings import StartupError, load, one_of, setting, within

READY_WITHIN_S = 15
POLL_S = 0.1
# The ports of many substations are counted up from the first.
PORT = within(1, 65500)
_SECOND_MESH = (
    "; is a mesh running already? Stop it, or give this one ports and a folder of its own: MESH_GATEWAY_PORT, "
    "MESH_BALANCER_PORT, MESH_SUBSTATION_PORT, MESH_METRICS_PORT, MESH_DATA"
)


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """What `make run` can be told."""

    rated_kw: tuple[float, ...] = setting(
        (100.0, 100.0, 100.0), "rated power of each substation, comma-separated; as many as there are", within(0, 1e6)
    )
    charge_points: int = setting(120, "charge points of each substation", within(1, 10_000))
    time_scale: int = setting(60, "seconds of charging that pass in one second; 1 is real time", within(1, 3600))
    data: str = setting("data", "folder of the ledgers; relative to the checkout")
    gateway_port: int = setting(8080, "HTTP", PORT)
    balancer_port: int = setting(50051, "gRPC", PORT)
    substation_port: int = setting(50061, "gRPC of the first substation; the others follow", PORT)
    metrics_port: int = setting(
        9101, "metrics of the gateway; the balancer's is the next, the substations' follow after 10", PORT
    )
    log_format: str = setting(
        "text", "text for a terminal; json for programs: one object a line", one_of("text", "json")
    )
    log_level: str = setting("info", "least severe level to log", one_of("debug", "info", "warning", "error"))

    @property
    def folder(self) -> Path:
        return ROOT / self.data


@dataclass(frozen=True)
class Plan:
    """Who runs where."""

    substations: tuple[Part, ...]
    balancer: Part
    gateway: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.substations, self.balancer, self.gateway)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.gateway.port}"

    def stages(self) -> list[list[Command]]:
        """In the order of starting: who is asked before who asks."""
        return [[_command(part) for part in stage] for stage in (self.substations, (self.balancer,), (self.gateway,))]


def _command(part: Part) -> Command:
    return Command(part.name, part.argv, part.environ)


def plan(settings: MeshSettings) -> Plan:
    """The parts and their ports. StartupError when there cannot be such a mesh."""
    if not 0 < len(settings.rated_kw) <= len(LETTERS):
        raise StartupError(f"MESH_RATED_KW must name 1 to {len(LETTERS)} substations")
    logs = {"LOG_LEVEL": settings.log_level, "LOG_FORMAT": settings.log_format}
    substations = tuple(
        parts.substation(
            Station(name, rated_kw, settings.charge_points, settings.time_scale, settings.folder),
            settings.substation_port + i,
            settings.metrics_port + 10 + i,
        ).told(**logs)
        for i, (name, rated_kw) in enumerate(zip(LETTERS, settings.rated_kw, strict=False))
    )
    balancer = parts.balancer(substations, settings.balancer_port, settings.metrics_port + 1).told(**logs)
    gateway = parts.gateway([balancer], settings.gateway_port, settings.metrics_port).told(**logs)
    return Plan(substations, balancer, gateway)


def check_folder(folder: Path) -> None:
    """StartupError when no ledger can be kept there: one line instead of one from each substation."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"the data folder {folder} cannot be made: {_why(error)}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartupError(f"the data folder {folder} cannot be written: permission denied")


def check_ports(mesh: Plan) -> None:
    """StartupError when a port is taken: before anything starts, a mesh that already runs is not disturbed."""
    wanted: dict[int, str] = {}
    for part in mesh.parts:
        for port, use in ((part.port, part.name), (part.metrics_port, f"metrics of {part.name}")):
            if port in wanted:
                raise StartupError(f"port {port} is wanted twice: {wanted[port]}, and {use}")
            wanted[port] = use
    for port, use in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except (OSError, OverflowError) as error:
                why = f"cannot listen on {LOOPBACK}:{port} ({use}): {_why(error)}"
                hint = _SECOND_MESH if getattr(error, "errno", None) == errno.EADDRINUSE else ""
                raise StartupError(why + hint) from None


def _why(error: OSError | OverflowError) -> str:
    return str(getattr(error, "strerror", error)).lower()


def scale_in_words(scale: int) -> str:
    """One line at 1, else two: the second says how to change it."""
    if scale == 1:
        return "1x: real time"
    return f"{scale}x: {_passes(scale)} in one second;\nset MESH_TIME_SCALE=1 for real time"


def _passes(charging_seconds: int) -> str:
    if charging_seconds == 60:
        return "one minute of charging passes"
    if charging_seconds > 60:
        return f"{charging_seconds / 60:g} minutes of charging pass"
    return f"{charging_seconds} seconds of charging pass"


def welcome(mesh: Plan, settings: MeshSettings) -> Iterator[str]:
    """What a person needs to know, once everything is ready."""
    kw = {part.name: f"{rated:g} kW" for part, rated in zip(mesh.substations, settings.rated_kw, strict=True)}
    rows = [
        ("gateway", f"{mesh.url}   (live page; docs {mesh.url}/docs)"),
        ("balancer", f"{mesh.balancer.address}   gRPC"),
        *((f"substation {part.name}", f"{part.address}   gRPC, {kw[part.name]}") for part in mesh.substations),
        *((f"metrics of {part.name}", part.metrics_url) for part in (mesh.gateway, mesh.balancer, *mesh.substations)),
        ("ledgers", str(settings.folder)),
    ]
    yield "Gridmesh is ready."
    yield ""
    for label, where in rows:
        yield f"  {label:<21}{where}"
    for label, words in zip(("time scale", ""), scale_in_words(settings.time_scale).splitlines(), strict=False):
        yield f"  {label:<21}{words}"
    yield ""
    moved = settings.gateway_port != MeshSettings.gateway_port
    asked = f"GRIDMESH_URL={mesh.url} " if moved else ""
    yield f"Charge a car (in another terminal), or send 30 with `{asked}make rush-hour`:"
    yield ""
    yield f"  curl -sS -X POST {mesh.url}/v1/charges -H 'content-type: application/json' \\"
    yield """    -d '{"vehicle_id":"EV-001","energy_kwh":20,"max_power_kw":11}'"""
    elsewhere = f" --url {mesh.url}" if moved else ""
    yield f"  .venv/bin/gridmesh charge EV-002 --energy 20 --watch{elsewhere}"
    yield ""
    yield "Ctrl-C stops."


def addresses(mesh: Plan) -> dict[str, str]:
    """Where everything is, for programs."""
    return {"gateway": mesh.url, **{part.name: part.address for part in (mesh.balancer, *mesh.substations)}}


async def announce(mesh: Plan, settings: MeshSettings, terminal: Terminal) -> None:
    """Waits until the gateway is ready and says where everything is; says why when that takes long."""
    begun, complained = seconds(), False
    async with httpx.AsyncClient(trust_env=False, timeout=2) as http:
        while (answer := await _readiness(http, f"http://{mesh.gateway.address}/readyz")) is not None:
            if not complained and seconds() - begun > READY_WITHIN_S:
                complained = True
                terminal.say("", f"not ready after {READY_WITHIN_S} s; /readyz says: {answer}")
            await asyncio.sleep(POLL_S)
    terminal.show(welcome(mesh, settings), addresses(mesh))


async def _readiness(http: httpx.AsyncClient, url: str) -> str | None:
    """None when ready, else what is the matter."""
    try:
        response = await http.get(url)
    except httpx.HTTPError as error:
        return f"no answer ({error or type(error).__name__})"
    return None if response.status_code == httpx.codes.OK else f"{response.status_code} {response.text.strip()}"


async def run(mesh: Plan, settings: MeshSettings) -> None:
    stopping = asyncio.Event()
    terminal = Terminal(max(len(part.name) for part in mesh.parts), stopping, as_json=settings.log_format == "json")
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if not stopping.is_set():
            stopping.set()
            terminal.say("", f"{number.name}: stopping")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    announcing = asyncio.create_task(announce(mesh, settings, terminal))
    try:
        await supervisor.supervise(mesh.stages(), terminal.say, stopping)
    finally:
        announcing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await announcing
    terminal.say("", "stopped")


def main(argv: Sequence[str]) -> int:
    try:
        settings = load(MeshSettings, "MESH", argv, os.environ)
        mesh = plan(settings)
        check_ports(mesh)
        check_folder(settings.folder)
        with foreground():
            asyncio.run(run(mesh, settings))
    except (StartupError, supervisor.CannotStart) as error:
        print(f"mesh: {error}", file=sys.stderr)
        return EXIT_STARTUP
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
