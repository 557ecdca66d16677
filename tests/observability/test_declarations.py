"""Panels and rules are held against what the code declares, in both directions."""

import re
from functools import cache

import pytest

from balancer.settings import BalancerSettings
from gateway.settings import GatewaySettings
from mesh.model import ReportState
from substation.settings import SubstationSettings
from tests.observability import sources
from tests.observability.sources import OF_PROMETHEUS, alerts, declared, recorded, rules, selectors, targets


@cache
def read() -> set[str]:
    exprs = [target.expr for target in targets()] + [rule["expr"] for rule in rules()]
    return {name for expr in exprs for name, _ in selectors(expr)}


def test_no_query_reads_what_is_not_declared() -> None:
    series = set().union(*declared().values())
    assert read() - series - recorded() - OF_PROMETHEUS == set()


def test_every_metric_is_read_by_a_panel_or_a_rule_or_not_kept() -> None:
    unread = {name for name, series in declared().items() if not series & read()}
    assert {name for name in unread if not any(map(sources.dropped().fullmatch, declared()[name]))} == set()


def test_what_is_not_kept_is_not_read() -> None:
    assert [name for name in read() if sources.dropped().fullmatch(name)] == []


def test_every_recorded_series_is_read() -> None:
    assert recorded() - read() == set()


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("up", [("up", "")]),
        ('sum by (job) (rate(a_total{x=~"b|c"}[5m])) / 3.6e6', [("a_total", '{x=~"b|c"}')]),
        ("a:b * on (job, instance) group_left (c) d offset 1m > 0", [("a:b", ""), ("d", "")]),
        ('x or on () label_replace(vector(0), "y", "z", "", "")', [("x", "")]),
        ("max without (e) (f) unless absent(g) and topk(4, h)", [("f", ""), ("g", ""), ("h", "")]),
    ],
)
def test_the_series_of_an_expression_are_found(expr: str, found: list[tuple[str, str]]) -> None:
    assert list(selectors(expr)) == found


def test_prometheus_asks_where_the_services_show_their_metrics() -> None:
    asked = {
        job["job_name"]: (found["names"], found["port"]) for job in sources.jobs() for found in job["dns_sd_configs"]
    }
    ports = {
        "gateway": GatewaySettings.metrics_port,
        "balancer": BalancerSettings.metrics_port,
        "substation": SubstationSettings.metrics_port,
    }
    assert asked == {name: ([name], port) for name, port in ports.items()}


def test_no_rule_is_evaluated_more_rarely_than_prometheus_looks_back() -> None:
    """What it records would be missing in between, and alerts on it would begin anew each time."""
    compose = (sources.ROOT / "compose.yml").read_text()
    (looks_back_s,) = re.findall(r"--query.lookback-delta=(\d+)s", compose)
    assert max(int(group.get("interval", "5s").removesuffix("s")) for group in sources.groups()) < int(looks_back_s)


@pytest.mark.parametrize("name", alerts())
def test_every_alert_leads_to_its_paragraph(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert f"\n### {name}\n" in (sources.ROOT / path).read_text()


def runbook() -> str:
    """As one line, since sentences are wrapped anywhere."""
    return " ".join((sources.ROOT / "observability" / "RUNBOOK.md").read_text().split())


def test_the_runbook_has_no_paragraph_of_an_alert_that_is_gone() -> None:
    assert set(re.findall(r" ### (\w+)", runbook())) == alerts().keys()


def test_the_runbook_names_panels_that_are_there() -> None:
    titles = {path.stem.title(): {panel["title"] for panel in sources.panels(path)} for path in sources.DASHBOARDS}
    named = re.findall(r"\*(?:(Grid|Mesh): )?([A-Z][^*:|]+)\*", runbook())
    assert len(named) > 50
    anywhere = set().union(*titles.values())
    assert [(where, title) for where, title in named if title not in titles.get(where, anywhere | titles.keys())] == []


def test_the_runbook_quotes_log_lines_that_are_written() -> None:
    services = [
        path for name in ("substation", "balancer", "gateway", "mesh") for path in (sources.ROOT / name).glob("*.py")
    ]
    code = "\n".join(path.read_text() for path in services)
    made = {f"substation {state.name.lower()}" for state in ReportState}
    quoted = set(re.findall(r"`([a-z]+(?: [a-z:]+)+)`", runbook()))
    assert len(quoted) > 15
    assert {line for line in quoted if f'"{line}"' not in code} <= made | {"make run", "gridmesh doctor"}
