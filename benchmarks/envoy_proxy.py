"""Envoy in front of substations, as someone would set it up who wants what the gateway and the balancer give.

HTTP with JSON on one port, by the gRPC-JSON transcoder; plain gRPC on another. LEAST_REQUEST chooses the substation.
No access log, and no bound on requests below that of the gateway; all else is as Envoy has it, one worker thread per
core included.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy import protos
from deploy.parts import LOOPBACK
from tests.mesh_processes import free_port, wait_for

BINARY = Path(sys.executable).parent / "envoy"
SERVICE = "gridmesh.v1.ChargingService"
CLUSTER = "substations"
# As long as the gateway waits.
TIMEOUT = "5s"
# Above what is ever asked at once: Envoy's own 1,024 would refuse where the gateway queues.
MOST = 100_000
READY_S = 30.0
_TYPE = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"


@dataclass(frozen=True)
class Proxy:
    """A running Envoy: where it takes JSON, gRPC, and its operators."""

    json_port: int
    grpc_port: int
    admin_port: int
    pid: int = 0


def descriptors(path: Path) -> None:
    """Writes the contract as the transcoder reads it."""
    protos.protoc("--include_imports", f"--descriptor_set_out={path}")


def configuration(proxy: Proxy, substations: Sequence[str], descriptor_set: Path) -> dict[str, Any]:
    """Envoy's configuration for substations at these addresses (host:port)."""
    return {
        "admin": {"address": _address(proxy.admin_port)},
        "static_resources": {
            "listeners": [
                _listener("json", proxy.json_port, [_transcoder(descriptor_set)]),
                _listener("grpc", proxy.grpc_port, []),
            ],
            "clusters": [_cluster(substations)],
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def _filter(name: str, kind: str, **settings: object) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": kind, **settings}}


def _transcoder(descriptor_set: Path) -> dict[str, Any]:
    return _filter(
        "envoy.filters.http.grpc_json_transcoder",
        f"{_TYPE}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=str(descriptor_set),
        services=[SERVICE],
        # The contract has no HTTP annotations: POST /gridmesh.v1.ChargingService/Charge.
        auto_mapping=True,
        # As the gateway writes: names as in the contract, zeros printed, no spaces.
        print_options={"preserve_proto_field_names": True, "always_print_primitive_fields": True},
    )


def _listener(name: str, port: int, filters: Sequence[dict[str, Any]]) -> dict[str, Any]:
    router = _filter("envoy.filters.http.router", f"{_TYPE}.filters.http.router.v3.Router")
    to_cluster = {"match": {"prefix": "/"}, "route": {"cluster": CLUSTER, "timeout": TIMEOUT}}
    manager = _filter(
        "envoy.filters.network.http_connection_manager",
        _HTTP,
        stat_prefix=name,
        http_filters=[*filters, router],
        route_config={"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [to_cluster]}]},
    )
    return {"name": name, "address": _address(port), "filter_chains": [{"filters": [manager]}]}


def _cluster(substations: Sequence[str]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(int(one.rpartition(":")[2]))}} for one in substations]
    http2 = {
        "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    bounds = {f"max_{what}": MOST for what in ("connections", "pending_requests", "requests")}
    return {
        "name": CLUSTER,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [bounds]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": endpoints}]},
    }


@contextmanager
def running(folder: Path, substations: Sequence[str]) -> Iterator[Proxy]:
    """Envoy in front of these, ready. Its configuration and log are left in the folder."""
    ports = Proxy(free_port(), free_port(), free_port())
    descriptor_set, config = folder / "contract.binpb", folder / "envoy.json"
    descriptors(descriptor_set)
    config.write_text(json.dumps(configuration(ports, substations, descriptor_set), indent=1))
    command = [str(BINARY), "--config-path", str(config), "--log-level", "warning", "--disable-hot-restart"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        wait_for(lambda: process.poll() is not None or _is_ready(ports.admin_port), READY_S, "Envoy is ready")
        if process.poll() is not None:
            raise RuntimeError(f"Envoy ended: {(folder / 'envoy.log').read_text()[-2000:]}")
        yield Proxy(ports.json_port, ports.grpc_port, ports.admin_port, process.pid)
    finally:
        process.terminate()
        process.wait(10)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://{LOOPBACK}:{port}/ready", timeout=1, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def version() -> str:
    """As in 1.40.0."""
    said = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    found = re.search(r"/(\d+\.\d+\.\d+)", said)
    return found[1] if found else said.strip()
