"""A real mesh for tests: real processes on free ports of loopback, their ledgers in a temporary folder.

    with Mesh(folder, rated_kw=(50, 100, 200)).start() as mesh:
        mesh.http.post("/v1/charges", json=...)
        mesh.kill9("a")
        mesh.restart("a")

Parts are called a, b, c... (substations), balancer and gateway (and where there are more of them balancer-2,
gateway-2...). Each part's output goes to a file beside the ledgers; tests/conftest.py shows its end when a test
fails. Nothing sleeps for luck: whoever waits names a condition and a bound.
"""

import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from deploy import parts
from deploy.parts import LETTERS, LOOPBACK, Part, Station
from gridmesh.v1 import operations_pb2, operations_pb2_grpc
from mesh.channel import open_channel
from mesh.clock import seconds
from mesh.process import EXIT_STARTUP

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
READY_S = 30.0
STOP_S = 10.0
POLL_S = 0.02
# Below the ephemeral range: no outgoing connection takes a part's port while the part is down. Nor does the mesh of
# another test meanwhile: each of pytest's workers, with what it starts, has a share of its own.
_SHARE = 10_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_FIRST = 20_000 + _SHARE * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = (_FIRST, _FIRST + _SHARE)
PORT_TRIES = 5
TAIL_LINES = 60
# A part that is not up yet is tried again soon.
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
)

_rng = Random()
# Those given last: their parts may not have started yet.
_given: deque[int] = deque(maxlen=200)


def wait_for(condition: Callable[[], T], bound_s: float, what: str = "") -> T:
    """Polls until `condition()` is true and returns what it gave. AssertionError after `bound_s` seconds."""
    end, pause = seconds() + bound_s, Event()
    while not (result := condition()):
        assert seconds() < end, f"not within {bound_s:g} s: {what or condition}"
        pause.wait(POLL_S)
    return result


async def eventually(condition: Callable[[], Awaitable[T]], bound_s: float, what: str = "") -> T:
    """`wait_for` for conditions that are awaited."""
    end = seconds() + bound_s
    while not (result := await condition()):
        assert seconds() < end, f"not within {bound_s:g} s: {what or condition}"
        await anyio.sleep(POLL_S)
    return result


def free_port(*beside: int) -> int:
    """A port that nobody listens on now, nor on those so far above it. Whoever starts there may still lose a race."""
    while True:
        port = _rng.randrange(PORTS[0], PORTS[1] - max(beside, default=0))
        ports = [port, *(port + each for each in beside)]
        if all(map(_is_free, ports)):
            _given.extend(ports)
            return port


def _is_free(port: int) -> bool:
    if port in _given:
        return False
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class EndedEarly(AssertionError):
    """A part ended while it was being waited for."""

    def __init__(self, name: str, code: int, log: str) -> None:
        super().__init__(f"{name} ended with {code} instead of becoming ready")
        self.lost_a_port = code == EXIT_STARTUP and "cannot listen" in log


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(name if number == 1 else f"{name}-{number}" for number in range(1, count + 1))


class Mesh:
    """Parts start and stop together or one by one; their addresses stay the same over restarts."""

    def __init__(
        self,
        folder: Path,
        *,
        rated_kw: Sequence[float] = (100.0, 100.0, 100.0),
        charge_points: int = 120,
        time_scale: int = 60,
        balancers: int = 1,
        gateways: int = 1,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`settings` are more of them by part or by module: {"substation": {"LOG_LEVEL": "debug"}, "a": {...}}."""
        self.folder = folder
        self.substations = tuple(LETTERS[: len(rated_kw)])
        self._stations = [
            Station(name, rated, charge_points, time_scale, folder)
            for name, rated in zip(self.substations, rated_kw, strict=True)
        ]
        self.balancers = _numbered("balancer", balancers)
        self.gateways = _numbered("gateway", gateways)
        self._settings = settings or {}
        self._parts = self._on_free_ports()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._channels: dict[str, grpc.Channel] = {}
        self._http: httpx.Client | None = None

    def _on_free_ports(self) -> dict[str, Part]:
        substations = [
            self._told(parts.substation(s, free_port(), free_port()), s.substation_id) for s in self._stations
        ]
        balancers = [self._told(parts.balancer(substations, free_port(), free_port()), name) for name in self.balancers]
        gateways = [self._told(parts.gateway(balancers, free_port(), free_port()), name) for name in self.gateways]
        return {part.name: part for part in (*substations, *balancers, *gateways)}

    def _told(self, part: Part, name: str) -> Part:
        """With that name, and what the test sets for all of its kind and for it alone."""
        return replace(part, name=name).told(**{**self._settings.get(part.module, {}), **self._settings.get(name, {})})

    # --- where things are ----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://{self.address('gateway')}"

    def address(self, name: str) -> str:
        """host:port of its service."""
        return self._parts[name].address

    def metrics_url(self, name: str) -> str:
        return self._parts[name].metrics_url

    def data(self, substation: str) -> Path:
        """The folder of its ledger."""
        return self.folder / substation

    # --- life ----------------------------------------------------------------------------------------

    def start(self, *names: str) -> Self:
        """Starts these (none named: all) and waits until they are ready."""
        first, names = not self._processes, names or tuple(self._parts)
        for attempt in range(PORT_TRIES):
            try:
                return self._start(names)
            except EndedEarly as ended:
                if not (first and ended.lost_a_port) or attempt == PORT_TRIES - 1:
                    raise
                self.stop()
                self._processes.clear()
                self._parts = self._on_free_ports()
        raise AssertionError("unreachable")

    def _start(self, names: Sequence[str]) -> Self:
        for stage in (self.substations, self.balancers, self.gateways):
            started = [name for name in stage if name in names]
            for name in started:
                self.spawn(name)
            for name in started:
                self.wait_ready(name)
        return self

    def spawn(self, name: str) -> None:
        """Starts one without waiting for it."""
        assert not self.alive(name), f"{name} runs already"
        self._close_channel(name)
        part = self._parts[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._log_file(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                part.argv,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environ},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C on pytest is pytest's to handle: it stops them
            )

    def wait_ready(self, name: str, bound_s: float = READY_S) -> None:
        """Ready: a substation serves; a balancer has a fresh report of each running substation; a gateway says so."""
        ready = {"balancer": self._balancer_ready, "gateway": self._gateway_ready}.get(self._parts[name].module)
        self._wait_alive(name, lambda: (ready or self.serving)(name), bound_s)

    def _wait_alive(self, name: str, condition: Callable[[], bool], bound_s: float) -> None:
        def ready_or_dead() -> bool:
            code = self._processes[name].poll()
            if code is not None:
                raise EndedEarly(name, code, self.log_tail(name))
            return condition()

        try:
            wait_for(ready_or_dead, bound_s, f"{name} is ready")
        except AssertionError as error:
            error.add_note(f"the log of {name} ends with:\n{self.log_tail(name)}")
            raise

    def serving(self, name: str) -> bool:
        """What its gRPC health service says."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel(name))
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def fresh(self, name: str = "balancer") -> set[str]:
        """The substations that this balancer has a fresh report of."""
        stub = operations_pb2_grpc.OperationsServiceStub(self.channel(name))
        listed = stub.ListSubstations(operations_pb2.ListSubstationsRequest(), timeout=2).substations
        return {s.substation_id for s in listed if s.state == operations_pb2.REPORT_STATE_FRESH}

    def _balancer_ready(self, name: str) -> bool:
        running = {name for name in self.substations if self.alive(name)}
        return self.serving(name) and self.fresh(name) >= running

    def _gateway_ready(self, name: str) -> bool:
        url = f"http://{self.address(name)}/readyz"
        try:
            return httpx.get(url, timeout=10, trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def alive(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def exit_code(self, name: str) -> int:
        """Of one that has ended."""
        code = self._processes[name].poll()
        assert code is not None, f"{name} runs"
        return code

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def kill9(self, name: str) -> None:
        """kill -9, and waits until it is gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self, *names: str) -> dict[str, int]:
        """SIGTERM to these (none named: all that run), the gateway first, the substations last, and
        waits. Their exit codes; one that does not end in 10 s is killed, and has -9."""
        order = [name for name in reversed(self._parts) if name in (names or self._parts)]
        return {name: self._stop(name) for name in order if self.alive(name)}

    def _stop(self, name: str) -> int:
        process = self._processes[name]
        process.terminate()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def restart(self, name: str) -> None:
        """Stops it if it runs, starts it on its old ports with its old ledger, and waits until it is ready."""
        self.stop(name)
        self._start((name,))

    def close(self) -> None:
        """Ends everything."""
        if self._http is not None:
            self._http.close()
            self._http = None
        for name in tuple(self._channels):
            self._close_channel(name)
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- talking to it -------------------------------------------------------------------------------

    @property
    def http(self) -> httpx.Client:
        """A client of the gateway; paths are relative to it."""
        if self._http is None:
            self._http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)
        return self._http

    def async_http(self) -> httpx.AsyncClient:
        """A client of the gateway, for `async with`."""
        return httpx.AsyncClient(base_url=self.url, timeout=10, trust_env=False)

    def channel(self, name: str) -> grpc.Channel:
        """A blocking gRPC channel; closed with the mesh, and new after a restart of the part."""
        if name not in self._channels:
            self._channels[name] = grpc.insecure_channel(self.address(name), options=CHANNEL_OPTIONS)
        return self._channels[name]

    def _close_channel(self, name: str) -> None:
        if channel := self._channels.pop(name, None):
            channel.close()

    def aio_channel(self, name: str) -> grpc.aio.Channel:
        """An asyncio gRPC channel, for `async with`."""
        return open_channel(self.address(name))

    def metrics(self, name: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Its metrics page: sample name to sorted labels to value."""
        page = httpx.get(self.metrics_url(name), timeout=5, trust_env=False).raise_for_status().text
        values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                values.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return values

    def metric(self, part: str, sample: str, **labels: str) -> float:
        """The sum of the samples of that name with at least these labels; 0 when there are none."""
        wanted = set(labels.items())
        return sum(value for key, value in self.metrics(part).get(sample, {}).items() if wanted <= set(key))

    # --- what it logged ------------------------------------------------------------------------------

    def log(self, name: str) -> str:
        """All that it printed, over restarts."""
        path = self._log_file(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def log_tail(self, name: str) -> str:
        return "\n".join(self.log(name).splitlines()[-TAIL_LINES:])

    def logs(self) -> dict[str, str]:
        """The end of each part's log, for whoever reads a failed test."""
        return {name: tail for name in self._parts if (tail := self.log_tail(name))}

    def _log_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"
