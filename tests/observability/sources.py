"""What is checked in: panels, rules, and the metrics that the code declares; and which of them a query reads."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml
from prometheus_client import CollectorRegistry

from balancer.desk import Desk
from balancer.metrics import BalancerMetrics, DeskCollector
from gateway.metrics import HttpMetrics
from mesh.clock import SystemClock
from mesh.metrics import GrpcServerMetrics, new_registry
from mesh.model import LimitSource, NotAccepting
from substation.load import Load
from substation.metrics import SubstationMetrics

ROOT = Path(__file__).resolve().parent.parent.parent
PROMETHEUS = ROOT / "observability" / "prometheus"
GRAFANA = ROOT / "observability" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

# What Prometheus makes by itself.
OF_PROMETHEUS = frozenset({"up", "ALERTS"})

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\{[^}]*\}|\[[^\]]*\]|\d[\w.]*|[a-zA-Z_:][\w:]*|\S')
_LISTS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_WORDS = frozenset({"and", "or", "unless", "offset", "bool", "inf", "nan"})
_NAME = re.compile(r"[a-zA-Z_:][\w:]*")


class Target(NamedTuple):
    """One query of a panel."""

    panel: str
    expr: str

    def filled(self) -> str:
        """With what Grafana puts in for the last 15 minutes."""
        return self.expr.replace("$__rate_interval", "20s").replace("$__range", "900s")


def panels(path: Path) -> list[dict[str, Any]]:
    """All of a dashboard but its rows."""
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def targets() -> list[Target]:
    return [
        Target(f"{path.stem}: {panel['title']} {target['refId']}", target["expr"])
        for path in DASHBOARDS
        for panel in panels(path)
        for target in panel["targets"]
    ]


def groups() -> list[dict[str, Any]]:
    """Of rules."""
    return [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]


@cache
def rules() -> list[dict[str, Any]]:
    return [
        rule for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
    ]


def jobs() -> list[dict[str, Any]]:
    """What Prometheus asks."""
    found: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    return found


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def selectors(expr: str) -> Iterator[tuple[str, str]]:
    """The name and the label matchers of each series that an expression reads."""
    tokens = _TOKEN.findall(expr)
    at = 0
    while at < len(tokens):
        token, following = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else ""
        if token in _LISTS:
            at = tokens.index(")", at) if following == "(" else at
        elif _NAME.fullmatch(token) and token not in _WORDS and following != "(" and following not in _LISTS:
            yield token, following if following.startswith("{") else ""
        at += 1


@cache
def declared() -> dict[str, set[str]]:
    """Every metric of every process, with its series."""
    registry = new_registry()
    GrpcServerMetrics(registry)
    HttpMetrics(registry)
    BalancerMetrics(registry)
    registry.register(DeskCollector(Desk(["127.0.0.1:50061"], 1_000, Random(1)), SystemClock()))
    _declare_substation(registry)
    return {family.name: _series(family.name, family.type) for family in registry.collect()}


def _declare_substation(registry: CollectorRegistry) -> None:
    numbers = dict.fromkeys(Load.__struct_fields__, 0)
    sources = {"limit_source": LimitSource.UNSPECIFIED, "not_accepting": NotAccepting.UNSPECIFIED}
    idle = Load(**{**numbers, **sources, "curtailed": ()})  # type: ignore[arg-type]
    metrics = SubstationMetrics(registry)
    metrics.show(lambda: idle, 1, lambda: 0)
    metrics.show_orphans(lambda: [("slot-1", 0)])
    metrics.show_place("a", ROOT / "ledger.db")


def _series(name: str, kind: str) -> set[str]:
    match kind:
        case "counter":
            return {f"{name}_total"}
        case "histogram":
            return {f"{name}_{part}" for part in ("bucket", "sum", "count")}
        case _:
            return {name}


@cache
def dropped() -> re.Pattern[str]:
    """The names that no job keeps."""
    (regex,) = {relabel["regex"] for job in jobs() for relabel in job["metric_relabel_configs"]}
    return re.compile(regex)
