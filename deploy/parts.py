"""The processes of a mesh on this machine: what each is called, how it is run, where it listens.

`make run` and the tests start the same processes with the same settings, which go through the
environment, as they would in a container.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

LOOPBACK = "127.0.0.1"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Three of them one after the other stay within the 10 s that a stop may take.
GRACE_S = 2


@dataclass(frozen=True)
class Part:
    """One process. `name` is what people call it: a, b, c for substations, else its module's name."""

    name: str
    module: str
    port: int
    metrics_port: int
    own_settings: Mapping[str, str]

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    @property
    def argv(self) -> tuple[str, ...]:
        return (sys.executable, "-m", self.module)

    @property
    def environ(self) -> dict[str, str]:
        """Its settings as environment variables."""
        given = {
            "HOST": LOOPBACK,
            "PORT": str(self.port),
            "METRICS_PORT": str(self.metrics_port),
            "LOG_FORMAT": "text",
            "GRACE_S": str(GRACE_S),
            **self.own_settings,
        }
        return {f"{self.module.upper()}_{name}": value for name, value in given.items()}

    def told(self, **settings: str) -> "Part":
        """The same process with more settings, by their names in capitals."""
        return replace(self, own_settings={**self.own_settings, **settings})


@dataclass(frozen=True)
class Station:
    """What a substation of the mesh is given."""

    substation_id: str
    rated_kw: float
    charge_points: int
    time_scale: int
    # The folder that all share; each keeps its ledger in a folder of its own name there.
    data: Path


def substation(station: Station, port: int, metrics_port: int) -> Part:
    settings = {
        "ID": station.substation_id,
        "RATED_KW": f"{station.rated_kw:g}",
        "CHARGE_POINTS": str(station.charge_points),
        "TIME_SCALE": str(station.time_scale),
        "DATA": str(station.data),
    }
    return Part(station.substation_id, "substation", port, metrics_port, settings)


def balancer(substations: Sequence[Part], port: int, metrics_port: int) -> Part:
    return Part("balancer", "balancer", port, metrics_port, {"SUBSTATIONS": ",".join(s.address for s in substations)})


def gateway(balancers: Sequence[Part], port: int, metrics_port: int) -> Part:
    return Part("gateway", "gateway", port, metrics_port, {"BALANCERS": ",".join(b.address for b in balancers)})
