"""A real Prometheus on a free port of loopback, and its tools."""

import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.mesh_processes import ROOT, free_port, wait_for
from tests.observability.sources import PROMETHEUS, RULE_FILES

READY_S = 30.0


# Without Prometheus' programs a module is left out, with one line that says how to get them.
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus or promtool is missing: apt-get install --no-install-recommends prometheus",
)


def promtool(*words: object) -> str:
    """What it prints. AssertionError where it does not agree."""
    done = subprocess.run(
        ["promtool", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """Asks that server."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def api(self, path: str, **params: str) -> Any:  # noqa: ANN401 - JSON
        reply = self._http.get(f"/api/v1/{path}", params=params).json()
        assert reply["status"] == "success", (params, reply)
        return reply["data"]

    def values(self, expr: str, **params: str) -> list[float]:
        """One for each series; NaN, which a panel shows as nothing, is left out."""
        result = self.api("query", query=expr, **params)["result"]
        return [value for each in result if not math.isnan(value := float(each["value"][1]))]

    def all_up(self, targets: int) -> bool:
        return self.values("count(up == 1)") == [targets]


@contextmanager
def running(folder: Path, found: Mapping[str, list[str]]) -> Iterator[Prometheus]:
    """Started as checked in, but it asks every second, and the addresses given by job are what names would lead to."""
    url = f"127.0.0.1:{free_port()}"
    argv = [
        "prometheus", f"--config.file={_config(folder, found)}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
    prometheus = Prometheus(f"http://{url}")
    try:
        wait_for(lambda: process.poll() is not None or prometheus.ready(), READY_S, "Prometheus is ready")
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(10)


def _config(folder: Path, found: Mapping[str, list[str]]) -> Path:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": found[job["job_name"]]}]
    config["rule_files"] = [str(_rules(folder, path)) for path in RULE_FILES]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def _rules(folder: Path, path: Path) -> Path:
    """Every group as often as it is asked: a test does not wait half a minute for a rule."""
    content = yaml.safe_load(path.read_text())
    for group in content["groups"]:
        group.pop("interval", None)
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(content))
    return copy
