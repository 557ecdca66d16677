"""Configuration and rules, as Prometheus' own tool judges them; and that each alert was tried in both directions."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.running import needs_prometheus, promtool
from tests.observability.sources import PROMETHEUS, RULE_FILES, RULE_TESTS, alerts

pytestmark = needs_prometheus

_OF_ALERT = re.compile(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}')


def test_the_configuration_is_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_the_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", *RULE_FILES)


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_stay_silent_when_not(path: Path) -> None:
    promtool("test", "rules", path)


def expectations() -> list[tuple[str, list[Any]]]:
    """Each alert that is looked at, with what is expected to fire."""
    return [
        (match[1], check["exp_samples"])
        for path in RULE_TESTS
        for case in yaml.safe_load(path.read_text())["tests"]
        for check in case["promql_expr_test"]
        if (match := _OF_ALERT.search(check["expr"]))
    ]


def test_each_alert_has_a_case_that_fires_and_one_that_stays_silent() -> None:
    assert {name for name, samples in expectations() if samples} == alerts().keys()
    assert {name for name, samples in expectations() if not samples} == alerts().keys()
